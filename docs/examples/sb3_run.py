"""Stable-Baselines3's PPO on CartPole-v1 with the probes: python docs/examples/sb3_run.py"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout; needless where the probes are installed

from plasticity_probes.sb3 import PlasticityCallback

RETURN, DORMANT = "rollout/ep_rew_mean", "dormant_fraction/tau=0.025/all"
RANK = "effective_rank/centred/mlp_extractor.value_net.2"
COLUMNS = {
    "return": RETURN,
    "target mean": "probes/target/mean/critic",
    "churn": "probes/churn/policy_kl",
    "dormant": f"probes/{DORMANT}",
    "on reference": f"probes_reference/{DORMANT}",
    "if fresh": f"probes_fresh/{DORMANT}",
    "critic's rank": f"probes/{RANK}",
    "rank on ref.": f"probes_reference/{RANK}",
    "rank if fresh": f"probes_fresh/{RANK}",
}


def table(path: Path) -> list[str]:
    """The rows of SB3's progress.csv that hold probes, with the latest return before each."""
    lines = ["step".rjust(7) + "".join(name.rjust(14) for name in COLUMNS)]
    latest_return = ""
    for row in csv.DictReader(path.open()):
        latest_return = row.get(RETURN) or latest_return
        if row.get(f"probes/{DORMANT}"):
            values = [({**row, RETURN: latest_return}).get(tag) for tag in COLUMNS.values()]
            numbers = "".join(f"{float(value):14.3g}" if value else " " * 14 for value in values)
            lines.append(row["time/total_timesteps"].rjust(7) + numbers)
    return lines


def main() -> None:
    """Train, then print what SB3's logger wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--log", type=Path, default=None)
    settings = parser.parse_args()
    folder = settings.log or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)

    network = {"net_arch": [256, 256], "activation_fn": torch.nn.ReLU}
    model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=network, seed=1, device="cpu")
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    model.learn(settings.steps, callback=PlasticityCallback(every=settings.every, samples=settings.samples))
    print("\n".join(table(folder / "progress.csv")))


if __name__ == "__main__":
    main()
