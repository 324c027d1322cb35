"""Probes of saved checkpoints, on the batches that were saved with the run."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from agents.checks import uses_convolutions
from agents.config import require
from agents.probing import subject_of
from agents.randomness import Generators
from agents.transitions import Spaces
from envs import describe
from experiments.config import TrainConfig
from experiments.evaluate_check import check_playing, playing_world, small_memory
from experiments.evaluate_config import EvaluateConfig
from experiments.machine import place
from experiments.probing import CURRENT, REFERENCE
from experiments.progress import Lines
from experiments.run_directory import all_checkpoints, find_checkpoint, fitting, load_checkpoint
from experiments.setup import agent_of, spaces_from
from plasticity_probes.catalogue import (
    HEAVIEST,
    HEAVY,
    OF_THE_NETWORK,
    PROBES,
    WITHOUT_BATCH,
    ProbeInput,
    RefitSettings,
)
from plasticity_probes.norms import snapshot
from plasticity_probes.schedule import Findings, chosen, undisturbed
from plasticity_probes.subject import Subject
from plasticity_probes.units import hidden_layers


def probe_checkpoints(settings: EvaluateConfig) -> dict:
    """{"run", "steps": [...], "values": {tag: [a value a checkpoint, None where it has none]}, "fresh": {tag: value}}.

    Raises ValueError where there is no checkpoint, or the run saved no batches.
    """
    names = [
        name for name in chosen(tuple(PROBES) if settings.probe == ("all",) else settings.probe) if name != "churn"
    ]
    allowed = "some of " + ", ".join(PROBES) + " (churn needs an update)"
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
            placement = place(settings.device, settings.threads, uses_convolutions(config.agent.network, spaces))
            with fitting(path):
                measuring = _Measuring(config, state, spaces, placement.device, settings, bars, lines, words)
            if not fresh:  # before anything else draws from the run's generators
                fresh = measuring.fresh(batches, [name for name in names if name in OF_THE_NETWORK])
            given = measuring.measure(batches, names, previous)
            previous = snapshot(measuring.subject.network)
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
    present = {"probes_reference": folder / REFERENCE, "probes": folder / CURRENT}
    try:
        batches = {group: torch.load(path, weights_only=True) for group, path in present.items() if path.is_file()}
    except Exception as error:  # torch raises many types for a damaged file
        raise ValueError(f"run = {str(folder.parent)!r}: its batches in {folder} cannot be read") from error
    allowed = "one that was trained with probes: this one saved no batch to measure on"
    require(bool(batches), "run", str(folder.parent), allowed)
    return batches


class _Measuring:
    """One checkpoint's agent, built without a world."""

    def __init__(
        self,
        config: TrainConfig,
        state: dict,
        spaces: Spaces,
        device: torch.device,
        settings: EvaluateConfig,
        bars: Progress,
        lines: Lines,
        words: str,
    ) -> None:
        generators = Generators(config.run.seed)  # the run's own: so that its initial weights can be drawn again
        measured = replace(config, agent=small_memory(config.agent, 1))
        self.agent = agent_of(measured, spaces, 1, generators, device)
        self.initial = snapshot(self.agent.network)
        self.agent.load_state_dict(state)
        self.subject: Subject = subject_of(self.agent, generators)
        self.settings, self.bars, self.device = settings, bars, device
        self.lines, self.words, self.doing = lines, words, ""
        self.samples = config.probe.heavy_samples

    def measure(self, batches: dict, names: list[str], previous: dict | None) -> dict[str, float]:
        """Values by tag."""
        findings = Findings()
        bar = self.bars.add_task("", total=len(names) * len(batches))
        for group, batch in batches.items():
            given = self._input(self.subject.network, batch, previous or self.initial, group == "probes_reference")
            for name in names:
                self.bars.update(bar, description=f"{name} ({group})")
                if name not in WITHOUT_BATCH or group == "probes" or "probes" not in batches:
                    self._run(findings, group, name, given)
                self.bars.advance(bar)
        self.bars.remove_task(bar)
        return {tag: float(value) for tag, value in findings.scalars.items()}

    def fresh(self, batches: dict, names: list[str]) -> dict[str, float]:
        """A freshly initialised network's values on the reference batch, by the tags of that batch."""
        if "probes_reference" not in batches:
            return {}
        findings = Findings()
        given = self._input(self.subject.fresh().eval(), batches["probes_reference"], self.initial)
        for name in names:
            self._run(findings, "probes_reference", name, given, "fresh network")
        return {tag: float(value) for tag, value in findings.scalars.items()}

    def _input(self, network: torch.nn.Module, batch: dict, previous: dict, reference: bool = True) -> ProbeInput:
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        layers = hidden_layers(network, batch["observations"][:2], self.subject.forward)
        bar = self.bars.add_task("  refit", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            self.bars.update(bar, completed=done, total=total, visible=done < total)
            self.lines.say(lambda: f"{self.words}: {self.doing}, {done:,} of {total:,}")

        refits = RefitSettings(self.settings.refit_targets, self.settings.refit_steps, progress)
        return ProbeInput(
            self.subject,
            network,
            batch,
            layers,
            self.samples,
            self.initial,
            previous,
            pictures=False,
            refits=refits,
            reference=reference,
            tell=lambda sentence: print(sentence, file=sys.stderr),
        )

    def _run(self, findings: Findings, group: str, name: str, given: ProbeInput, of: str = "") -> None:
        self.doing = f"{name} ({of or group})"
        self.lines.say(lambda: f"{self.words}: {self.doing}", now=name in (*HEAVY, *HEAVIEST))
        try:
            with undisturbed(given.network):
                findings.merge(group, PROBES[name](given))
        except (ValueError, RuntimeError) as error:
            print(f"probe {name} is left out: {error}", file=sys.stderr)


def table(result: dict) -> list[str]:
    """A row a tag, a column a checkpoint, and the fresh network's value in the last one."""
    width = max(len(tag) for tag in result["values"])
    head = f"{'':{width}}" + "".join(f"{step:>12,}" for step in result["steps"]) + f"{'fresh':>12}"
    rows = []
    for tag, values in result["values"].items():
        columns = [*values, result["fresh"].get(tag)]
        rows.append(f"{tag:{width}}" + "".join(f"{'' if value is None else f'{value:.4g}':>12}" for value in columns))
    return [head, *rows]
