"""How much faster several seeds learn in one process when their gradient steps are computed as one.

For each row three sets of agents of the same settings, one agent a seed, take turns in one process: in two of them
each learns alone, one after the other, as the code stands (`--execution eager`) and with followed steps (the default
where they can be, agents/followed_step.py), in the third their gradient steps are computed as one
(agents/stacking.py). Times are of the processor, one thread, for one gradient step of every seed; ``ratio`` is the
median over turns of alone / as one, beside eager steps and beside followed ones.

    ppo-ant-64      PPO as CleanRL's on Ant-v5: 64-64 tanh, minibatches of 64
    dqn-mlp-N       DQN on ImageMDP's 28x28 images: N-N, batch 32

With --whole, runs are made in the world itself: ``worlds`` is the share of a run alone that acting, observing and the
worlds take, which nothing here makes faster, and ``bound`` the ratio that learning in no time would have.

    OMP_NUM_THREADS=1 python -m benchmarks.stacked_seeds [ROW ...] [--seeds 8] [--turns 7] [--whole]
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from agents.followed_step import WARM_UP
from agents.schedule import in_steps
from agents.stacking import Stack
from benchmarks.intervention_cost import TimedAgent
from benchmarks.turns import Spent, take_turns
from envs import describe
from experiments.config import TrainConfig
from experiments.machine import choose_device, device_argument
from experiments.presets import preset_config
from experiments.run import Event, Run
from experiments.setup import build, spaces_from

WIDTHS = (64, 128, 256, 512)
ROWS = ("ppo-ant-64", *(f"dqn-mlp-{width}" for width in WIDTHS))
SIDES = ("eager", "alone", "as one")
STEPS = 1_000_000
"""Of the run that schedules belong to."""


def settings(row: str) -> TrainConfig:
    """The run of a row."""
    if row == "ppo-ant-64":
        config = preset_config("ppo", "cleanrl_continuous", "mujoco", "Ant-v5")
        agent = replace(config.agent, rollout_steps=512, num_minibatches=8)  # so that turns alternate often
    else:
        config = preset_config("dqn", "auto", "image_mdp", "ImageMDP-v0")
        network = replace(config.agent.network, width=int(row.rpartition("-")[2]))
        agent = replace(config.agent, network=network, learning_starts=100, buffer_size=10_000)
    return replace(config, agent=agent, run=replace(config.run, steps=STEPS))


class Seeds:
    """An agent of each seed, with data to learn from."""

    def __init__(self, config: TrainConfig, seeds: int, device: torch.device, execution: str = "auto") -> None:
        spaces, agent = spaces_from(describe(config.world)), in_steps(config.agent, STEPS)
        self.each = [TimedAgent(agent, spaces, [], device, execution=execution) for _ in range(seeds)]
        self.stack: Stack | None = None

    def stacked(self) -> "Seeds":
        """The same, their gradient steps from now on computed as one."""
        self.stack = Stack([one.agent.learner for one in self.each])
        return self

    def seconds(self, updates: int) -> float:
        """Processor time of a gradient step of all."""
        clock, before = self.each[0].agent.clock, self.each[0].agent.clock.gradient_steps
        cuda = self.each[0].cuda
        now = time.perf_counter if cuda else time.process_time
        begun = now()
        for _ in range(updates):
            calls = {one.agent.learner: one.update for one in self.each}
            if self.stack is not None:
                self.stack.together(calls)
            else:
                for call in calls.values():
                    call()
        if cuda:
            torch.cuda.synchronize()
        return (now() - begun) / (clock.gradient_steps - before)


def update_ratio(row: str, seeds: int, turns: int, device: torch.device) -> str:
    """The line of the table for a row's gradient steps."""
    config = settings(row)
    eager = Seeds(config, seeds, device, "eager") if device.type == "cpu" else None
    sides = {"alone": Seeds(config, seeds, device), "as one": Seeds(config, seeds, device).stacked()}
    sides |= {} if eager is None else {"eager": eager}
    updates = 1 if row.startswith("ppo") else 20
    for side in sides.values():
        while side.each[0].agent.clock.gradient_steps <= 2 * WARM_UP:
            side.seconds(updates)
    windows = {name: partial(_window, side, updates) for name, side in sides.items()}
    found = take_turns(windows, turns)
    cells = [
        f"{median(spent.cpu for spent in found[name]) * 1e3 if name in found else math.nan:10.2f}" for name in SIDES
    ]
    for name in ("eager", "alone"):
        pairs = zip(found.get(name, ()), found["as one"], strict=False)
        ratios = sorted(one.cpu / other.cpu for one, other in pairs) or [math.nan]
        cells.append(f"{median(ratios):8.2f}   {ratios[0]:.2f} .. {ratios[-1]:.2f}")
    sides["as one"].stack.keep(())
    return f"{row:14} " + " ".join(cells)


