"""What becomes of a replaced unit's first updates, by what is done to Adam's moments.

    python -m experiments.studies.overshoot docs/results/overshoot.png

One weight tensor under a steady gradient: after 10,000 steps Adam moves every weight by exactly the learning rate. Then
one unit is replaced. With its moments set to zero under the tensor's old step count, the first moment recovers in about
ten steps and the second in a thousand, so that for (.9, .999) the unit moves 3.16 times the learning rate at once and
6.57 times at step 12. Equal betas keep both in step. Every number comes from torch's Adam and the surgeon, but those
of AdamGnT at the end, which come from its formula.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import nn

from agents.initializers import initialize
from agents.interventions import Surgery
from plasticity_probes import hidden_layers

BETAS = ((0.9, 0.999), (0.9, 0.99), (0.99, 0.99))
MOMENTS = ("zero", "mean", "local", "keep")
BEFORE, AFTER, LEARNING_RATE = 10_000, 60, 1e-3


def updates(betas: tuple[float, float], moments: str) -> list[float]:
    """|update| / learning rate of an incoming weight of the replaced unit, at each step after the replacement."""
    generator = torch.Generator().manual_seed(0)
    layers = [initialize(nn.Linear(3, 4), "lecun_uniform", generator) for _ in range(2)]
    network = nn.Sequential(layers[0], nn.ReLU(), initialize(nn.Linear(4, 1), "lecun_uniform", generator))
    adam = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=betas, eps=1e-12, fused=True)
    surgery = Surgery(
        {"online": network}, adam, hidden_layers(network, torch.randn(2, 3, generator=generator)), generator
    )

    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        adam.step()
        surgery.after_optimizer_step()

    for _ in range(BEFORE):
        step()
    surgery.replace({"0": torch.tensor([True, False, False, False])}, moments=moments)
    weight, sizes = network[0].weight, []
    with torch.no_grad():
        weight.zero_()  # so that a step's size is not lost in the weight's own digits
    for _ in range(AFTER):
        before = weight[0, 0].item()
        step()
        sizes.append(abs(weight[0, 0].item() - before) / LEARNING_RATE)
    return sizes


def adam_gnt(betas: tuple[float, float], step: int) -> float:
    """|update| / learning rate of Dohare24's AdamGnT under a steady gradient of 1, at an element's `step`-th step.

    lr (1 - beta2^t) m / (sqrt(v) + eps), eps left out: in their bias correction the result of sqrt(1 - beta2^t) / (1 -
    beta1^t) is discarded, and 1 - beta2^t stays.
    """
    first = second = 0.0
    for _ in range(step):
        first, second = (beta * moment + 1 - beta for beta, moment in zip(betas, (first, second), strict=True))
    return (1 - betas[1] ** step) * first / math.sqrt(second)


def main(arguments: list[str]) -> int:
    """Draw, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, help="the .png to draw")
    given = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(BETAS), figsize=(12, 3.6), sharey=True)
    print(f"{'betas':>12}  {'moments':>8}  {'first':>6}  {'peak':>6}  at step")
    for axis, betas in zip(axes, BETAS, strict=True):
        for moments, style in zip(MOMENTS, ("-", "-", "--", ":"), strict=True):
            sizes = updates(betas, moments)
            peak = max(range(AFTER), key=sizes.__getitem__)
            print(f"{betas!s:>12}  {moments:>8}  {sizes[0]:6.2f}  {sizes[peak]:6.2f}  {peak + 1:7d}")
            axis.plot(range(1, AFTER + 1), sizes, style, label=moments, linewidth=1.8)
        axis.set(title=f"betas {betas[0]}, {betas[1]}", xlabel="gradient steps after the replacement")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for step in (1, 100, 1000):
        print(f"AdamGnT of Dohare et al. 2024, betas {BETAS[0]}: {adam_gnt(BETAS[0], step):.3f} at step {step:,}")
    axes[0].set_ylabel("|update| / learning rate")
    axes[-1].legend(title="--surgery.moments", frameon=False)
    figure.suptitle("A replaced unit's updates under a steady gradient of 1", fontsize=11)
    figure.tight_layout()
    figure.savefig(given.figure, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
