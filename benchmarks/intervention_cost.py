"""What an intervention adds to the time of a gradient step.

Two agents of the same shapes and settings, one without and one with the intervention, take turns in one process, so
that a busy machine slows both alike. Each turn is a number of gradient steps on random data; no world is needed.
``ratio`` is the median over turns of (with / without); by processor time, one thread (wall-clock time on a GPU, whose
work is waited for).

An intervention given by its name has its defaults. CBP's units are older than its maturity here, so that it replaces;
ReDo is shown at its period, and its average holds whole periods only where a turn is as long as one.

    OMP_NUM_THREADS=1 python -m benchmarks.intervention_cost [NAME ...] [--turns N] [--only ROW] [--device cuda]
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from agents import build_agent
from agents.config import AgentConfig
from agents.interventions import intervention_class
from agents.interventions.base import Intervention
from agents.randomness import Generators
from agents.transitions import Spaces, Transitions
from experiments.presets import preset_config

ATARI = Spaces((4, 84, 84), np.dtype(np.uint8), "discrete", 6, frame_stack=4)


def ant(features: int) -> Spaces:
    """Ant's spaces with that many observed features."""
    bound = np.ones(8, np.float32)
    return Spaces((features,), np.dtype(np.float32), "continuous", 8, -bound, bound)


def rows() -> dict[str, tuple[AgentConfig, Spaces, int]]:
    """(settings, spaces, gradient steps in a turn) by name."""

    def config(algorithm: str, preset: str, env: str) -> AgentConfig:
        return preset_config(algorithm, preset, "atari" if "ALE" in env else "mujoco", env, 1_000_000).agent

    changes = {"buffer_size": 2_000, "learning_starts": 0, "replay_ratio": 1.0}
    return {
        "dqn-atari": (replace(config("dqn", "auto", "ALE/Breakout-v5"), **changes), ATARI, 60),
        "ppo-ant-64": (config("ppo", "cleanrl_continuous", "Ant-v5"), ant(105), 320),
        "ppo-ant-256": (config("ppo", "dohare24_ant", "Ant-v5"), ant(111), 160),
    }


def transitions(spaces: Spaces, rng: np.random.Generator, actions: np.ndarray) -> Transitions:
    """One random step of one environment, which ends nothing."""
    nothing, shape = np.zeros(1, bool), (1, *spaces.observation_shape)
    if spaces.is_image:
        before, after = (rng.integers(0, 256, shape, np.uint8) for _ in range(2))
    else:
        before, after = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    return Transitions(before, actions, rng.standard_normal(1), nothing, nothing, nothing, after, None)


class Subject:
    """An agent with data to learn from; `step` makes one gradient step."""

    def __init__(
        self, config: AgentConfig, spaces: Spaces, interventions: list[Intervention], device: torch.device
    ) -> None:
        self.agent = build_agent(config, spaces, 1, Generators(0), device, interventions=interventions)
        self.cuda = device.type == "cuda"
        rng, observations = np.random.default_rng(0), np.zeros((1, *spaces.observation_shape), spaces.observation_dtype)
        if spaces.is_image:
            for _ in range(500):
                self.agent.observe(transitions(spaces, rng, self.agent.act(observations)))
            self.step: Callable[[], object] = self.agent.update
            return
        while not self.agent.update_due():
            self.agent.observe(transitions(spaces, rng, self.agent.act(observations)))
        rollout = self.agent.rollout
        kept = ("observations", "actions", "log_probs", "rewards", "values")
        data = {name: getattr(rollout, name).flatten(0, 1) for name in kept}
        data |= {"advantages": data["rewards"], "returns": data.pop("rewards")}
        batch = {name: tensor[: self.agent.batch_size // config.num_minibatches] for name, tensor in data.items()}
        self.step = lambda: self.agent._gradient_step(batch)

    def mature(self, age: int = 20_000) -> None:
        """As if that many gradient steps had been made: CBP's units are all mature, at ages of their own."""
        for member in self.agent.interventions.members:
            if member.name == "cbp":
                state = member.state_dict()
                for layer in state["layers"].values():
                    layer["ages"] = age + torch.arange(len(layer["ages"]))
                member.load_state_dict({**state, "oldest": age + max(len(layer["ages"]), 1_000)})

    def seconds(self, steps: int) -> float:
        """Time of a gradient step."""
        clock = time.perf_counter if self.cuda else time.process_time
        begun = clock()
        for _ in range(steps):
            self.step()
        if self.cuda:
            torch.cuda.synchronize()
        return (clock() - begun) / steps


def measure(name: str, chosen: str, turns: int, device: torch.device) -> str:
    """The line of the table for the row `name` and one intervention."""
    config, spaces, steps = rows()[name]
    plain = Subject(config, spaces, [], device)
    subject = Subject(config, spaces, [intervention_class(chosen)()], device)
    for each in (plain, subject):
        each.seconds(max(steps // 4, 10))
    subject.mature()
    pairs = []
    for turn in range(turns):
        order = (plain, subject) if turn % 2 else (subject, plain)
        seconds = {each: each.seconds(steps) for each in order}
        pairs.append((seconds[plain], seconds[subject]))
    without, beside = (median(times) * 1e6 for times in zip(*pairs, strict=True))
    ratios = sorted(after / before for before, after in pairs)
    spread = f"{ratios[0]:.3f} .. {ratios[-1]:.3f}"
    return f"{name:12} {chosen:18} {without:10,.0f} {beside:10,.0f} {median(ratios):8.3f}   {spread}"


def main() -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", default=["cbp", "redo"], help="interventions (default: cbp redo)")
    parser.add_argument("--turns", type=int, default=7, help="turns of each agent, at least 5 (default 7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=list(rows()), help="one row alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, 1 thread")
    print(f"{'':12} {'':18} {'without us':>10} {'with us':>10} {'ratio':>8}   least .. greatest")
    for name in rows():
        for chosen in arguments.names:
            if arguments.only in (None, name):
                print(measure(name, chosen, max(arguments.turns, 5), torch.device(arguments.device)), flush=True)


if __name__ == "__main__":
    main()
