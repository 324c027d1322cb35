"""A run's settings in TensorBoard: a table among the texts, and the HPARAMS tab."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from agents.kinds import KINDS
from experiments.config import TrainConfig
from experiments.flags import flags_of
from experiments.naming import beside_the_preset, in_a_word, in_the_name

RESULTS = (
    "charts/recent_return",
    "tasks/mean_return",
    "tasks/last_tenth_return",
    "charts/SPS",
    "probes_reference/dormant_fraction/tau=0.025/all",
)
"""Tags whose last values the HPARAMS tab shows beside the settings; what a run does not have stays empty there."""


def write_settings(writer: SummaryWriter, config: TrainConfig) -> None:
    """Write both, into the run's one event file: `SummaryWriter.add_hparams` would open another in a folder below."""
    writer.add_text("config", table(config), 0)
    experiment, _, _ = hparams(_of_all_agents(config), dict.fromkeys(RESULTS, 0.0))
    _, start, _ = hparams(settings(config), {})
    writer.file_writer.add_summary(experiment)
    writer.file_writer.add_summary(start)


def write_end(writer: SummaryWriter) -> None:
    """The run is over."""
    writer.file_writer.add_summary(hparams({}, {})[2])


def table(config: TrainConfig) -> str:
    """Every setting with its value, in Markdown; what is not the preset's is bold."""
    changed = beside_the_preset(config)
    head = [f"{config.agent_name} in {config.world.env}, preset {config.run.preset or 'unknown'}", ""]
    rows = ["| setting | value |", "|---|---|"]
    for name, value in settings(config).items():
        bold = "**" if name in changed or (name == "interventions" and value) else ""
        rows.append(f"| {bold}{name}{bold} | {bold}{_cell(value)}{bold} |")
    return "\n".join([*head, *rows])


def settings(config: TrainConfig) -> dict[str, bool | str | float | int]:
    """By flag without its dashes, what TensorBoard takes as the value of a hyperparameter."""
    listed = " ".join(in_the_name(one) for one in config.interventions)
    named = {"agent": config.agent_name, "env": config.world.env, "preset": config.run.preset, "interventions": listed}
    flags = {flag.name.removeprefix("--"): flag.default for flag in flags_of(config)}
    own = {
        f"{one.name}.{name}".replace("_", "-"): value
        for one in config.interventions
        for name, value in one.parameters().items()
    }
    return {name: _simple(value) for name, value in (named | flags | own).items()}


def _of_all_agents(config: TrainConfig) -> dict[str, Any]:
    """TensorBoard asks one run, any, which settings there are: so each names those of all agents."""
    others = [settings(TrainConfig(agent=kind.settings())) for name, kind in KINDS.items() if name != config.agent_name]
    # its own last, so that their types are the ones that count
    return {name: value for other in others for name, value in other.items()} | settings(config)


def _simple(value: object) -> bool | str | float | int:
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, (bool, str, float, int)) else in_a_word(value)


def _cell(value: object) -> str:
    """On one line, and no bar that would end the cell."""
    return in_a_word(value) if isinstance(value, float) else str(value).replace("|", "&#124;") or "-"
