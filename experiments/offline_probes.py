"""Probes of saved checkpoints, on the batches that were saved with the run."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from agents.config import require
from agents.probing import subject_of
from agents.randomness import Generators
from agents.transitions import Spaces
from envs import describe
from experiments.config import TrainConfig
from experiments.evaluate_check import check_playing, playing_world, small_memory
from experiments.evaluate_config import EvaluateConfig
from experiments.machine import place
from experiments.probing import FILES
from experiments.progress import Lines
from experiments.run_directory import all_checkpoints, find_checkpoint, fitting, load_checkpoint
from experiments.setup import agent_of, spaces_from
from experiments.sizes import products_of_a_batch
from plasticity_probes.norms import snapshot
from plasticity_probes.probe import Findings, Probe, RefitSettings
from plasticity_probes.prober import REFERENCE, Prober
from plasticity_probes.probes import chosen, probes


def probe_checkpoints(settings: EvaluateConfig) -> dict:
    """{"run", "steps": [...], "values": {tag: [a value a checkpoint, None where it has none]}, "fresh": {tag: value}}.

    Raises ValueError where there is no checkpoint, or the run saved no batches.
    """
    measurable = tuple(name for name, probe in probes().items() if probe.of_network)
    names = measurable if settings.probe == ("all",) else chosen(settings.probe)
    names = tuple(name for name in names if name in measurable)
    after = " and ".join(name for name in probes() if name not in measurable)
    allowed = f"some of {', '.join(measurable)} ({after} needs an update)"
    require(bool(names), "probe", " ".join(settings.probe), allowed)
    paths = all_checkpoints(settings.run) if settings.checkpoint == "each" else [find_checkpoint(settings.run)]
    batches = load_batches(paths[-1].parent.parent / "probes")
    console, lines = Console(stderr=True), Lines()
    steps, found, fresh, previous = [], [], {}, None
    with Progress(console=console, transient=True, disable=not lines.watched) as bars:
        whole = bars.add_task("checkpoints", total=len(paths))
        for number, path in enumerate(paths, start=1):
            config, step, state = load_checkpoint(path)
            check_playing(config, settings)
            words = f"checkpoint {number}/{len(paths)} (step {step:,})"
            lines.say(lambda words=words: f"{words}: {len(names)} probes", now=True)
            spaces = spaces_from(describe(playing_world(config.world, settings)[0]))
            placement = place(settings.device, settings.threads, products_of_a_batch(config, spaces))
            shown = _Shown(bars, lines, words, len(names) * len(batches))
            with fitting(path):
                prober = _prober(config, state, spaces, placement.device, settings, names, shown)
            there = {group: _on(batch, placement.device) for group, batch in batches.items()}
            if not fresh and REFERENCE in there:  # before anything else draws from the run's generators
                fresh = _numbers(prober.measure_fresh(there[REFERENCE], REFERENCE))
            given = _numbers(prober.measure_on(there, previous or prober.initial))
            shown.done()
            previous = snapshot(prober.subject.network)
            steps.append(step)
            found.append(given)
            bars.advance(whole)
    tags = list(dict.fromkeys(tag for values in found for tag in values))
    return {
        "run": str(settings.run),
        "placement": placement.words,
        "steps": steps,
        "values": {tag: [values.get(tag) for values in found] for tag in tags},
        "fresh": fresh,
    }


def load_batches(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The saved batches by the group of their tags. ValueError where the run saved none."""
    present = {group: folder / name for group, name in FILES.items() if (folder / name).is_file()}
    try:
        batches = {group: torch.load(path, weights_only=True) for group, path in present.items()}
    except Exception as error:  # torch raises many types for a damaged file
        raise ValueError(f"run = {str(folder.parent)!r}: its batches in {folder} cannot be read") from error
    allowed = "one that was trained with probes: this one saved no batch to measure on"
    require(bool(batches), "run", str(folder.parent), allowed)
    return batches


class _Shown:
    """What is being measured of one checkpoint: a bar in a terminal, lines elsewhere."""

    def __init__(self, bars: Progress, lines: Lines, words: str, total: int) -> None:
        self.bars, self.lines, self.words, self.doing = bars, lines, words, ""
        self.bar, self.refit = bars.add_task("", total=total), bars.add_task("  refit", total=None, visible=False)

    def starting(self, probe: Probe, group: str) -> None:
        """A probe begins."""
        self.doing = f"{probe.name} ({group})"
        self.lines.say(lambda: f"{self.words}: {self.doing}", now=probe.cost != "light")
        self.bars.update(self.bar, description=self.doing, advance=1)

    def refitting(self, done: int, total: int) -> None:
        """So many gradient steps of a refit are done."""
        self.bars.update(self.refit, completed=done, total=total, visible=done < total)
        self.lines.say(lambda: f"{self.words}: {self.doing}, {done:,} of {total:,}")

    def done(self) -> None:
        """Everything has been measured."""
        self.bars.remove_task(self.bar)
        self.bars.remove_task(self.refit)


def _prober(
    config: TrainConfig,
    state: dict,
    spaces: Spaces,
    device: torch.device,
    settings: EvaluateConfig,
    names: tuple[str, ...],
    shown: _Shown,
) -> Prober:
    """Of one checkpoint's agent, which is built without a world."""
    generators = Generators(config.run.seed)  # the run's own: so that its initial weights can be drawn again
    agent = agent_of(replace(config, agent=small_memory(config.agent, 1)), spaces, 1, generators, device)
    initial = snapshot(agent.network)
    agent.learner.load_state_dict(state)
    return Prober(
        subject_of(agent, generators),
        names,
        heavy_samples=config.probe.heavy_samples,
        tell=lambda sentence: print(sentence, file=sys.stderr),
        refits=RefitSettings(settings.refit_targets, settings.refit_steps, shown.refitting),
        initial=initial,
        starting=shown.starting,
    )


def _on(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _numbers(findings: Findings) -> dict[str, float]:
    return {tag: float(value) for tag, value in findings.scalars.items()}


def table(result: dict) -> list[str]:
    """A row a tag, a column a checkpoint, and the fresh network's value in the last one."""
    width = max(len(tag) for tag in result["values"])
    head = f"{'':{width}}" + "".join(f"{step:>12,}" for step in result["steps"]) + f"{'fresh':>12}"
    rows = []
    for tag, values in result["values"].items():
        columns = [*values, result["fresh"].get(tag)]
        rows.append(f"{tag:{width}}" + "".join(f"{'' if value is None else f'{value:.4g}':>12}" for value in columns))
    return [head, *rows]
