"""Whether memory or open files grow in long runs: two trainings beside each other, watched from outside.

- ``resumed``: DQN on an Atari game, stopped by SIGTERM ``--resumes`` times and resumed each time.
- ``changing``: DQN in a world that changes every 1,000 steps, in one process.

Time is that of the processor, so that a busy machine makes the soak longer and not the runs shorter: in its first
seconds a process loads, logs, probes and saves for the first time and takes the memory that this takes, which is why it
does all of that often. Their replays are small, and full before anything is counted; the first quarter of each process
after that is left out too, in which allocators come to rest. What an allocator holds goes up and down by a few percent
while nothing grows, so each minute counts by its smallest size: what leaks is there then, too. ``inside`` is the median
of the slopes between any two minutes of the same process (Theil and Sen's, which no single jump moves), ``resumes`` the
same between the median sizes of the processes that resumed, both in percent of the size an hour. Either is growth where
it is above the bound and in order: by Kendall's test at 5 % (inside: Hirsch and Slack's sum of it over the processes;
across resumes it takes four). ``p`` is that of the test inside. The exit code is 1 where memory grows or a process ends
with more open files than it began with, 2 where too little was seen.

    OMP_NUM_THREADS=1 python -m benchmarks.soak [--minutes 30] [--resumes 10]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from scipy.stats import kendalltau, norm

BOUND = 1.0
"""Percent an hour."""
CHANCE = 0.05
"""What is as likely as that without growth is none."""
EVERY = 1.0
"""Seconds between two looks."""
MINUTE = 60.0
"""Seconds of which the smallest size counts."""
SETTLES = 0.25
"""Share of what is seen of a process that does not count."""
PATIENCE = 10
"""How many times as long as its processor time a process may take."""
FEWEST = 8
"""Looks at a process of which a slope is taken."""
STARTS, SLOTS = 500, 2_000
COMMON = f"--steps 1e9 --log-every 250 --checkpoint-every 1000 --probe.every 500 --learning-starts {STARTS} "
COMMON += f"--buffer-size {SLOTS} --threads 1 --device cpu"
ARMS = {
    "resumed": "dqn --env ALE/Breakout-v5 --batch-size 8 --probe.samples 64",
    "changing": "dqn --env ImageMDP-v0 --task.period 1000",
}


class Look(NamedTuple):
    """At a process of a run."""

    process: int
    """How many came before it."""
    seconds: float
    """Of processor time, over all of the run's processes."""
    size: int
    """Bytes of memory that are resident."""
    files: int
    """Open file descriptors."""


@dataclass
class Seen:
    """What was seen of a run."""

    looks: list[Look] = field(default_factory=list)
    """Once its replay was full."""
    resumes: int = 0
    step: int = 0
    problem: str = ""

    def settled(self) -> list[list[Look]]:
        """The looks that count, by process."""
        by_process = [[look for look in self.looks if look.process == n] for n in range(self.resumes + 1)]
        counted = [looks[int(len(looks) * SETTLES) :] for looks in by_process]
        return [looks for looks in counted if len(looks) >= FEWEST]


