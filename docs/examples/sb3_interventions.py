"""Stable-Baselines3's PPO on CartPole-v1, plain and with interventions: python docs/examples/sb3_interventions.py"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout

from agents.interventions import L2Init, ReDo
from agents.interventions.sb3 import InterventionCallback
from plasticity_probes.sb3 import PlasticityCallback

RETURN, DORMANT = "rollout/ep_rew_mean", "probes/dormant_fraction/tau=0.025/all"
REPLACED = "surgery/redo/replaced"


def train(chosen: list, settings: argparse.Namespace) -> list[tuple[int, float, float, int]]:
    """At each probe: steps, the latest return, the share of dormant units, units replaced so far."""
    folder = tempfile.mkdtemp()
    network = {"net_arch": [256, 256], "activation_fn": torch.nn.ReLU}
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=settings.rollout, policy_kwargs=network, seed=1, device="cpu")
    model.set_logger(configure(folder, ["csv"]))
    probes = PlasticityCallback(every=settings.every, samples=settings.samples)
    interventions = InterventionCallback(chosen)
    model.learn(settings.steps, callback=[probes, interventions])
    rows, latest, replaced = [], 0.0, 0
    for row in csv.DictReader((Path(folder) / "progress.csv").open()):
        latest = float(row[RETURN] or latest)
        replaced += int(row.get(REPLACED) or 0)
        if row.get(DORMANT):
            rows.append((int(row["time/total_timesteps"]), latest, float(row[DORMANT]), replaced))
    return rows


def main() -> None:
    """Train twice from one seed, and print both runs side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rollout", type=int, default=2048)
    settings = parser.parse_args()
    torch.set_num_threads(1)

    plain = train([], settings)
    treated = train([ReDo(tau=0.025, when="every 100 gradient steps", samples=256), L2Init(rate=1e-4)], settings)
    print("step".rjust(7) + "".join(name.rjust(10) for name in ("return", "dormant", "return", "dormant", "replaced")))
    for (step, *without), (_, *given) in zip(plain, treated, strict=True):
        print(f"{step:7}" + "".join(f"{number:10.3g}" for number in (*without[:2], *given)))


if __name__ == "__main__":
    main()
