"""From the command line to settings. Answers a bad flag without importing torch."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agents.config import require, require_float32, shown
from agents.interventions import COMBINATIONS, NAMES, expanded, intervention_class, parameters_of
from agents.kinds import KINDS
from envs.families import canonical, usual_family
from experiments.config import TrainConfig, load_config
from experiments.earlier import refuse_other_interventions
from experiments.evaluate_config import EvaluateConfig
from experiments.flags import Flag, Given, flags_of, is_flag, read, rebuilt, value_of
from experiments.foreign_flags import EVALUATE, about_agent, about_flag
from experiments.help import rendered, sections_of
from experiments.places import refuse_empty_paths
from experiments.presets import PRESETS, preset_config, steady
from experiments.seeds import SUFFIX, runs_in
from experiments.store import checkpoint_of
from experiments.train_help import hidden, of_training, overview

if TYPE_CHECKING:
    from agents.interventions.base import Intervention

PATHS = ("--config", "--resume", "--fork", "--runs-dir", "--dataset")
"""Flags whose values are paths."""
USUAL_WORLD = "ALE/Breakout-v5"
"""Whose defaults a help shows where no world is named."""
PRESET = Flag("--preset", ("preset",), str, "auto")
CONFIG = Flag("--config", ("config",), Path, None)
RESUME = Flag("--resume", ("resume",), Path, None)
HELP = Flag("--help", ("help",), bool, False)
DECIDING = (PRESET, CONFIG, RESUME, HELP)
"""Flags that are no setting: they decide the defaults of all others."""


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_train(arguments: list[str], program: str = "train.py") -> TrainConfig:
    """Settings of `train.py arguments`. Leaves with code 2 and a sentence where they are wrong.

    --config and --preset decide the defaults, so they are looked for first; every other flag then overrides them.
    """
    if not arguments or (arguments[0] in ("-h", "--help", "help")):
        print(overview(program))
        raise SystemExit(0 if arguments else 2)
    algorithm, env = None, ""
    if not is_flag(arguments[0]):
        algorithm, *arguments = arguments
        if algorithm not in KINDS:
            hint = about_agent(algorithm, list(KINDS))
            fail(f"algorithm = {algorithm!r}: must be one of {', '.join(KINDS)}{hint}")
    try:
        refuse_empty_paths(arguments, PATHS)
        line = TrainLine(algorithm, arguments)
        env = line.env
        if line.wants_help:
            print(_help(line, f"{program} {line.algorithm}"))
            raise SystemExit(0)
        config, notes = line.config()
        require_float32(config)
    except ValueError as error:
        fail(what_is_wrong(env, error))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return config


def what_is_wrong(env: str, error: ValueError) -> str:
    """What is wrong with the name of the world, if anything, since other sentences speak of a world that there is not;
    else what `error` says."""
    from envs.registry import check_known

    try:
        if env and "," not in env:
            check_known(env)
    except ValueError as unknown:
        return str(unknown)
    return str(error)


class TrainLine:
    """The words of a command line, and the settings that they make."""

    def __init__(self, algorithm: str | None, arguments: list[str]) -> None:
        """ValueError: the agent is not named, or a file or an intervention that is named is not there."""
        self.names, words = listed_interventions(arguments)
        self.words = ["--help" if word == "-h" else word for word in words]
        self.wants_help = "--help" in self.words
        self.file, self.resumed = _word_after(self.words, "--config"), _resumed(self.words)
        self.runs: list[str] = []  # of a record of several seeds
        if self.resumed is not None:
            self.runs = [] if self.resumed.is_dir() else list(runs_in(self.resumed))
            self.file = str((self.resumed.parent / self.runs[0] if self.runs else self.resumed) / "config.json")
        forked = _word_after(self.words, "--fork")
        self.forked = None if forked is None else checkpoint_of("fork", forked)
        if self.file is None and self.forked is not None:
            self.file = str(self.forked.parent.parent / "config.json")
        self.loaded = None if self.file is None else _loaded(self.file, algorithm)
        self.algorithm = algorithm if self.loaded is None else self.loaded.agent_name
        if self.algorithm is None:
            for flag in {"--config", "--resume", "--fork"} & set(self.words):
                raise ValueError(f"{flag}: must be followed by a path")
            named = [word for word in self.words if word in KINDS]
            where = f" first: train.py {named[0]} ..." if named else " first, or give --config FILE"
            raise ValueError(f"algorithm: name one of {', '.join(KINDS)}{where}")
        self.env = canonical(_word_after(self.words, "--env") or ("" if self.loaded is None else self.loaded.world.env))

    @property
    def beside(self) -> str:
        """The flag that says everything."""
        return "--resume" if self.resumed else "--config" if _word_after(self.words, "--config") else "--fork"

    @property
    def listed(self) -> dict[str, dict[str, Any]]:
        """By intervention, its parameters that are not the class's defaults."""
        known = () if self.loaded is None else self.loaded.interventions
        if self.names is None:
            return {one.name: one.parameters() for one in known}
        settled = {one.name: one.parameters() for one in known if one.name in self.names}
        return {name: settled.get(name, parameters) for name, parameters in expanded(self.names).items()}

    def flags(self, config: TrainConfig) -> list[Flag]:
        """Every flag there is beside `config`, whose values are the defaults."""
        found = flags_of(config)
        for name, parameters in self.listed.items():
            for field in parameters_of(name):
                path = ("interventions", name, field.name)
                written = f"--{name}.{field.name}".replace("_", "-")
                found.append(Flag(written, path, field.hint, parameters.get(field.name, field.default)))
        return found

    def defaults(self, given: Mapping[str, Sequence[str]], flags: Iterable[Flag]) -> TrainConfig:
        """The settings that the other flags override: those of --config, or of the preset, whose schedules are those
        that it has in the world and the run that are given."""
        said = {flag: value_of(flag, given[flag.name]) for flag in flags if flag.name in given}
        preset = said.get(PRESET)
        if self.loaded is not None:
            if preset is not None:
                raise ValueError(f"preset = {preset!r}: must be left out beside {self.beside}, which says everything")
            if self.resumed is not None:
                name, count = self.resumed.name.removesuffix(SUFFIX), max(1, len(self.runs))
                here = {"runs_dir": self.resumed.parent, "name": name, "num_seeds": count}
                return replace(self.loaded, run=replace(self.loaded.run, **here))
            # its name is taken by the run it came from; a name given beside it still counts
            return replace(self.loaded, run=replace(self.loaded.run, name=""))
        if not self.env and not self.wants_help:
            raise ValueError("env: name the world, such as --env ALE/Breakout-v5, Ant-v5 or CartPole-v1")
        env = self.env or USUAL_WORLD
        usual = preset_config(self.algorithm, preset or "auto", usual_family(env).name, env)
        around = {flag.path: value for flag, value in said.items() if flag.path[0] in ("world", "run")}
        return replace(usual, agent=steady(rebuilt(usual, around)).agent)

    def config(self) -> tuple[TrainConfig, list[str]]:
        """(the settings, what should be said although it is allowed). ValueError: a sentence about what is wrong."""
        config, own, notes = self.without_interventions()
        if self.resumed is not None and self.resumed.is_dir():
            refuse_other_interventions(self.resumed, self.loaded, self.listed)
        return replace(config, interventions=made(self.listed, own)), notes

    def without_interventions(self) -> tuple[TrainConfig, dict[tuple[str, str], Any], list[str]]:
        """(the settings but for the interventions, whose classes bring torch; the parameters that these are given, by
        name and parameter; what should be said although it is allowed). ValueError: a sentence about what is wrong."""
        blank = self.loaded or TrainConfig(agent=KINDS[self.algorithm].settings())
        flags = [*self.flags(blank), *DECIDING]
        refuse_unlisted(self.words, self.listed)
        given = read(self.words, flags, partial(self._unknown, flags))
        _refuse_stray(given, self.env)
        refuse_two_moments(given.words)
        default = self.defaults(given.words, flags)
        values = {
            flag.path: value_of(flag, given.words[flag.name])
            for flag in flags
            if flag.name in given.words and flag not in DECIDING
        }
        own = {path[1:]: value for path, value in values.items() if path[0] == "interventions"}
        config = rebuilt(default, {path: value for path, value in values.items() if path[0] != "interventions"})
        if self.resumed is not None:
            count = default.run.num_seeds
            require(config.run.num_seeds == count, "num_seeds", config.run.num_seeds, f"{count}, as in {self.resumed}")
        said = {path[1] for path in values if path[0] == "world"}
        config = replace(config, world=config.world.family.settled(config.world, said))
        if self.forked is not None:
            several, alone = config.run.num_seeds, "1 beside --fork: a fork has the seed of the run that it is of"
            require(several == 1, "num_seeds", several, alone)
            config = replace(config, fork=replace(config.fork, run=str(self.forked)))
        return config, own, given.notes

    def _unknown(self, flags: list[Flag], written: str) -> NoReturn:
        visible = [flag.name for flag in flags if not hidden(flag, self.algorithm, self.env)]
        elsewhere: dict[str, list[str]] = {}
        for agent, kind in KINDS.items():
            for flag in flags_of(TrainConfig(agent=kind.settings())) if agent != self.algorithm else ():
                elsewhere.setdefault(flag.name, []).append(agent)
        whose = {name: " and ".join(agents) for name, agents in elsewhere.items()}
        raise ValueError(about_flag(written, self.algorithm, [*visible, "--interventions"], whose))