def slope(groups: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The median of the slopes between any two points (seconds, value) of one group, in percent of the median value an
    hour; NaN where no group has two."""
    found = []
    for group in groups:
        seconds, values = np.array(group, dtype=np.float64).reshape(-1, 2).T
        first, second = np.triu_indices(len(seconds), 1)
        found.append((values[second] - values[first]) / (seconds[second] - seconds[first]))
    slopes = np.concatenate(found) if found else np.empty(0)
    typical = np.median([value for group in groups for _, value in group]) if slopes.size else 1.0
    return float(np.median(slopes) * 3600 / typical * 100) if slopes.size else float("nan")


def floors(looks: Sequence[Look]) -> list[tuple[float, int]]:
    """(seconds, bytes) where it was smallest in each minute of a process; a last one that is not whole is left out."""
    minutes: dict[int, list[tuple[int, float]]] = {}
    for look in looks:
        minutes.setdefault(int((look.seconds - looks[0].seconds) // MINUTE), []).append((look.size, look.seconds))
    whole = looks[-1].seconds - looks[0].seconds >= len(minutes) * MINUTE - 2 * EVERY
    return [min(sizes)[::-1] for sizes in list(minutes.values())[: None if whole else -1]]


def chance(groups: Sequence[Sequence[float]]) -> float:
    """How often values in no order would rise within their groups at least as these do (Hirsch and Slack 1984: the sum
    of Kendall's S over groups, normal); 1 where there is nothing to order."""
    rises = sum(int(np.sign(group[j] - group[i])) for group in groups for j in range(len(group)) for i in range(j))
    variance = sum(n * (n - 1) * (2 * n + 5) / 18 for n in map(len, groups))
    return float(norm.sf((rises - 1) / variance**0.5)) if variance else 1.0


def in_a_process(processes: Sequence[Sequence[Look]]) -> tuple[float, float]:
    """(growth of memory while a process lives, percent an hour; how often chance does that)"""
    lowest = [floors(looks) for looks in processes]
    return slope(lowest), chance([[size for _, size in floor] for floor in lowest])


def across_resumes(processes: Sequence[Sequence[Look]]) -> tuple[float, bool]:
    """(growth of memory from one process that resumed to the next, percent an hour; whether chance seldom does that)"""
    resumed = [looks for looks in processes if looks[0].process > 0]  # the first has nothing to load
    middles = [tuple(np.median([(look.seconds, look.size) for look in looks], axis=0)) for looks in resumed]
    if len(middles) < 2:
        return float("nan"), False
    return slope([middles]), bool(kendalltau(*zip(*middles, strict=True), alternative="greater").pvalue < CHANCE)


def files(processes: Sequence[Sequence[Look]]) -> list[tuple[int, int]]:
    """Open files as each process begins and ends: medians, since a checkpoint opens some for a moment."""
    few = FEWEST // 2
    ends = [(looks[:few], looks[-few:]) for looks in processes]
    return [tuple(int(np.median([look.files for look in end])) for end in both) for both in ends]


def grows(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether there are more open files in the end, of a process or from the first to the last."""
    return any(last > first for first, last in pairs) or pairs[-1][1] > pairs[0][0]


class Arm:
    """A training in a directory of its own."""

    def __init__(self, name: str, folder: Path, minutes: float, resumes: int) -> None:
        self.seconds = minutes * 60 / (resumes + 1)
        """Of processor time, each process."""
        self.before = 0.0
        """Those of the processes that came before."""
        self.folder, self.name, self.resumes, self.seen = folder, name, resumes, Seen()
        self.first = [*ARMS[name].split(), *COMMON.split(), "--runs-dir", str(folder), "--name", name]

    def carry_out(self) -> None:
        """Train, stop and resume; what was seen is in `seen`."""
        for number in range(self.resumes + 1):
            words = ["--resume", str(self.folder / self.name)] if number else self.first
            with (self.folder / f"{self.name}.txt").open("a") as said:
                command = [sys.executable, "train.py", *words]
                process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=said, stderr=said)
            try:
                self._watch(process, number)
                process.send_signal(signal.SIGTERM)
                code = process.wait(timeout=120)
            finally:
                process.kill()
            if code != os.EX_TEMPFAIL:
                last = (self.folder / f"{self.name}.txt").read_text().strip().splitlines()[-3:]
                self.seen.problem = f"exit code {code}: {' / '.join(last)}"
                return
            self.seen.resumes = number

    def _watch(self, process: subprocess.Popen, number: int) -> None:
        watched, began, worked = psutil.Process(process.pid), time.monotonic(), 0.0
        while worked < self.seconds and time.monotonic() < began + PATIENCE * self.seconds and process.poll() is None:
            time.sleep(EVERY)
            with suppress(psutil.Error):
                times = watched.cpu_times()
                worked = times.user + times.system
            before = self.seen.step
            self.seen.step = max(before, self._step())
            learns = self.seen.step > before or any(look.process == number for look in self.seen.looks)
            if learns and self.seen.step >= STARTS + SLOTS:  # it has come as far as training
                with suppress(psutil.Error):
                    size, open_files = watched.memory_info().rss, watched.num_fds()
                    self.seen.looks.append(Look(number, self.before + worked, size, open_files))
        self.before += worked

    def _step(self) -> int:
        """The last that was logged."""
        with suppress(OSError, ValueError, IndexError), (self.folder / self.name / "metrics.jsonl").open("rb") as file:
            file.seek(-min(20_000, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return int(json.loads(file.read().split(b"\n")[-2])["step"])
        return 0


def report(name: str, seen: Seen) -> int:
    """Print a line; the exit code that it asks for."""
    processes = seen.settled()
    if seen.problem or not processes:
        print(f"{name:9} {seen.problem or 'too few looks at a full replay to say anything: give it more --minutes'}")
        return 2
    (inside, p), (across, ordered), opened = in_a_process(processes), across_resumes(processes), files(processes)
    first, last = (np.median([look.size for look in looks]) / 2**20 for looks in (processes[0], processes[-1]))
    bad = (inside > BOUND and p < CHANCE) or (across > BOUND and ordered) or grows(opened)
    between = f"{'-':>8}" if np.isnan(across) else f"{across:+8.2f}"
    print(
        f"{name:9} {seen.step:9,} {seen.resumes:8} {sum(map(len, processes)):6} {first:8.0f} {last:8.0f} "
        f"{inside:+10.2f} {p:6.3f} {between} {opened[0][0]:6} {opened[-1][1]:5}  {'GROWS' if bad else 'holds'}"
    )
    return int(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of processor time, of each (default: 30)")
    parser.add_argument("--resumes", type=int, default=10, help="of the Atari run (default: 10)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms = [Arm(name, Path(folder), given.minutes, given.resumes if name == "resumed" else 0) for name in ARMS]
        threads = [threading.Thread(target=arm.carry_out) for arm in arms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{'run':9} {'steps':>9} {'resumes':>8} {'looks':>6} {'MiB':>8} {'in the end':>8} ", end="")
    print(f"{'%/h inside':>10} {'p':>6} {'resumes':>8} {'files':>6} {'end':>5}")
    return max(report(arm.name, arm.seen) for arm in arms)


if __name__ == "__main__":
    sys.exit(main())
