"""One script for a GPU: that it learns what the CPU learns, how fast whole runs are, where their time goes, and what
probes, surgeries and stacked seeds cost there. It prints tables and writes them as JSON.

- ``same``: from equal weights, on equal batches, the greatest difference of any weight after some updates: GPU from
  CPU, and captured graphs from the same run eagerly.
- ``rows``: steps per second of whole runs, TF32 and true float32; of an update the time, the time of its kernels (by
  torch.profiler), their number a gradient step, how often the host waits for the device in it, and the share of the
  run's time that goes to the world, to acting, to remembering and to updates, as the host sees it.
- ``costs``: the default probes' share of a run of a million steps, and how much longer an update takes with ReDo, CBP.
- ``seeds``: gradient steps per second of seeds stacked in one process, beside one seed alone.

About ten minutes on an H100. Without a GPU `--dry-run` goes through all of it on the CPU at tiny sizes, to see that it
runs; its figures mean nothing.

    python -m benchmarks.gpu [--json FILE] [--only PART ...] [--dry-run]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import intervention_cost, probe_cost
from benchmarks.gpu_rows import VALUE, Bench, rows
from benchmarks.turns import FEWEST, machine
from experiments.machine import choose_device


@contextmanager
def _same_weights(one: Any, other: Any) -> Iterator[Callable[[], float]]:
    """Begin with equal weights; gives what tells the greatest difference of any."""
    other.agent.load_state_dict(one.agent.state_dict())
    pairs = list(zip(one.agent.network.parameters(), other.agent.network.parameters(), strict=True))
    yield lambda: max((a.detach().cpu() - b.detach().cpu()).abs().max().item() for a, b in pairs)


def same(bench: Bench) -> Iterator[dict[str, Any]]:
    """Differences after so many updates, true float32."""
    print(f"\ngreatest difference of a weight after {bench.updates} updates, fp32")
    cpu = torch.device("cpu")
    for name, (config, spaces, _, _) in intervention_cost.rows().items():
        if name == "ppo-ant-256":
            continue
        if bench.dry:
            config = replace(config, network=replace(config.network, width=16))
        made = partial(intervention_cost.TimedAgent, config, spaces, [])
        pairs = {"GPU and CPU": (made(cpu), made(bench.device))}
        if bench.gpu:
            pairs["graph and eager"] = tuple(made(bench.device, execution=mode) for mode in ("eager", "graph"))
        for title, (one, other) in pairs.items():
            with _same_weights(one, other) as difference:
                _learn_alike(one.agent, other.agent, bench.updates, title == "GPU and CPU")
                found = difference()
            print(f"{name:14} {title:18} {found:.1e}", flush=True)
            yield {"row": name, "of": title, "difference": found}


def _learn_alike(one: Any, other: Any, updates: int, batches: bool) -> None:
    """Let both learn from equal data: the same `batches`, or by their own updates from equal memories."""
    if hasattr(one, "rollout"):
        other.rollout.load_state_dict(one.rollout.state_dict())
        if not batches:
            other.generators.load_state_dict(one.generators.state_dict())
    for _ in range(updates):
        if not batches:
            for agent in (one, other):
                if hasattr(agent, "rollout"):
                    agent.rollout.row = len(agent.rollout.rewards)
                agent.update()
        elif hasattr(one, "rollout"):
            batch = _minibatch(one)
            for agent in (one, other):
                agent.learner.update(agent.learn, {name: part.to(agent.device) for name, part in batch.items()})
        else:
            batch = one.replay.sample(one.config.batch_size)
            for agent in (one, other):
                agent.learner.update(agent.learn, type(batch)(*(part.to(agent.device) for part in batch)))


def _minibatch(agent: Any) -> dict[str, torch.Tensor]:
    """Made-up columns for PPO's loss, observations and actions of its rollout."""
    rows = agent.batch_size // agent.config.num_minibatches
    pick = torch.randperm(agent.batch_size, generator=agent.shuffle)[:rows]
    data = {name: getattr(agent.rollout, name).flatten(0, 1)[pick] for name in ("observations", "actions", "log_probs")}
    noise = [torch.empty(rows).normal_(generator=agent.exploration) for _ in range(3)]
    return data | dict(zip(("advantages", "returns", "values"), noise, strict=True))


