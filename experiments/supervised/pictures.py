"""Spectra and tangent kernels before and after, of the runs of `target_mean`, as one picture.

python -m experiments.supervised.pictures runs/target_mean/claim/trials docs/results/target_mean_pictures.png
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch

from agents.config import require
from experiments.cli import fail
from experiments.json_file import read_json
from experiments.results.figures import COLOURS
from experiments.supervised.training import PICTURES
from plasticity_probes.gradients import cosine_matrix

WHEN = ("before", "after")
SHOWN = 64
"""Examples of a kernel that are drawn."""


def found_in(folder: Path) -> dict[str, list[dict[str, torch.Tensor]]]:
    """By arm, what its runs have kept. ValueError: there is nothing."""
    arms: dict[str, list[dict[str, torch.Tensor]]] = {}
    for path in sorted(folder.glob(f"*/{PICTURES}")):
        settings = read_json("config", path.parent / "config.json")
        names = "+".join(one["name"] for one in settings["interventions"]) or "none"
        more = [f"mean {settings['target_mean']:g}", "HL-Gauss" * (settings["loss"] == "hl_gauss")]
        more += ["bias at mean" * settings["bias_at_mean"], names * (names != "none")]
        arms.setdefault(", ".join(filter(None, more)), []).append(torch.load(path, weights_only=True))
    require(bool(arms), "runs", str(folder), "a folder with runs of the problem target_mean that are finished")
    return arms


def drawn(arms: dict[str, list[dict[str, torch.Tensor]]], picture: Path) -> None:
    """Spectra (each arm a line, the geometric mean over its runs) above, a part of the kernels of each arm's first run
    below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = max(4, len(arms))
    figure = plt.figure(figsize=(2.7 * columns, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.4))
    kinds = [(when, kind) for kind in ("spectrum", "spectrum_centred") for when in WHEN]
    for axis, (when, kind) in zip(above.subplots(1, 4, sharey=True), kinds, strict=True):
        for colour, (arm, runs) in zip(COLOURS, arms.items(), strict=False):
            values = torch.stack([run[f"{when}/{kind}"].double() for run in runs]).clamp(min=1e-6).log().mean(0).exp()
            axis.plot(np.arange(1, len(values) + 1), values, color=colour, label=f"{arm} (n = {len(runs)})")
        axis.set(xscale="log", yscale="log", xlabel="singular value number")
        axis.set_title(f"{when}, {'centred' if 'centred' in kind else 'raw'}", fontsize=10)
        axis.grid(alpha=0.25)
    above.axes[0].set_ylim(bottom=1e-3)  # when all is drawn, so that none is cut off above
    above.axes[0].set_ylabel("singular value of the last features")
    above.legend(*above.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    for row, when in zip(below.subplots(2, len(arms), squeeze=False), WHEN, strict=True):
        for axis, (arm, runs) in zip(row, arms.items(), strict=True):
            part = cosine_matrix(runs[0][f"{when}/kernel"])[:SHOWN, :SHOWN]
            shown = axis.imshow(part, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
            axis.set(xticks=(), yticks=())
            axis.set_title(textwrap.fill(f"{when}: {arm}", 30), fontsize=8)
    below.colorbar(shown, ax=below.axes, shrink=0.7, label="cosine of two examples' gradients (eNTK)")
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    """Read, draw, print the kernels' figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder of finished runs of the problem target_mean")
    parser.add_argument("picture", type=Path, help="the .png to draw")
    given = parser.parse_args(arguments)
    try:
        arms = found_in(given.runs)
        drawn(arms, given.picture)
    except (ValueError, OSError) as error:
        fail(str(error))
    for arm, runs in arms.items():
        told = {}
        for when in WHEN:
            matrices = [cosine_matrix(run[f"{when}/kernel"]) for run in runs]
            apart = ~torch.eye(len(matrices[0]), dtype=torch.bool)
            told[when] = round(float(torch.stack([matrix[apart].mean() for matrix in matrices]).mean()), 3)
        print(f"{arm}: mean cosine of two examples' gradients {json.dumps(told)}, n = {len(runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
