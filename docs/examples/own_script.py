"""A plain DQN in one file, and the ten lines that add the probes to it, marked "probes".

    python docs/examples/own_script.py

CartPole whose two actions are swapped every `--period` steps, so that there is something to learn anew.
"""

import argparse
import copy
import random
import sys
from collections import deque
from functools import partial
from pathlib import Path

import gymnasium
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout; needless where the probes are installed

from plasticity_probes import Prober, Readout, Subject  # probes 1


def build_network() -> nn.Sequential:
    """CartPole's Q-network."""
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def batch_of(replay: deque, size: int, source: random.Random) -> dict[str, torch.Tensor]:
    """Transitions drawn with replacement."""
    columns = zip(*source.choices(replay, k=size), strict=True)
    names = ("observations", "actions", "rewards", "terminated", "next_observations")
    return {name: torch.tensor(column) for name, column in zip(names, columns, strict=True)}


def inputs_and_targets(batch: dict[str, torch.Tensor], target_network: nn.Module) -> tuple[torch.Tensor, ...]:
    """Observations, actions and TD targets."""
    with torch.no_grad():
        following = target_network(batch["next_observations"]).amax(1)
        targets = batch["rewards"] + 0.99 * (1 - batch["terminated"]) * following
    return batch["observations"], batch["actions"], targets


def predict(network: nn.Module, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Q-values of the actions taken."""
    return network(observations).gather(1, actions[:, None]).squeeze(1)


def td_losses(network: nn.Module, observations: torch.Tensor, actions: torch.Tensor, targets: torch.Tensor):
    """One Huber loss an example."""
    return F.smooth_l1_loss(predict(network, observations, actions), targets, reduction="none")


TAGS = {
    "dormant": "probes/dormant_fraction/tau=0.025/all",
    "reference": "probes_reference/dormant_fraction/tau=0.025/all",
    "rank": "probes/effective_rank/centred/2",
    "target mean": "probes/target/mean",
    "TD error std": "probes/td_error/std",
    "weights": "probes/weight_norm/total",
    "churn": "probes/churn/value",
}


def report(step: int, mean_return: float, values: dict[str, torch.Tensor]) -> None:
    """Print a few of the probes; TensorBoard's add_scalar for each is as short."""
    print(f"{step:7d}{mean_return:9.1f}" + "".join(f"{float(values[tag]):14.3g}" for tag in TAGS.values()))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--period", type=int, default=15_000)
    parser.add_argument("--every", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    source = random.Random(settings.seed)

    world = gymnasium.make("CartPole-v1")
    network = build_network()
    target_network = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    replay, returns, episode_return = deque(maxlen=10_000), deque([0.0], maxlen=20), 0.0

    readout = Readout("", lambda q: q.amax(1), "max_q", td_losses, lambda n, x, a, y: (predict(n, x, a), y))  # probes 2
    draw = partial(batch_of, replay, source=random.Random(settings.seed + 1))  # probes 3: a generator of their own
    prepare = partial(inputs_and_targets, target_network=target_network)  # probes 4
    options = {"optimizer": optimizer, "behaviour": lambda q: q, "fresh": build_network}  # probes 5
    prober = Prober(Subject(network, draw, (readout,), prepare, **options), ("default",), settings.every)  # probes 6

    print("   step   return" + "".join(name.rjust(14) for name in TAGS))
    observation, _ = world.reset(seed=settings.seed)
    for step in range(1, settings.steps + 1):
        if source.random() < max(0.05, 1 - step / 5_000):
            action = source.randrange(2)
        else:
            action = int(network(torch.from_numpy(observation)).argmax())
        swapped = (step - 1) // settings.period % 2 == 1
        following, reward, terminated, truncated, _ = world.step(1 - action if swapped else action)
        replay.append((observation.tolist(), action, float(reward), float(terminated), following.tolist()))
        observation, episode_return = following, episode_return + float(reward)
        if terminated or truncated:
            returns.append(episode_return)
            observation, episode_return = world.reset()[0], 0.0

        if prober.due(step):  # probes 7: before the update that is due
            found = prober.measure(step)  # probes 8
        if step >= 1_000 and step % 2 == 0:
            batch = inputs_and_targets(batch_of(replay, 64, source), target_network)
            optimizer.zero_grad()
            td_losses(network, *batch).mean().backward()
            optimizer.step()
            if churn := prober.after_update():  # probes 9: how far that update moved Q-values, once a probe
                report(step, sum(returns) / len(returns), found.scalars | churn.scalars)  # probes 10
        if step % 500 == 0:
            target_network.load_state_dict(network.state_dict())


if __name__ == "__main__":
    main()
