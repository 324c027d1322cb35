"""What an intervention adds to the time of an update.

Two agents of the same shapes and settings, one without and one with the intervention, learn from random data in one
process; no world is needed. They alternate every few gradient steps, so that a busy machine slows both alike, and a
turn sums up many such stretches, so that what happens rarely has its share. Each turn has two new agents, for where
their tensors come to lie in memory alone makes up to two per cent. ``ratio`` is the median over turns of (with /
without); by processor time, one thread (wall-clock time on a GPU, whose work is waited for).

An update is the agent's `update()`: PPO's has ten epochs over a rollout (of 512 steps here, so that they alternate
often), DQN's is one gradient step on a minibatch of its replay. Times are per gradient step.

An intervention given by its name has its defaults. CBP's units are older than its maturity here, so that it replaces;
ReDo is shown at its period, and its average holds whole periods only where a turn is as long as one.

    OMP_NUM_THREADS=1 python -m benchmarks.intervention_cost [NAME ...] [--turns N] [--only ROW] [--device cuda]
"""

import argparse
import os
import platform
import time
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from agents import build_agent
from agents.config import AgentConfig
from agents.followed_step import WARM_UP
from agents.interventions import intervention_class
from agents.interventions.base import Intervention
from agents.randomness import Generators
from agents.schedule import in_steps
from agents.transitions import Spaces, Transitions
from experiments.machine import choose_device, device_argument, keep_memory
from experiments.presets import preset_config

ATARI = Spaces((4, 84, 84), np.dtype(np.uint8), "discrete", 6, frame_stack=4)


def ant(features: int) -> Spaces:
    """Ant's spaces with that many observed features."""
    bound = np.ones(8, np.float32)
    return Spaces((features,), np.dtype(np.float32), "continuous", 8, -bound, bound)


def rows() -> dict[str, tuple[AgentConfig, Spaces, int, int]]:
    """(settings, spaces, updates in a stretch, stretches in a turn) by name."""

    def config(algorithm: str, preset: str, env: str) -> AgentConfig:
        agent = preset_config(algorithm, preset, "atari" if "ALE" in env else "mujoco", env).agent
        return in_steps(agent, 1_000_000)

    def ppo(preset: str, minibatch: int) -> AgentConfig:
        changes = {"rollout_steps": 512, "num_minibatches": 512 // minibatch}
        return replace(config("ppo", preset, "Ant-v5"), **changes)

    dqn = config("dqn", "auto", "ALE/Breakout-v5")
    changes = {"buffer_size": 2_000, "learning_starts": 0, "replay_ratio": 1.0}
    changes |= {"network": replace(dqn.network, padding="valid")}  # what was measured so far
    return {
        "dqn-atari": (replace(dqn, **changes), ATARI, 5, 12),
        "ppo-ant-64": (ppo("cleanrl_continuous", 64), ant(105), 1, 8),
        "ppo-ant-256": (ppo("dohare24_ant", 128), ant(111), 1, 8),
    }


def transitions(spaces: Spaces, rng: np.random.Generator, actions: np.ndarray) -> Transitions:
    """One random step of one environment, which ends nothing."""
    nothing, shape = np.zeros(1, bool), (1, *spaces.observation_shape)
    if spaces.is_image:
        before, after = (rng.integers(0, 256, shape, np.uint8) for _ in range(2))
    else:
        before, after = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    return Transitions(before, actions, rng.standard_normal(1), nothing, nothing, nothing, after, None)


class TimedAgent:
    """An agent with data to learn from."""

    def __init__(
        self, config: AgentConfig, spaces: Spaces, interventions: list[Intervention], device: torch.device, **how: str
    ) -> None:
        keep_memory()  # as every run does
        self.agent = build_agent(config, spaces, 1, Generators(0), device, interventions=interventions, **how)
        self.cuda = device.type == "cuda"
        rng, observations = np.random.default_rng(0), np.zeros((1, *spaces.observation_shape), spaces.observation_dtype)
        if spaces.is_image:
            for _ in range(500):
                self.agent.observe(transitions(spaces, rng, self.agent.act(observations)))
        while not spaces.is_image and not self.agent.update_due():
            self.agent.observe(transitions(spaces, rng, self.agent.act(observations)))

    def update(self) -> None:
        """One update, PPO's from the same rollout each time."""
        if hasattr(self.agent, "rollout"):
            self.agent.rollout.row = len(self.agent.rollout.rewards)
        self.agent.update()

    @property
    def follows(self) -> bool:
        """Whether its gradient steps are followed sooner or later."""
        return self.agent.learner.executor.follows and not self.agent.learner.run_step.__self__.why_not

    def mature(self, turn: int, age: int = 20_000) -> None:
        """As if that many gradient steps had been made: CBP's units are all mature, at ages of their own, and what is
        left of a layer's share is some fraction of a unit, the same for layers of one size."""
        fractions = np.random.default_rng(turn).random(10_000)
        for member in self.agent.learner.interventions.members:
            if member.name == "cbp":
                state = member.state_dict()
                for layer in state["layers"].values():
                    layer["accumulated"] = fractions[len(layer["ages"])].item()
                    layer["ages"] = age + torch.arange(len(layer["ages"]))
                member.load_state_dict(state)

    def seconds(self, updates: int) -> float:
        """Time of a gradient step."""
        clock, before = time.perf_counter if self.cuda else time.process_time, self.agent.clock.gradient_steps
        begun = clock()
        for _ in range(updates):
            self.update()
        if self.cuda:
            torch.cuda.synchronize()
        return (clock() - begun) / (self.agent.clock.gradient_steps - before)


class Compared(NamedTuple):
    """Of several turns: seconds of a gradient step without and with, and the ratio in each turn, ascending."""

    without: float
    beside: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)


