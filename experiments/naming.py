"""What tells a run from others: its preset, what differs from it, in words and in its name. Imports no torch."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.config import SurgeryConfig
from envs.families import family_of
from experiments.config import NOT_IN_THE_NAME, TrainConfig, to_dict
from experiments.flags import as_written, flags_of

if TYPE_CHECKING:
    from agents.interventions.base import Intervention

SILENT = ("env", "steps", "device", "threads", "execution", "dataset_sha256")
"""Settings that count for the hash and are not spelled out as beside_the_preset."""
SAFE = "-._=+,"
"""What a name may hold beside letters and digits: nothing that a shell or a path would take for something else."""
MOST = 90
"""Characters of a name for settings, and for interventions; what does not fit is counted."""


def made_up_name(config: TrainConfig) -> str:
    """Agent, world, what differs from the preset (the loss, other settings, interventions), seed and hash.

    dqn_Pong-v5_hl_gauss_learning-rate=0.001_redo.tau=0.025+layer_norm_s1_ab12cd
    """
    world = config.world.env.replace("ALE/", "")
    changed = [_assigned(name, value) for name, value in beside_the_preset(config).items()]
    preset, usual = _presets(config)
    parts = [config.agent_name, world, *([preset] if preset != usual else []), *_fitting(changed, "_")]
    if config.interventions:
        parts.append(_interventions(config.interventions))
    return safe("_".join([*parts, f"s{config.run.seed}", digest(config)]))


def safe(name: str) -> str:
    """`name` with an underscore for whatever is no letter, no digit and not `SAFE`."""
    return "".join(
        character if character in SAFE or (character.isascii() and character.isalnum()) else "_" for character in name
    )


def digest(config: TrainConfig) -> str:
    """Six digits of the SHA-256 of every setting that shapes the result but the seed: seeds of one setting share it."""
    settings = to_dict(config)
    for key in NOT_IN_THE_NAME:
        del settings["run"][key]
    del settings["probe"], settings["checkpoint"]
    checksum = settings["world"].pop("dataset_sha256")
    settings["world"]["dataset"] = checksum or settings["world"]["dataset"]  # what a file holds, not where it lies
    if config.world.world_segment is None:
        del settings["world"]["world_segment"]
    if config.run.execution == "auto":
        del settings["run"]["execution"]
    if config.surgery == SurgeryConfig():
        del settings["surgery"]
    if not config.interventions:
        del settings["interventions"]
    fork = settings.pop("fork")
    if config.fork.run:  # which run it is of its seed does not count: seeds of one setting share the digest
        settings["fork"] = [Path(fork["run"]).name, fork["keep"]]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]


def beside_the_preset(config: TrainConfig) -> dict[str, Any]:
    """Every setting of agent, world and run that is not the preset's and shapes the result, by its flag without the
    dashes: {"learning-rate": 0.001, "adam.eps": 1e-8}; the loss first."""
    usual = {flag.path: flag.default for flag in flags_of(_preset(config))}
    found = {
        flag.name.removeprefix("--"): flag.default
        for flag in flags_of(config)
        if flag.path[0] not in ("probe", "checkpoint")
        and not (len(flag.path) == 2 and flag.path[1] in (*SILENT, *NOT_IN_THE_NAME))
        and flag.default != usual[flag.path]
    }
    return {name: found[name] for name in sorted(found, key=lambda name: name not in ("loss", "value-loss"))}


def _presets(config: TrainConfig) -> tuple[str, str]:
    """(the preset of `config`, the one that is usual for its world); of settings without one, the usual one."""
    from experiments.presets import PRESETS, usual_preset

    usual = usual_preset(config.agent_name, family_of(config.world.env).name, config.world.env)
    return (config.run.preset if config.run.preset in PRESETS[config.agent_name] else usual), usual


def _preset(config: TrainConfig) -> TrainConfig:
    """What the preset of `config` says in this world, and in a run as long."""
    from experiments.presets import steady, unchecked

    preset = unchecked(config.agent_name, _presets(config)[0], config.world.env)
    preset = replace(preset, world=preset.world.family.settled(preset.world, ()))
    return replace(preset, agent=steady(replace(preset, world=config.world, run=config.run)).agent)


def preset_in_words(config: TrainConfig) -> str:
    """The preset and what differs from it, for people: "preset classic, but width 16, adam.eps 1e-08"."""
    changed = ", ".join(f"{name} {in_a_word(value)}" for name, value in beside_the_preset(config).items())
    return f"preset {config.run.preset or 'unknown'}" + (f", but {changed}" if changed else "")


def _assigned(name: str, value: object) -> str:
    if name == "loss":
        return in_a_word(value)
    if isinstance(value, bool):
        part, dot, last = name.rpartition(".")
        return name if value else f"{part}{dot}no-{last}"
    return f"{name}={in_a_word(Path(value) if name in ('dataset', 'fork') else value)}"


def in_a_word(value: object) -> str:
    """A setting's value as a name or a table holds it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(in_a_word, value)) or "none"
    if isinstance(value, float):
        return as_written(value)
    return "none" if value is None else Path(value).stem if isinstance(value, Path) else str(value)


def _interventions(interventions: Sequence["Intervention"]) -> str:
    """All of them: with all that is to be said of each, or with their strengths, or by their names, whichever is the
    first that fits; where not even the names do, how many more there are."""
    for said in (in_the_name, partial(in_the_name, strength_alone=True)):
        parts = "+".join(map(said, interventions))
        if len(parts) <= MOST:
            return parts
    return "+".join(_fitting([one.name for one in interventions], "+"))


def in_the_name(intervention: "Intervention", strength_alone: bool = False) -> str:
    """Its name, its strength (a first parameter that is a number) and, unless `strength_alone`, whatever else is not
    its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(intervention)}
    parameters = dict(sorted(intervention.parameters().items(), key=lambda item: item[0] == "only"))  # its own first
    strength = next(iter(parameters))
    shown = [
        _assigned(name.replace("_", "-"), value)
        for name, value in parameters.items()
        if (value != defaults[name] and not (strength_alone and name != strength))
        or (name == strength and isinstance(value, float))
    ]
    return intervention.name + ("." + ",".join(shown) if shown else "")


def _fitting(parts: list[str], between: str) -> list[str]:
    """As many of `parts` as fit into `MOST` characters, and how many more there are."""
    kept: list[str] = []
    for part in parts:
        if len(between.join([*kept, part])) > MOST:
            return [*kept, f"{len(parts) - len(kept)}more"]
        kept.append(part)
    return kept
