"""The log's lines on Weights & Biases, row by row. The package is asked for only with --wandb."""

import importlib.util
import os
import secrets
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig, to_dict


def wandb_is_installed() -> bool:
    """Whether `import wandb` gives the package; a folder of that name, such as its own runs make, is none."""
    found = importlib.util.find_spec("wandb")
    return found is not None and found.origin is not None


class WandbError(ValueError):
    """wandb cannot begin: no account, no network, nowhere to write."""


class WandbLog:
    """One wandb run beside a run directory.

    It is told each line of the log itself: wandb's own copying of TensorBoard files (sync_tensorboard) is not used,
    since that watches a directory in which wandb writes. Its files go into `directory/wandb`, where TensorBoard finds
    nothing to read, unless WANDB_DIR says otherwise. Rows are lines, a row's step is the run's.

    `id`: of the wandb run that goes on; without one it is a new one. Rows that it has already are not sent again.

    Raises WandbError.
    """

    def __init__(self, config: TrainConfig, directory: Path, id: str | None = None) -> None:
        import wandb

        self.id = id or secrets.token_hex(4)
        try:
            self.run = wandb.init(
                id=self.id,
                resume="allow",
                project=config.run.wandb_project,
                name=directory.name,
                config=to_dict(config),
                dir=os.environ.get("WANDB_DIR") or str(directory),
            )
        except Exception as error:  # its errors have no common class, and come from the network too
            allowed = "off where wandb cannot begin; WANDB_MODE=offline needs neither account nor network"
            raise WandbError(f"wandb = True: must be {allowed} ({_first_line(error)})") from error
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def line(self, step: int, values: dict[str, float]) -> None:
        """A row of its own; `step` never falls."""
        if step >= self.run.step:
            self.run.log({"step": step, **values}, step=step)

    def finish(self, code: int, summary: dict[str, Any]) -> None:
        """The run is over; the summary has every tag's last value, and `summary` beside them."""
        self.run.summary.update(summary)
        self.run.finish(exit_code=code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