def compare(
    row: tuple[AgentConfig, Spaces, int, int], chosen: str, turns: int, device: torch.device, warmup: int = 2
) -> Compared:
    """The intervention `chosen` beside none in a row's settings; `warmup` stretches go before each turn."""
    config, spaces, updates, stretches = row
    pairs = []
    for turn in range(turns):
        plain = TimedAgent(config, spaces, [], device)
        subject = TimedAgent(config, spaces, [intervention_class(chosen)()], device)
        for each in (plain, subject):
            each.seconds(warmup * updates)
            while each.follows and each.agent.clock.gradient_steps <= 2 * WARM_UP:
                each.seconds(updates)
        subject.mature(turn)
        seconds = {plain: 0.0, subject: 0.0}
        for stretch in range(stretches):
            for each in (plain, subject) if stretch % 2 else (subject, plain):
                seconds[each] += each.seconds(updates) / stretches
        pairs.append((seconds[plain], seconds[subject]))
    without, beside = (median(times) for times in zip(*pairs, strict=True))
    return Compared(without, beside, sorted(after / before for before, after in pairs))


def measure(name: str, chosen: str, turns: int, device: torch.device) -> str:
    """The line of the table for the row `name` and one intervention."""
    found = compare(rows()[name], chosen, turns, device)
    spread = f"{found.ratios[0]:.3f} .. {found.ratios[-1]:.3f}"
    without, beside = found.without * 1e6, found.beside * 1e6
    return f"{name:12} {chosen:18} {without:10,.0f} {beside:10,.0f} {found.ratio:8.3f}   {spread}"


def main() -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", default=["cbp", "redo"], help="interventions (default: cbp redo)")
    parser.add_argument("--turns", type=int, default=15, help="turns, at least 5 (default 15)")
    parser.add_argument("--device", type=device_argument, default="cpu", metavar="{cpu,cuda,cuda:N}")
    parser.add_argument("--only", choices=list(rows()), help="one row alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(arguments.device)
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, 1 thread")
    print(f"{'':12} {'':18} {'without us':>10} {'with us':>10} {'ratio':>8}   least .. greatest")
    for name in rows():
        for chosen in arguments.names:
            if arguments.only in (None, name):
                print(measure(name, chosen, max(arguments.turns, 5), device), flush=True)


if __name__ == "__main__":
    main()
