"""What train.py's --help shows. Imports no torch."""

from collections.abc import Iterable, Sequence

from agents.interventions import COMBINATIONS, NAMES, parameters_of
from agents.kinds import KINDS
from envs.config import backends_of, changes_of, foreign_fields, more_of_backends, more_of_changes
from envs.families import FAMILIES, family_of
from experiments.flags import Flag
from experiments.help import Entry, HelpSection, entry_of, rendered, sections_of, wrapped
from experiments.presets import PRESETS
from experiments.probe_names import about_the_probes

PARTS = ("run", "world", "agent", "probe", "checkpoint", "fork", "surgery")
"""The order of the parts of the settings there; interventions follow."""


def overview(program: str = "train.py") -> str:
    """What `train.py` without arguments says."""
    presets = "\n".join(wrapped(f"{agent}: {', '.join(names)}", 4) for agent, names in PRESETS.items())
    worlds = ", ".join(family.worlds for family in FAMILIES) + ". --task.period N changes the world every N steps."
    parts = (
        f"usage: {program} {{{','.join(KINDS)}}} --env ID [--preset NAME] [--interventions NAME ...] [FLAGS]\n"
        f"       {program} --config runs/NAME/config.json [FLAGS]\n"
        f"       {program} --resume runs/NAME",
        "Worlds\n" + wrapped(worlds, 4),
        wrapped("Presets, of which the world's usual one is taken without --preset") + f"\n{presets}",
        wrapped("Interventions, whose parameters are flags (--interventions redo --redo.tau 0.025)")
        + "\n"
        + wrapped(", ".join([*NAMES, *COMBINATIONS]), 4),
        wrapped(f"{program} dqn --env ID --help lists every flag with its default for that world."),
    )
    return "\n\n".join(parts)


def hidden(flag: Flag, algorithm: str, env: str) -> bool:
    """Whether `flag` means nothing to this agent or in this world, so that it would be refused."""
    part, name = flag.path[0], flag.path[-1]
    if part == "agent" and name in KINDS[algorithm].unused:
        return True
    if part == "world" and env:
        return flag.path[1] in foreign_fields(env)
    if part == "agent" and env:
        family = family_of(env)
        return (name == "life_loss_discount" and not family.lives) or (
            name == "normalize_observations" and family.observes == "pixels"
        )
    return False


def of_training(
    program: str, algorithm: str, env: str, world: str, flags: Sequence[Flag], listed: Iterable[str]
) -> str:
    """The whole help of `program`: `flags` with their defaults, those of the interventions that are `listed` at the
    end. `env`: the world that was named, or nothing; `world`: whose defaults they are."""
    known = [*NAMES, *COMBINATIONS]
    narrowed = {"--backend": backends_of(world), "--task.change": ("auto", *changes_of(world))} if env else {}
    endings = {"--backend": more_of_backends(), "--task.change": more_of_changes()}
    endings |= {"--probes": f"{about_the_probes()}."}
    presets = PRESETS[algorithm]
    first = [
        Entry("-h, --help", "Show this text."),
        Entry(
            "--preset NAME",
            f"A published protocol's defaults: {', '.join(presets)}; auto: the world's usual one. (default: auto)",
        ),
        Entry("--config FILE", "The settings of an earlier run (its config.json), in place of a preset."),
        Entry(
            "--resume RUN",
            "Go on with the run in this directory from its newest checkpoint, with more --steps where they are given. "
            "The command that began it, with the same --name, does the same.",
        ),
        Entry(
            "--interventions NAME ...",
            f"What is meant to keep plasticity, in the order of its calls: "
            f"{', '.join(known)}; or none. Parameters of those listed are flags (--redo.tau), in this help too.",
        ),
    ]
    usage = [
        f"{program} --env ID [--preset NAME] [--interventions NAME ...] [FLAGS]",
        f"{program} --config FILE [FLAGS]",
        f"{program} --resume RUN [--steps N]",
    ]
    whose = world if env else f"{world}; with --env, those of that world, and its flags alone"
    introduction = f"Train {algorithm} and write a run directory. Defaults are those for {whose}."
    sections = [HelpSection("What to begin with.", first)]
    for part in PARTS:
        own = [flag for flag in flags if flag.path[0] == part]
        sections += sections_of(own, narrowed, endings)
    for name in listed:
        sections.append(_of_an_intervention(name, flags))
    return rendered(usage, introduction, sections)


def _of_an_intervention(name: str, flags: Iterable[Flag]) -> HelpSection:
    texts = {field.name: field.text for field in parameters_of(name)}
    own = [flag for flag in flags if flag.path[:2] == ("interventions", name)]
    return HelpSection(f"The intervention {name}.", [entry_of(flag, texts[flag.path[-1]]) for flag in own])