def _word_after(words: Sequence[str], flag: str) -> str | None:
    """The last value of `flag` among `words`, before it is known which other flags there are."""
    found = None
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        name, equals, value = word.partition("=")
        if name == flag and (equals or not is_flag(following)):
            found = value if equals else following
    return found


def _resumed(words: Sequence[str]) -> Path | None:
    """The run directory, or the record of several seeds, after --resume. ValueError: there is none, or something else
    says which run it is."""
    named = _word_after(words, "--resume")
    if named is None:
        return None
    for flag in ("--config", "--name", "--runs-dir"):
        if _word_after(words, flag) is not None:
            raise ValueError(f"resume = {shown(named)}: must be left out beside {flag}, or stand without it")
    directory = Path(os.path.abspath(named)) if Path(named).name in ("", "..") else Path(named)
    allowed = f"the directory of a run, such as runs/NAME, or the record of several, runs/NAME{SUFFIX}"
    record = directory.name.endswith(SUFFIX) and os.path.isfile(directory)
    require(record or os.path.isdir(directory), "resume", named, allowed)
    return directory


def _loaded(file: str, algorithm: str | None) -> TrainConfig:
    """The settings in `file`. ValueError: it holds none, or another agent's."""
    config = load_config(Path(file))
    if algorithm not in (None, config.agent_name):
        raise ValueError(f"algorithm = {algorithm!r}: must be {config.agent_name}, as in {file}")
    preset, known = config.run.preset, PRESETS[config.agent_name]
    require(preset in ("", *known), "run.preset", preset, f"one of {', '.join(known)}")
    return config