def costs(bench: Bench) -> Iterator[dict[str, Any]]:
    """Of the default probes, ReDo and CBP."""
    print("\nprobes: share of a run of a million steps; ReDo, CBP: time of an update with and without")
    table = probe_cost.rows(str(bench.device))
    for name in ("dqn-cartpole",) if bench.dry else ("ppo-breakout", "dqn-breakout", "ppo-ant"):
        config, start, window = table[name]
        timed = probe_cost.Timed(config, start)
        timed.attach(("default",), window)
        timed.probe(False)
        steps = 0

        def train(timed: probe_cost.Timed = timed, window: int = window) -> None:
            nonlocal steps
            steps += timed.run(window)

        seconds = timed.seconds(train) / steps
        probe = min(timed.seconds(lambda timed=timed: timed.probe(False)) for _ in range(3))
        timed.close()
        share = probe / (probe + probe_cost.cadences(config)[0] * seconds)
        print(f"{name:14} {'probes':8} {probe * 1e3:8.1f} ms {share:7.2%}", flush=True)
        yield {"row": name, "of": "probes", "ms": probe * 1e3, "share": share}
    for name in ("ppo-ant-64",) if bench.dry else ("dqn-atari", "ppo-ant-256"):
        for chosen in ("redo", "cbp"):
            ratio = _ratio(name, chosen, bench)
            print(f"{name:14} {chosen:8} {ratio:11.3f}x", flush=True)
            yield {"row": name, "of": chosen, "ratio": ratio}


def _ratio(name: str, chosen: str, bench: Bench) -> float:
    """Of an update with the intervention to one without: the median over a few turns of stretches that alternate."""
    *settings, stretches = intervention_cost.rows()[name]
    turns, stretches, warmup = (1, 1, 1) if bench.dry else (5, stretches, 4)  # a graph is captured at the fourth update
    return intervention_cost.compare((*settings, stretches), chosen, turns, bench.device, warmup).ratio


def seeds(bench: Bench) -> Iterator[dict[str, Any]]:
    """Stacked seeds of ImageMDP's DQN: gradient steps per second of all together, by those of one alone."""
    from benchmarks.stacked import stacked_updates

    print("\nstacked seeds, gradient steps a second")
    counts = (2,) if bench.dry else (8, 32)
    config = bench.settings(f"dqn --env ImageMDP-v0 {VALUE} {'--width 16' if bench.dry else ''}")
    for count in counts:
        found = stacked_updates(config, count, 1 if bench.dry else FEWEST, bench.seconds / 10, bench.device)
        print(f"ImageMDP, {count:2} seeds: {found.words}", flush=True)
        yield {"seeds": count, "alone": found.alone, "together": found.together, "in_turns": found.why}


ALL: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "same": same,
    "rows": rows,
    "costs": costs,
    "seeds": seeds,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL), help="some parts alone")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    torch.set_num_threads(1)
    try:
        bench = Bench(torch.device("cpu") if arguments.dry_run else choose_device("cuda"), arguments.dry_run)
    except ValueError as error:
        parser.error(f"{error} (or --dry-run)")
    where = torch.cuda.get_device_name(bench.device) if bench.gpu else "dry run on the CPU: its figures mean nothing"
    print(f"{where}\n{machine('envpool', 'mujoco')}", flush=True)
    found: dict[str, Any] = {"device": where, "torch": torch.__version__, "dry_run": arguments.dry_run}
    for name in arguments.only:
        found[name] = list(ALL[name](bench))
    found["seconds"] = time.perf_counter() - begun
    print(f"\n{found['seconds']:.0f} s in all")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        print(f"written: {arguments.json}")


if __name__ == "__main__":
    main()
