"""Steps per second with learning on, beside Stable-Baselines3 on the same worlds with the same settings, beside CleanRL
where a checkout of it is given, and beside the bare loops of the same work.

Measured: whole rollouts with their updates (PPO) or a number of steps with their gradient steps (DQN and C51, after
learning has begun), everything included: acting, the world, memory, updates. One thread each for torch and for the
world. All of a row take turns, each turn a warm-up and then a counted window, so that a busy machine slows all alike;
what is no part of this process (CleanRL, an earlier version) stands still while others have theirs. Speeds are medians
over the turns by wall clock; a ratio is the median over turns of the ratio within a turn, by processor time, steadier
where others use the machine too, and by wall clock.

The second table has what a step costs in its parts, each in a loop of its own (`bare.py`), and whole: "whole/sum" is
what all that makes a learner of them costs beside. A loop of its own finds its code and numbers in the caches; "in
turn" are the same three as every learner has them, tick by tick, which costs more.

    python -m benchmarks.throughput [--quick] [--turns N] [--only ROW ...] [--cleanrl CHECKOUT] [--against CHECKOUT]
"""

import argparse
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from agents.precision import subnormal_flushed
from benchmarks import cleanrl
from benchmarks.bare import BareLoops
from benchmarks.learners import Elsewhere, Ours, Theirs, earlier
from benchmarks.turns import FEWEST, Found, Spent, machine, ratio, speed, take_turns, timed
from experiments.cli import parse_train
from experiments.config import TrainConfig

COMMON = "--steps 20000 --seed 1 --threads 1 --device cpu"
VALUE = "--buffer-size 20000 --learning-starts 1000 --epsilon.start 0.01 --epsilon.end 0.01 --epsilon.over constant"
BREAKOUT = f"--env ALE/Breakout-v5 --padding valid {VALUE}"  # padding as theirs
PPO = "--learning-rate.over constant --no-life-loss-discount"
CLEANRL_VALUE = "--env-id BreakoutNoFrameskip-v4 --buffer-size 20000 --learning-starts 1000 --start-e 0.01"
PARTS = ("update", "act", "world")
IN_TURN = "in turn"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    flags: str
    """Settings of ours, as train.py takes them."""
    unit: int
    """Steps of the smallest whole piece: a rollout, or the steps between gradient steps."""
    window: int
    """Units counted in a turn."""
    warmup: int = 1
    """Units run before each counted window."""
    start: int = 0
    """Steps run before the first turn, so that learning is under way."""
    bf16: bool = False
    theirs: str = ""
    """Settings of Stable-Baselines3's, where it has not our agent."""
    script: str = ""
    """CleanRL's, with its flags."""
    line: int = 0
    """Steps between two of the script's lines."""

    def config(self, precision: str = "fp32") -> TrainConfig:
        """Our settings."""
        config = settings_of(self.flags)
        return replace(config, run=replace(config.run, precision=precision))


def settings_of(flags: str) -> TrainConfig:
    """What train.py makes of such flags."""
    return parse_train(shlex.split(f"{flags} {COMMON}"))