def _refuse_stray(given: Given, env: str) -> None:
    """Raise ValueError for a word that belongs to no flag."""
    for word, before in given.stray:
        hint = "" if env or before else f"; did you mean --env {word}?"
        after = f" after {before}, which takes no more words" if before else ""
        raise ValueError(f"{word!r}: belongs to no flag{after}{hint}")


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
    names = [part.replace("-", "_") for name in names for part in name.split(",") if part]
    if names == ["none"]:
        return [], rest
    if "none" in names:
        raise ValueError(f"interventions = {' '.join(names)!r}: must be none alone, or others without it")
    if not names:
        raise ValueError("interventions: name some, or none: " + ", ".join([*NAMES, *COMBINATIONS]))
    expanded(names)
    return names, rest


def made(listed: Mapping[str, Mapping[str, Any]], own: Mapping[tuple[str, str], Any]) -> tuple["Intervention", ...]:
    """Those `listed`, with the parameters there and, over them, their `own` flags."""
    said: dict[str, dict[str, Any]] = {name: dict(parameters) for name, parameters in listed.items()}
    for (name, parameter), value in own.items():
        said[name][parameter] = value
    return tuple(intervention_class(name)(**parameters) for name, parameters in said.items())


def refuse_unlisted(arguments: list[str], listed: Iterable[str]) -> None:
    """Raise ValueError for a parameter of an intervention that is not listed."""
    for argument in arguments:
        name = argument.removeprefix("--").partition(".")[0].replace("-", "_")
        if argument.startswith("--") and "." in argument and name in NAMES and name not in listed:
            flag = argument.partition("=")[0]
            raise ValueError(f"{flag}: its intervention is not listed; add {name} to --interventions")


