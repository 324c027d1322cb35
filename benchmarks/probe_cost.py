"""The share of training time that probes take, at the default cadence of a long run and of a short one.

Per agent and world: a window of training is timed, then one probe as a run takes it (current and reference batch, the
default probes), then the churn of the next update; turn by turn within one process, so that a busy machine slows both
alike. A share is the median probe's time by that of the steps between two probes and itself, in a run of a million
steps (a probe every 10,000) and in one of 6,000 (every 300, or every update of PPO where that takes more steps);
``all`` the same with the heavy probes at their cadence (every tenth time). Learning throughout: what a short run does
before it learns costs less, and is not counted. By processor time, one thread.

The last column counts the values read back from the device (``aten::_local_scalar_dense``; on a GPU copies and stream
synchronisations too) within one update, before a prober is attached and in the update after a probe: it must add none.
(On a CPU the guard reads its verdict at once; on a GPU it does not.)

    OMP_NUM_THREADS=1 python -m benchmarks.probe_cost [--turns N] [--only ROW] [--device cuda]
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from agents.kinds import kind_of
from agents.probing import subject_of
from agents.randomness import Generators
from agents.schedule import CONSTANT
from agents.value_config import Epsilon
from benchmarks.learners import Ours
from experiments.config import RunConfig, TrainConfig
from experiments.machine import device_argument
from experiments.presets import preset_config
from plasticity_probes.prober import Prober

LEARNING_STARTS = 1_000
VALUE_CHANGES = {"buffer_size": 20_000, "learning_starts": LEARNING_STARTS, "epsilon": Epsilon(0.01, over=CONSTANT)}
LONG, SHORT = 1_000_000, 6_000
"""Steps of the runs whose shares are printed."""


def rows(device: str) -> dict[str, tuple[TrainConfig, int, int]]:
    """(settings, steps before the first turn, steps of a window) by name."""
    run = RunConfig(seed=1, threads=1, device=device)

    def config(algorithm: str, family: str, env: str, **changes: object) -> TrainConfig:
        preset = preset_config(algorithm, "auto", family, env)
        network = replace(preset.agent.network, padding="valid")  # what was measured so far
        agent = replace(preset.agent, network=network, **changes)
        return replace(preset, agent=agent, run=replace(run, steps=20_000))

    atari = "ALE/Breakout-v5"
    return {
        "dqn-breakout": (config("dqn", "atari", atari, **VALUE_CHANGES), LEARNING_STARTS + 40, 320),
        "c51-breakout": (config("c51", "atari", atari, **VALUE_CHANGES), LEARNING_STARTS + 40, 320),
        "ppo-breakout": (config("ppo", "atari", atari), 1_024, 1_024),
        "ppo-ant": (config("ppo", "mujoco", "Ant-v5"), 2_048, 4_096),
        "dqn-image": (config("dqn", "image", "ImageMDP-v0", **VALUE_CHANGES), LEARNING_STARTS + 40, 320),
        "dqn-cartpole": (config("dqn", "classic", "CartPole-v1", **VALUE_CHANGES), LEARNING_STARTS + 40, 640),
        "ppo-cartpole": (config("ppo", "classic", "CartPole-v1"), 2_048, 2_048),
    }


class Timed(Ours):
    """A run that can be probed as well."""

    def __init__(self, config: TrainConfig, start: int) -> None:
        super().__init__(config)
        self.taken, self.prober = 0, None
        self.cuda = self.agent.device.type == "cuda"
        self.run(start)

    def attach(self, probes: tuple[str, ...], window: int) -> None:
        """Probe from now on; train until there is something to probe."""
        self.prober = Prober(subject_of(self.agent, Generators(1)), probes, tell=_raise_on_failure)
        self.run(window)

    def seconds(self, work: Callable[[], object]) -> float:
        """Processor time of `work` (wall-clock time on a GPU, whose work is waited for)."""
        clock = time.perf_counter if self.cuda else time.process_time
        if self.cuda:
            torch.cuda.synchronize()
        begun = clock()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        return clock() - begun

    def probe(self, boundary: bool) -> None:
        """One probe and the churn."""
        self.taken += 1
        found = self.prober.measure(self.step + self.taken, boundary)
        if found is None:
            raise RuntimeError("there was no batch to measure on")
        self.prober.after_update()


def _raise_on_failure(sentence: str) -> None:
    if "failed" in sentence:
        raise RuntimeError(sentence)


def values_read(timed: Timed) -> int:
    """Values read back from the device, and copies between devices, within one update; with a prober, the one that
    follows a probe."""
    if timed.prober is not None:
        timed.taken += 1
        timed.prober.measure(timed.step + timed.taken)
    update, counts = timed.agent.update, []

    def profiled() -> dict:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            metrics = update()
        keys = ("aten::_local_scalar_dense", "aten::_to_copy", "cudaStreamSynchronize", "cudaMemcpyAsync")
        wanted = keys if timed.cuda else keys[:1]
        counts.append(sum(event.count for event in profiler.key_averages() if event.key in wanted))
        return metrics

    timed.agent.update = profiled
    timed.run(1)
    del timed.agent.update
    if timed.prober is not None:
        timed.prober.after_update()
    return counts[0]


def cadences(config: TrainConfig) -> list[int]:
    """Steps between two default probes of a long run and of a short one."""
    agent, found = config.agent, []
    for steps in (LONG, SHORT):
        every = replace(config, run=replace(config.run, steps=steps)).probe_every
        learns = config.world.num_envs * agent.rollout_steps if kind_of(agent).on_policy else 1
        found.append(max(every, learns))
    return found


def measure(name: str, config: TrainConfig, start: int, window: int, turns: int) -> str:
    """The row's line of the table."""
    timed = Timed(config, start)
    before = values_read(timed)
    timed.attach(("default",), window)
    after = values_read(timed)
    training_seconds, light_seconds, heavy_seconds = [], [], []
    timed.probe(False)  # the first one also measures a fresh network
    for _ in range(turns):
        steps = 0

        def train() -> None:
            nonlocal steps
            steps = timed.run(window)

        training_seconds.append(timed.seconds(train) / steps)
        light_seconds.append(timed.seconds(lambda: timed.probe(False)))
    heavy = timed.prober = replace(timed.prober, probes=("all",))
    for _ in range(max(1, turns // 3)):  # long enough to need no warm-up
        heavy_seconds.append(timed.seconds(lambda: timed.probe(True)))
    timed.world.close()
    step, probe, whole = median(training_seconds), median(light_seconds), median(heavy_seconds)
    factor = heavy.heavy_factor
    average = probe + (whole - probe) / factor
    light, heavier = (
        [f"{cost / (cost + every * step):8.2%}" for every in cadences(config)] for cost in (probe, average)
    )
    return (
        f"{name:14} {1 / step:9,.0f} {probe * 1e3:10.0f} {light[0]} {light[1]} {whole:9.1f} {heavier[0]} {heavier[1]}"
        f"   {before} / {after}"
    )


def main() -> None:
    """Measure the rows asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=5, help="windows and probes a row (default 5)")
    parser.add_argument("--device", type=device_argument, default="cpu", metavar="{cpu,cuda,cuda:N}")
    table = rows("cpu")
    parser.add_argument("--only", choices=list(table), help="one row alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, 1 thread")
    print(
        f"shares of a run of {LONG:,} steps | of {SHORT:,}, at the default cadence; 512 examples a batch, two batches"
    )
    print(
        f"{'':14} {'steps/s':>9} {'probe ms':>10} {'share':>8} {'| short':>8} {'heavy s':>9} {'all':>8} {'| short':>8}"
        "   values read an update, without / with"
    )
    for name, (config, start, window) in rows(arguments.device).items():
        if arguments.only in (None, name):
            print(measure(name, config, start, window, arguments.turns), flush=True)


if __name__ == "__main__":
    main()
