"""How steps per second grow: with environments, with the width of an MLP, with threads, with seeds in one process.

Under ``seeds`` gradient steps are counted: how many times those of one seed all make together, stacked where that can
be (agents/stacking.py). Every other point is a whole run with learning on; those of a table take turns in one process,
windows of equal time each, and have one thread where nothing else is said. Under ``threads`` the last column is what a
run would choose by itself (experiments/machine.py), and the speeds there are by wall clock: where others use the
machine too, more threads look worse than they are.

    python -m benchmarks.scaling [--only TABLE ...] [--turns N] [--seconds S] [--png FILE]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from agents.followed_step import WARM_UP
from benchmarks.learners import Ours
from benchmarks.stacked import stacked_updates
from benchmarks.throughput import VALUE, settings_of
from benchmarks.turns import FEWEST, Spent, machine, speed, take_turns
from envs import describe
from envs.cores import usable_cores
from experiments.machine import choose_threads
from experiments.setup import spaces_from
from experiments.sizes import products_of_a_batch

VALUE_FLAGS = VALUE.replace("--learning-starts 1000", "--learning-starts 200")
IMAGE, CNN = f"dqn --env ImageMDP-v0 {VALUE_FLAGS}", "--env ALE/Breakout-v5 --padding valid"
ANT, BREAKOUT = "ppo --env Ant-v5 --num-minibatches 8", "ppo --env ALE/Breakout-v5 --num-minibatches 1"
"""With rollouts of 512 and 256 steps, shorter than usual: minibatches and so the work of a step are the usual ones."""


Speeds = dict[str, dict[int, float]]
"""By line and place on the axis."""


@dataclass(frozen=True)
class Point:
    """One speed of a table."""

    line: str
    """What it is a point of."""
    at: int
    """How many environments, units, seeds or threads."""
    flags: str
    threads: int = 1


def environments() -> list[Point]:
    """Rollouts of one size, shared by more and more environments."""
    counts = (1, 2, 4, 8, 16, 32)
    ant = [Point("PPO Ant-v5", n, f"{ANT} --num-envs {n} --rollout-steps {512 // n}") for n in counts]
    return ant + [Point("PPO Breakout", n, f"{BREAKOUT} --num-envs {n} --rollout-steps {256 // n}") for n in counts]


def widths() -> list[Point]:
    """Two hidden layers."""
    found = []
    for width in (64, 128, 256, 512, 1024):
        found.append(Point("DQN ImageMDP", width, f"{IMAGE} --width {width}"))
        found.append(Point("PPO Ant-v5, 8 envs", width, f"{ANT} --num-envs 8 --rollout-steps 64 --width {width}"))
    return found


def threads() -> list[Point]:
    """Networks of several sizes; where there are two cores, one and two."""
    most = max(2, usable_cores())
    lines = {
        "PPO Ant-v5": f"{ANT} --num-envs 8 --rollout-steps 64",
        "DQN ImageMDP": IMAGE,
        "DQN ImageMDP, 2048 wide": f"{IMAGE} --width 2048",
        "DQN Breakout": f"dqn {CNN} {VALUE_FLAGS}",
        "PPO Breakout": f"{BREAKOUT} --rollout-steps 32",
    }
    counts = [count for count in (1, 2, 4) if count <= most]
    return [Point(line, count, flags, count) for line, flags in lines.items() for count in counts]


STACKED = {
    "PPO Ant-v5, 64-64": f"{ANT} --rollout-steps 512",
    "DQN ImageMDP, 64-64": f"{IMAGE} --width 64",
    "DQN ImageMDP, 512-512": IMAGE,
}
"""Whose gradient steps are computed side by side, with made-up data and no world."""


def seeds(turns: int, seconds: float, told: Callable[[str], None]) -> Speeds:
    """How many times the gradient steps per second of one seed all make together, by line and number of seeds."""
    found: Speeds = {}
    for line, flags in STACKED.items():
        for count in (2, 4, 8):
            stacked = stacked_updates(settings_of(flags), count, turns, seconds, torch.device("cpu"))
            told(f"{line}, {count} seeds: {stacked.words}")
            found.setdefault(line, {1: 1.0})[count] = stacked.times
    return found


TABLES: dict[str, Callable[[], list[Point]]] = {"environments": environments, "width": widths, "threads": threads}
AXES = {
    "environments": "environments",
    "width": "units of a hidden layer",
    "threads": "torch threads",
    "seeds": "seeds in one process",
}
MEANT = {name: "gradient steps, beside one," if name == "seeds" else "steps a second" for name in AXES}


def measure(points: list[Point], turns: int, seconds: float, told: Callable[[str], None]) -> Speeds:
    """Steps per second."""
    learners: dict[str, Ours] = {}
    windows, found = {}, {}
    for point in points:
        if point.flags not in learners:
            learners[point.flags] = Ours(settings_of(point.flags))
            while learners[point.flags].agent.clock.gradient_steps <= WARM_UP:
                learners[point.flags].run(1)  # until its steps are followed
        learner = learners[point.flags]
        torch.set_num_threads(point.threads)
        first = learner.window(0, 1)
        windows[f"{point.line}, {point.at}"] = _window(learner, point.threads, max(1, int(seconds / first.wall)))
    for name, spent in take_turns(windows, turns, told).items():
        line, _, place = name.rpartition(", ")
        found.setdefault(line, {})[int(place)] = speed(spent)
    for learner in learners.values():
        learner.close()
    torch.set_num_threads(1)
    return found


def _window(learner: Ours, threads: int, steps: int) -> Callable[[], Spent]:
    def window() -> Spent:
        torch.set_num_threads(threads)
        return learner.window(0, steps)

    return window


def printed(name: str, points: list[Point], speeds: Speeds) -> None:
    """The table `name`."""
    places = sorted({place for found in speeds.values() for place in found})
    more = f"{'chosen':>9}" if name == "threads" else ""
    print(f"\n{MEANT[name] + ' by ' + AXES[name]:38}" + "".join(f"{place:9,}" for place in places) + more)
    for line, found in speeds.items():
        form = "9,.2f" if name == "seeds" else "9,.0f"
        cells = "".join(f"{found[place]:{form}}" if place in found else f"{'-':>9}" for place in places)
        if name == "threads":
            config = settings_of(next(point.flags for point in points if point.line == line))
            products = products_of_a_batch(config, spaces_from(describe(config.world)))
            cells += f"{choose_threads(0, products).number:9}"
        print(f"{line:38}{cells}", flush=True)


def draw(found: dict[str, Speeds], path: Path) -> None:
    """All tables in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), squeeze=False)
    for axis, (name, speeds) in zip(axes[0], found.items(), strict=True):
        for line, points in speeds.items():
            axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=line)
        axis.set(xscale="log", xlabel=AXES[name], ylabel=MEANT[name].rstrip(","))
        if name == "seeds":
            axis.set_ylim(0)
        else:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.set_xticks(places := sorted({place for points in speeds.values() for place in points}), places)
        axis.minorticks_off()
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure the tables asked for, print them, draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES), help="some tables alone")
    parser.add_argument("--turns", type=int, default=FEWEST, help=f"windows of a point (default {FEWEST})")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a window (default 1)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them, too")
    arguments = parser.parse_args()
    points = {name: TABLES[name]() for name in arguments.only if name in TABLES}
    torch.set_num_threads(1)
    print(machine("envpool", "mujoco"), flush=True)
    found, how = {}, (arguments.turns, arguments.seconds)
    for name in arguments.only:

        def told(words: str, name: str = name) -> None:
            print(f"  {name}  {words if name == 'seeds' else words.partition(':')[0]}", flush=True)

        found[name] = measure(points[name], *how, told) if name in points else seeds(*how, told)
    for name, speeds in found.items():
        printed(name, points.get(name, []), speeds)
    if arguments.png:
        draw(found, arguments.png)
        print(f"\ndrawn: {arguments.png}")


if __name__ == "__main__":
    main()