def rows(quick: bool = False) -> dict[str, Row]:
    """The lines of the table by short name. Turns begin when more than a hundred gradient steps were made, from where
    on they are followed (agents/followed_step.py)."""
    part, learning = 2 if quick else 1, {"unit": 4, "window": 120, "warmup": 15, "start": 1_440}
    value = learning | {"window": 120 // part}
    cleanrl_ppo = "ppo_continuous_action.py --env-id Ant-v5 --total-timesteps 100000000"
    atari = "ppo_atari_envpool.py --env-id Breakout-v5 --total-timesteps 100000000"
    return {
        "dqn-breakout": Row(
            "DQN Breakout (1 env, batch 32, every 4)",
            f"dqn {BREAKOUT} --loss huber",
            **value,
            bf16=True,
            script=f"dqn_atari.py {CLEANRL_VALUE}",
            line=100,
        ),
        "c51-breakout": Row(
            "C51 Breakout (beside SB3's DQN: it has no C51)",
            f"c51 {BREAKOUT}",
            **value,
            bf16=True,
            theirs=f"dqn {BREAKOUT} --loss huber",
            script=f"c51_atari.py {CLEANRL_VALUE}",
            line=100,
        ),
        "ppo-breakout": Row(
            "PPO Breakout (8x128, 4x4)",
            f"ppo --env ALE/Breakout-v5 {PPO}",
            1_024,
            2 // part,
            start=8_192,
            bf16=True,
            script=f"{atari} --num-envs 8",
            line=1_024,
        ),
        "ppo-ant": Row(
            "PPO Ant-v5 (1x2048, 10x32)",
            f"ppo --env Ant-v5 {PPO}",
            2_048,
            4 // part,
            start=2_048,
            script=f"{cleanrl_ppo} --num-envs 1",
            line=2_048,
        ),
        "ppo-ant-8": Row(
            "PPO Ant-v5 (8x2048, 10x32)",
            f"ppo --env Ant-v5 --num-envs 8 {PPO}",
            16_384,
            1,
            start=16_384,
            warmup=0,
            script=f"{cleanrl_ppo} --num-envs 8",
            line=16_384,
        ),
        "dqn-image": Row(
            "DQN ImageMDP (MLP 512-512, batch 32, every 1)",
            f"dqn --env ImageMDP-v0 {VALUE} --loss huber",
            **learning | {"unit": 1, "window": 400 // part, "warmup": 40, "start": 4_040},  # when units have died
            bf16=True,
        ),
    }


class Contest:
    """All who take turns in one row; `close` when done."""

    def __init__(self, row: Row, checkout: Path | None, tree: Path | None, bare: bool, folder: Path) -> None:
        self.row, self.learners, self.bare = row, {}, {}
        precisions = ["fp32", "bf16"] if row.bf16 else ["fp32"]
        for precision in precisions:
            self.learners[precision] = Ours(row.config(precision))
        self.learners["SB3"] = Theirs(settings_of(row.theirs or row.flags))
        if checkout is not None and row.script:
            name, *flags = row.script.split()
            self.learners["CleanRL"] = cleanrl.script(checkout, name, flags, row.line, folder)
        if tree is not None:
            unit = max(row.unit, 40)
            self.learners["before"] = earlier(tree, shlex.split(f"{row.flags} {COMMON}"), unit)
        if bare:
            self.bare = {precision: BareLoops(row.config(precision)) for precision in precisions}

    def run(self, turns: int, told: Callable[[str], None]) -> Found:
        """What each found in each turn: learners by name, bare loops as "fp32 update"."""
        row = self.row
        # processes first, which run on until they are told to stand still
        for name, learner in sorted(self.learners.items(), key=lambda item: not isinstance(item[1], Elsewhere)):
            # CleanRL is waited for until it learns: its first line
            learner.run(learner.steps if name == "CleanRL" else row.start)
        steps = row.warmup * row.unit, row.window * row.unit
        windows: dict[str, Callable[[], Spent]] = {
            name: partial(learner.window, *steps) for name, learner in self.learners.items()
        }
        for precision, loops in self.bare.items():
            windows |= {f"{precision} {part}": partial(self._loop, loops, part) for part in (*PARTS, IN_TURN)}
        return take_turns(windows, turns, told)

    def _loop(self, loops: BareLoops, part: str) -> Spent:
        """A bare loop over the window's units; of those that nothing else warms up the first are not counted."""
        work, units = loops.in_turn if part == IN_TURN else loops.loops[part], self.row.window

        def whole() -> int:
            work(units)
            return units * loops.steps

        with subnormal_flushed():  # as for ours
            work(max(1, units // 10) if part != "world" else 0)
            return timed(whole)

    def close(self) -> None:
        """Close all worlds, end all processes."""
        for each in [*self.learners.values(), *self.bare.values()]:
            each.close()


def speeds_line(title: str, found: Found) -> str:
    """Of the first table."""
    cells = [f"{speed(found[name]):8,.0f}" if name in found else f"{'-':>8}" for name in SHOWN]
    ratios = []
    for of, by in RATIOS:
        both = of in found and by in found
        values = (ratio(found[of], found[by]), ratio(found[of], found[by], "wall")) if both else ()
        ratios.append(f"{'-':>13}" if not both else "{:5.2f}x ({:.2f})".format(*values))
    return f"{title:46}" + " ".join(cells) + "  " + "  ".join(ratios)


SHOWN = ("fp32", "bf16", "SB3", "CleanRL", "before")
RATIOS = (("fp32", "SB3"), ("bf16", "SB3"), ("fp32", "CleanRL"), ("fp32", "before"))


def parts_line(title: str, precision: str, found: Found) -> str:
    """Of the second table, in microseconds a step by processor time."""
    parts = [found[f"{precision} {part}"] for part in PARTS]
    sums = [sum(each.cpu for each in turn) for turn in zip(*parts, strict=True)]
    whole = [each.cpu for each in found[precision]]
    micro = [median(each.cpu for each in part) for part in parts]
    turned = found[f"{precision} {IN_TURN}"]
    values = [*micro, median(sums), median(each.cpu for each in turned), median(whole)]
    cells = " ".join(f"{value * 1e6:9,.0f}" for value in values)
    share = median(one / both for one, both in zip(whole, sums, strict=True))
    return f"{title:46}{precision:5} {cells} {share:9.2f}x {1 / ratio(found[precision], turned):11.2f}x"


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="windows of half the length")
    parser.add_argument("--turns", type=int, default=FEWEST, help=f"alternations a row (default {FEWEST})")
    parser.add_argument("--only", nargs="+", choices=list(rows()), default=list(rows()), help="some rows alone")
    parser.add_argument("--cleanrl", type=Path, metavar="CHECKOUT", help="of CleanRL, to be measured beside")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="of an earlier version of this suite")
    parser.add_argument("--no-bare", action="store_true", help="without the bare loops")
    found = parser.parse_args(words)
    if found.turns < 1:
        parser.error(f"argument --turns: {found.turns} must be at least 1")
    for flag, place in (("cleanrl", "cleanrl/dqn_atari.py"), ("against", "experiments/run.py")):
        if (path := getattr(found, flag)) is not None and not (path / place).is_file():
            parser.error(f"argument --{flag}: {path} holds no {place}")
    return found


def measured(row: Row, arguments: argparse.Namespace) -> Found:
    """The row's turns, each printed as it ends."""
    with TemporaryDirectory() as folder:
        contest = Contest(row, arguments.cleanrl, arguments.against, not arguments.no_bare, Path(folder))
        try:
            return contest.run(arguments.turns, lambda words: print(f"  {row.title}  {words}", flush=True))
        finally:
            contest.close()


def main() -> None:
    """Measure the rows asked for and print the tables."""
    arguments = arguments_of()
    torch.set_num_threads(1)
    print(machine("envpool", "mujoco", "ale-py", "gymnasium", "stable-baselines3"), flush=True)
    chosen = {name: row for name, row in rows(arguments.quick).items() if name in arguments.only}
    found = {name: measured(row, arguments) for name, row in chosen.items()}
    pairs = "  ".join(f"{f'{of}/{by}':>13}" for of, by in RATIOS)
    print(f"\n{'steps/s with learning on':46}" + " ".join(f"{name:>8}" for name in SHOWN) + f"  {pairs}")
    for name, row in chosen.items():
        print(speeds_line(row.title, found[name]))
    print("ratios by processor time (by wall clock)")
    if not arguments.no_bare:
        heads = " ".join(f"{name:>9}" for name in (*PARTS, "sum", IN_TURN, "whole", "whole/sum", "whole/in turn"))
        print(f"\n{'microseconds a step, in loops of their own':51} {heads}")
        for name, row in chosen.items():
            for precision in ("fp32", "bf16") if row.bf16 else ("fp32",):
                print(parts_line(row.title, precision, found[name]))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
