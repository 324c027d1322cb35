"""From the command line to settings. Answers a bad flag without importing torch."""

import sys
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

from agents.config import Flat
from agents.interventions import COMBINATIONS, NAMES, expanded, intervention_class
from envs.config import family_of
from experiments.config import AGENTS, TrainConfig, load_config
from experiments.evaluate_config import EvaluateConfig
from experiments.presets import PRESETS, preset_config

if TYPE_CHECKING:
    from agents.interventions.base import Intervention

PRESET_HELP = "Defaults of a published protocol: {names}; auto: the one usual for the world."
PATHS = ("--config", "--runs-dir", "--dataset")
"""Flags whose values are paths."""
USAGE = """usage: train.py {dqn,c51,ppo} --env ID [--preset NAME] [OPTIONS]
       train.py --config runs/NAME/config.json [OPTIONS]

Worlds: ALE/<Game>-v5 (Atari; several with commas between them are played in turn), Ant-v5 and the other MuJoCo ids,
        FrictionAnt-v0, ImageMDP-v0, any other gymnasium id. --task.period N changes the world every N steps.
Presets: %s

Interventions: --interventions NAME..., their parameters as flags (--interventions redo --redo.tau 0.025):
         %s

train.py dqn --help lists every option with its default for the world and preset beside it."""


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_train(arguments: list[str], program: str = "train.py") -> TrainConfig:
    """Settings of `train.py arguments`. Leaves with code 2 and a sentence where they are wrong.

    --config and --preset decide the defaults, so they are looked for first; every other flag then overrides them.
    """
    known = "\n         ".join(f"{agent}: {', '.join(names)}" for agent, names in PRESETS.items())
    if not arguments or (arguments[0] in ("-h", "--help")):
        print(USAGE % (known, "\n         ".join(textwrap.wrap(", ".join([*NAMES, *COMBINATIONS]), 100))))
        raise SystemExit(0 if arguments else 2)
    algorithm = None
    if not arguments[0].startswith("-"):
        algorithm, *arguments = arguments
        if algorithm not in AGENTS:
            fail(f"algorithm = {algorithm!r}: must be one of {', '.join(AGENTS)}")
    try:
        refuse_empty_paths(arguments, PATHS)
        names, arguments = listed_interventions(arguments)
        default, rest = _defaults(algorithm, arguments)
        if names is not None:
            default = replace(default, interventions=_made(names, default.interventions))
        refuse_unlisted(rest, default)
        refuse_two_moments(rest)
        return _parse(default, rest, f"{program} {default.agent_name}")
    except ValueError as error:
        fail(str(error))


def _parse(default: TrainConfig, rest: list[str], program: str) -> TrainConfig:
    """`default` with what the flags `rest` say, those of its interventions among them."""
    known = ", ".join([*NAMES, *COMBINATIONS])
    text = (
        f"Train {default.agent_name} and write a run directory. "
        + PRESET_HELP.format(names=", ".join(PRESETS[default.agent_name]))
        + f" --interventions NAME...: {known}; the parameters of those listed are flags (--redo.tau), in this help too."
        + " --config FILE replays the settings of an earlier run."
    )
    kind = TrainConfig[type(default.agent)]
    if not default.interventions:
        return tyro.cli(kind, default=default, args=rest, prog=program, description=text)
    own = {one.name: one for one in default.interventions}
    fields = [("settings", Annotated[kind, Flat]), *((name, type(one)) for name, one in own.items())]
    run = make_dataclass("Run", fields)
    parsed = tyro.cli(run, default=run(default, **own), args=rest, prog=program, description=text)
    chosen = tuple(getattr(parsed, one.name) for one in default.interventions)
    return replace(parsed.settings, interventions=chosen)