def _window(side: Seeds, updates: int) -> Spent:
    seconds = side.seconds(updates)
    return Spent(seconds, seconds)


class Whole:
    """Runs of several seeds in their worlds, tick by tick."""

    def __init__(self, config: TrainConfig, seeds: int, stacked: bool) -> None:
        made = [build(replace(config, run=replace(config.run, seed=seed))) for seed in range(1, seeds + 1)]
        self.runs = [Run(agent, world, 2**40) for world, agent in made]
        self.stack = Stack([run.agent.learner for run in self.runs]) if stacked else None
        self.learning = 0.0

    def seconds(self, ticks: int) -> float:
        """Processor time of so many ticks of all."""
        begun = time.process_time()
        for _ in range(ticks):
            going = [run.tick() for run in self.runs]
            for events, run in zip(going, self.runs, strict=True):
                for _ in events:
                    if run.agent.update_due():
                        break
            pairs = zip(going, self.runs, strict=True)
            learning = {run.agent.learner: partial(_ended, events) for events, run in pairs}
            if any(run.agent.update_due() for run in self.runs):
                before = time.process_time()
                if self.stack is None:
                    for call in learning.values():
                        call()
                else:
                    self.stack.together(learning)
                self.learning += time.process_time() - before
        return time.process_time() - begun

    def close(self) -> None:
        """Close the worlds."""
        if self.stack is not None:
            self.stack.keep(())
        for run in self.runs:
            run.world.close()


def _ended(events: Iterator[Event]) -> None:
    for _ in events:
        pass


def whole_ratio(row: str, seeds: int, turns: int) -> str:
    """The line of the table for a row's whole runs."""
    config = settings(row)
    alone, as_one = Whole(config, seeds, False), Whole(config, seeds, True)
    ticks = 512 if row.startswith("ppo") else 200
    for side in (alone, as_one):
        while side.runs[0].agent.clock.gradient_steps <= 2 * WARM_UP:
            side.seconds(ticks)
        side.learning = 0.0
    pairs = []
    for turn in range(turns):
        sides = (alone, as_one) if turn % 2 else (as_one, alone)
        spent = {side: side.seconds(ticks) for side in sides}
        pairs.append((spent[alone], spent[as_one]))
    worlds = 1 - alone.learning / sum(one for one, _ in pairs)
    ratios = sorted(one / other for one, other in pairs)
    for side in (alone, as_one):
        side.close()
    return f"{row:14} {median(ratios):8.2f}   {ratios[0]:.2f} .. {ratios[-1]:.2f}   {worlds:6.0%}   {1 / worlds:6.2f}"


def main() -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=8, help="seeds, at least 2 (default 8)")
    parser.add_argument("--turns", type=int, default=7, help="turns, at least 5 (default 7)")
    parser.add_argument("--device", type=device_argument, default="cpu", metavar="{cpu,cuda,cuda:N}")
    parser.add_argument("--whole", action="store_true", help="whole runs in their worlds, on the CPU")
    arguments = parser.parse_args()
    if not set(arguments.rows) <= set(ROWS):
        parser.error(f"rows: must be some of {', '.join(ROWS)}")
    if arguments.turns < 5 or arguments.seeds < 2:
        parser.error("turns: at least 5; seeds: at least 2")
    torch.set_num_threads(1)
    device = choose_device(arguments.device, False)
    print(f"{arguments.seeds} seeds, {device}, torch {torch.__version__}, medians of {arguments.turns} turns")
    if arguments.whole:
        print(f"{'whole run':14} {'ratio':>8}   spread         worlds    bound")
    else:
        print(f"{'update':14} {'eager ms':>10} {'followed':>10} {'as one':>10} {'by eager':>8}   {'by followed':>22}")
    for row in arguments.rows or ROWS:
        measured = whole_ratio if arguments.whole else partial(update_ratio, device=device)
        print(measured(row, arguments.seeds, arguments.turns), flush=True)


if __name__ == "__main__":
    main()