def refuse_two_moments(given: Mapping[str, list[str]]) -> None:
    """Raise ValueError where --surgery.moments and an intervention's own flag say different things. Over what a file, a
    combination or a default says, --surgery.moments wins."""
    moments = {flag: words[0] for flag, words in given.items() if flag.endswith(".moments")}
    everywhere = moments.pop("--surgery.moments", "own")
    for flag, value in moments.items():
        if everywhere not in ("own", value):
            raise ValueError(f"surgery.moments = {everywhere!r}: must be own, or {value!r} as {flag}")


def _help(line: TrainLine, program: str) -> str:
    """Every flag that means something to the agent in the world, with its default there."""
    flags = [*line.flags(line.loaded or TrainConfig(agent=KINDS[line.algorithm].settings())), PRESET]
    words = {flag.name: [word] for flag in flags if (word := _word_after(line.words, flag.name))}
    around = [flag for flag in flags if flag.path[0] in ("world", "run", "preset")]
    config = line.loaded or line.defaults(words, around)
    shown = [flag for flag in line.flags(config) if not hidden(flag, line.algorithm, line.env)]
    return of_training(program, line.algorithm, line.env, config.world.env, shown, list(line.listed))


def parse_evaluate(arguments: list[str]) -> EvaluateConfig:
    """Settings of `evaluate.py arguments`; leaves with code 2 and a sentence where they are wrong."""
    flags = [*flags_of(EvaluateConfig), HELP]
    words = ["--help" if word == "-h" else word for word in arguments]
    if "--help" in words:
        usage = ["evaluate.py RUN [FLAGS]"]
        introduction = " ".join((EvaluateConfig.__doc__ or "").split())
        sections = sections_of([flag for flag in flags if flag is not HELP], {})
        print(rendered(usage, introduction, [replace(section, title="Flags.") for section in sections]))
        raise SystemExit(0)

    def unknown(written: str) -> NoReturn:
        raise ValueError(about_flag(written, EVALUATE, [flag.name for flag in flags], {}))

    try:
        refuse_empty_paths(arguments, ("--video", "--dataset"))
        given = read(words, flags, unknown)
        places = [word for word, _ in given.stray]
        if len(places) != 1:
            found = "none is named (words after --probe are probes)" if not places else f"not {' and '.join(places)}"
            raise ValueError(f"run: name one run directory or checkpoint file, as evaluate.py runs/NAME; {found}")
        if not places[0].strip():
            raise ValueError(f"run = {places[0]!r}: must be a run directory or a checkpoint file")
        values = {flag.path[0]: value_of(flag, given.words[flag.name]) for flag in flags if flag.name in given.words}
        settings = EvaluateConfig(Path(places[0]), **values)
        if settings.probe:
            from experiments.setup import check_probes

            check_probes(settings.probe, "probe")
    except ValueError as error:
        fail(str(error))
    for note in given.notes:
        print(f"note: {note}", file=sys.stderr)
    return settings