def listed_interventions(arguments: list[str]) -> tuple[list[str] | None, list[str]]:
    """(the names after --interventions, or None without that flag; the other arguments).

    ValueError: a name is unknown, or none is given ("none" is).
    """
    names, rest, taking = None, [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag == "--interventions":
            names, taking = (names or []) + ([value] if equals else []), True
        elif taking and not argument.startswith("-"):
            names.append(argument)
        else:
            taking = False
            rest.append(argument)
    if names is None:
        return None, rest
    names = [name.replace("-", "_") for name in names]
    if names == ["none"]:
        return [], rest
    if not names:
        raise ValueError("interventions: name some, or none: " + ", ".join([*NAMES, *COMBINATIONS]))
    expanded(names)
    return names, rest


def _made(names: list[str], known: Iterable["Intervention"]) -> tuple["Intervention", ...]:
    """Those named, as they are in `known` (a file's) or else with their defaults; those of a combination are the
    combination's."""
    settled = {one.name: one for one in known if one.name in names}
    return tuple(
        settled.get(name) or intervention_class(name)(**parameters) for name, parameters in expanded(names).items()
    )


def refuse_unlisted(arguments: list[str], config: TrainConfig) -> None:
    """Raise ValueError for a parameter of an intervention that is not listed."""
    listed = {intervention.name for intervention in config.interventions}
    for argument in arguments:
        name = argument.removeprefix("--").partition(".")[0].replace("-", "_")
        if argument.startswith("--") and "." in argument and name in NAMES and name not in listed:
            flag = argument.partition("=")[0]
            raise ValueError(f"{flag}: its intervention is not listed; add {name} to --interventions")


def refuse_two_moments(arguments: list[str]) -> None:
    """Raise ValueError where --surgery.moments and an intervention's own flag say different things. Over what a file, a
    combination or a default says, --surgery.moments wins."""
    told: dict[str, str] = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag.endswith(".moments"):
            told[flag] = value if equals else following
    everywhere = told.pop("--surgery.moments", "own")
    for flag, value in told.items():
        if everywhere not in ("own", value):
            raise ValueError(f"surgery.moments = {everywhere!r}: must be own, or {value!r} as {flag}")


def refuse_empty_paths(arguments: list[str], flags: Iterable[str]) -> None:
    """Raise ValueError for one of `flags` with nothing after it: as a path that would be the current directory."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag in flags and not (value if equals else following or "-").strip():
            raise ValueError(
                f"{flag.removeprefix('--').replace('-', '_')} = '': must be a path; the current directory is ."
            )


def _defaults(algorithm: str | None, arguments: list[str]) -> tuple[TrainConfig, list[str]]:
    """(the settings that the other flags override, the other flags)."""
    first = ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--config", "--preset"):
        first.add_argument(flag)
    chosen, rest = first.parse_known_args(arguments)
    if chosen.config is not None:
        default = load_config(Path(chosen.config))
        if chosen.preset is not None:
            raise ValueError(f"preset = {chosen.preset!r}: must be left out beside --config, which says everything")
        if algorithm not in (None, default.agent_name):
            raise ValueError(f"algorithm = {algorithm!r}: must be {default.agent_name}, as in {chosen.config}")
        # its name is taken by the run it came from; a name given beside it still counts
        return replace(default, run=replace(default.run, name="")), rest
    if algorithm is None:
        raise ValueError(f"algorithm: name one of {', '.join(AGENTS)} first, or give --config FILE")
    peek = ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--env", default="")
    peek.add_argument("--steps", default="1000000")
    peek.add_argument("--task.period", dest="period", default="0")
    peek.add_argument("--task.first", dest="first")
    peek.add_argument("--task.change", dest="change")
    seen, _ = peek.parse_known_args(rest)
    if not seen.env and not {"-h", "--help"} & set(rest):
        raise ValueError("env: name the world, such as --env ALE/Breakout-v5, Ant-v5 or CartPole-v1")
    env = seen.env or "ALE/Breakout-v5"
    steps, period = _whole(seen.steps, 1_000_000), _whole(seen.period, 0)
    if not period and (seen.first or seen.change):
        period = steps  # one task alone is learned as it would be among others
    return preset_config(algorithm, chosen.preset or "auto", family_of(env), env, steps, period), rest


def _whole(text: str, otherwise: int) -> int:
    """The number that `text` is; what is none is refused by the full parse that follows."""
    try:
        return int(text)
    except ValueError:
        return otherwise


def parse_evaluate(arguments: list[str]) -> EvaluateConfig:
    """Settings of `evaluate.py arguments`; leaves with code 2 and a sentence where they are wrong."""
    try:
        refuse_empty_paths(arguments, ("--video",))
        if "" in arguments:
            raise ValueError("run = '': must be a run directory or a checkpoint file")
        return tyro.cli(EvaluateConfig, args=arguments, prog="evaluate.py")
    except ValueError as error:
        fail(str(error))
