"""Whole runs on a GPU: steps per second, and where their time goes. A part of `gpu.py`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.learners import Ours
from benchmarks.throughput import settings_of
from experiments.config import TrainConfig

VALUE = "--learning-starts 1000 --epsilon.start 0.01 --epsilon.end 0.01 --epsilon.over constant"
BREAKOUT, CONSTANT = "--env ALE/Breakout-v5", "--learning-rate.over constant"
UPDATE = "the update"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


@dataclass(frozen=True)
class Row:
    """A whole run, and the speed that it is to reach."""

    title: str
    flags: str
    wanted: int
    """Steps per second."""
    world: int = 0
    """Steps per second of the world alone, on 16 cores beside an H200."""
    tiny: str = ""
    """What makes it small enough for a dry run."""


PPO_TINY, VALUE_TINY = "--rollout-steps 4 --width 16", "--learning-starts 40 --buffer-size 400 --width 16"
ROWS = {
    "ppo-breakout-8": Row(
        "PPO Breakout, 8 envs", f"ppo {BREAKOUT} {CONSTANT}", 6_000, 7_965, f"{PPO_TINY} --num-minibatches 4"
    ),
    "ppo-breakout-64": Row(
        "PPO Breakout, 64 envs",
        f"ppo {BREAKOUT} {CONSTANT} --num-envs 64",
        13_000,
        16_141,
        f"{PPO_TINY} --num-envs 16 --num-minibatches 4",
    ),
    "dqn-breakout-1": Row(
        "DQN Breakout, 1 env", f"dqn {BREAKOUT} --padding valid --buffer-size 200000 {VALUE}", 1_800, tiny=VALUE_TINY
    ),
    "dqn-breakout-8": Row(
        "DQN Breakout, 8 envs",
        f"dqn {BREAKOUT} --padding valid --buffer-size 200000 {VALUE} --num-envs 8",
        5_000,
        7_965,
        VALUE_TINY,
    ),
    "ppo-ant-8": Row(
        "PPO Ant-v5, 8 envs",
        f"ppo --env Ant-v5 {CONSTANT} --num-envs 8",
        8_000,
        13_590,
        "--rollout-steps 32 --num-minibatches 2 --update-epochs 2",
    ),
    "ppo-ant-64": Row(
        "PPO Ant-v5, 64 envs (64x256)",
        f"ppo --env Ant-v5 {CONSTANT} --num-envs 64 --rollout-steps 256",
        20_000,
        29_950,
        "--rollout-steps 8 --num-minibatches 2 --update-epochs 2",
    ),
}
PARTS = ("world", "act", "observe", "update")


class Bench:
    """Where it runs, and how long its windows are."""

    def __init__(self, device: torch.device, dry: bool) -> None:
        self.device, self.dry, self.gpu = device, dry, device.type == "cuda"
        self.seconds = 0.3 if dry else 5.0
        self.updates = 5 if dry else 200

    def sized(self, flags: str, tiny: str) -> str:
        """`flags`, with those of `tiny` in their place in a dry run."""
        if not self.dry:
            return flags
        small = {words.split()[0] for words in tiny.split("--") if words.strip()}
        kept = [words.strip() for words in flags.split("--") if words.split()[0] not in small]
        return f"{' --'.join(kept)} {tiny}"

    def settings(self, flags: str, precision: str = "fp32", execution: str = "auto") -> TrainConfig:
        """Of a run here; a CPU has no TF32, and its dry run takes true float32 in its place."""
        config = settings_of(flags)
        precision = precision if self.gpu or precision != "tf32" else "fp32"
        chosen = {"device": str(self.device), "precision": precision}
        if self.gpu:
            chosen["execution"] = execution
        return replace(config, run=replace(config.run, **chosen))

    def wait(self) -> None:
        """Until the device has done all of its work."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """By wall clock, what it set going included."""
        self.wait()
        begun = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begun


class Watched(Ours):
    """A run whose parts are timed as the host sees them."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._time(self.world, "step", "world")
        for part in PARTS[1:]:
            self._time(self.agent, part, part)

    def _time(self, owner: object, method: str, part: str) -> None:
        original = getattr(owner, method)

        def timed(*given: Any) -> Any:
            begun = time.perf_counter()
            try:
                return original(*given)
            finally:
                self.spent[part] += time.perf_counter() - begun

        setattr(owner, method, timed)

    def speed(self, bench: Bench) -> tuple[float, dict[str, float]]:
        """(steps per second, share of each part) over about the bench's seconds, whole updates included."""
        bench.wait()
        self.spent, steps, begun = dict.fromkeys(PARTS, 0.0), 0, time.perf_counter()
        while time.perf_counter() - begun < bench.seconds:
            steps += self.run(1)
        bench.wait()
        passed = time.perf_counter() - begun
        return steps / passed, {part: spent / passed for part, spent in self.spent.items()}

    def profiled(self, bench: Bench) -> dict[str, float]:
        """Of the next update: milliseconds by the wall clock and of its kernels (on a CPU: of its operations), kernels
        a gradient step, and how often the host waits within it."""
        found, inner, clock = {}, self.agent.update, self.agent.clock

        def update() -> Any:
            before, activities = clock.gradient_steps, [ProfilerActivity.CPU]
            with profile(activities=activities + [ProfilerActivity.CUDA] * bench.gpu) as profiler:
                with record_function(UPDATE):
                    metrics = inner()
                bench.wait()
            found.update(self._counted(profiler, bench.gpu, clock.gradient_steps - before))
            return metrics

        self.agent.update = update
        self.run(1)
        times = []

        def alone() -> Any:
            metrics = None

            def work() -> None:
                nonlocal metrics
                metrics = inner()

            times.append(bench.seconds_of(work) * 1e3)
            return metrics

        self.agent.update = alone
        for _ in range(3):
            self.run(1)
        self.agent.update = inner
        return {"update_ms": sorted(times)[len(times) // 2]} | found

    @staticmethod
    def _counted(profiler: profile, gpu: bool, gradient_steps: int) -> dict[str, float]:
        events = profiler.events()
        if gpu:
            marks = (UPDATE, "Optimizer.", "ProfilerStep", "Torch-Compiled")  # spans over kernels, not kernels
            own = [event for event in events if event.device_type == DeviceType.CUDA]
            own = [event for event in own if not event.name.startswith(marks)]
            kernels = sum(event.time_range.elapsed_us() for event in own) / 1e3
        else:
            own = [event for event in events if event.name.startswith("aten::")]
            kernels = sum(event.self_cpu_time_total for event in own) / 1e3
        span = next(
            event.time_range for event in events if event.name == UPDATE and event.device_type == DeviceType.CPU
        )
        waited = [event.time_range.start for event in events if event.name in WAITS]
        waits = sum(span.start <= start < span.end for start in waited)  # those after it are the bench's
        return {"kernels_ms": kernels, "kernels": len(own) / max(1, gradient_steps), "waits": waits}


def rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Of every row, in TF32 and in true float32."""
    print(
        f"\n{'':30} {'':5} {'steps/s':>9} {'wanted':>8} {'world':>8} | {'update':>8} {'kernels':>8} {'ratio':>6} "
        f"{'a step':>6} {'waits':>5} | " + " ".join(f"{part:>7}" for part in (*PARTS, "rest"))
    )
    for name, row in ROWS.items():
        for precision in ("tf32", "fp32"):
            run = Watched(bench.settings(bench.sized(row.flags, row.tiny), precision))
            for _ in range(2 if bench.dry else 6):  # until graphs are captured
                run.run(1)
            speed, shares = run.speed(bench)
            found = {"row": name, "precision": precision, "speed": speed, "wanted": row.wanted, "shares": shares}
            found |= run.profiled(bench)
            run.close()
            rest = 1 - sum(shares.values())
            ratio = found["update_ms"] / found["kernels_ms"]
            print(
                f"{row.title:30} {precision:5} {speed:9,.0f} {row.wanted:8,} {row.world or '-':>8} | "
                f"{found['update_ms']:6.2f}ms {found['kernels_ms']:6.2f}ms {ratio:5.2f}x {found['kernels']:6.0f} "
                f"{found['waits']:5} | " + " ".join(f"{share:7.1%}" for share in (*shares.values(), rest)),
                flush=True,
            )
            yield found
