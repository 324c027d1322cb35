"""Which runs belong together: arms by what differs in their settings, worlds, controls. Imports no torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.config import require
from agents.spelling import did_you_mean
from experiments.naming import in_a_word
from experiments.results.runs import BESIDE, OF_BESIDE, WORLD_FIELDS, Run

FIRST = ("agent", "implementation", "loss", "value-loss", "interventions")
"""What names an arm before other settings do."""
PLAIN = ("mse", "huber")
"""Losses whose arms come first."""
LENGTH = ("steps", "seed")
"""Settings that never make an arm unless asked for: a run's length, and its seed."""
OF_A_TASK = ("task.first", "task.period")
"""What tells an agent that is trained on one task alone from one that meets it after others."""
CHECKED = {"steps": "budgets", "buffer-size": "replay capacities", "level-share": "level_share"}
"""Settings whose differences are warned of, and what they are called."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing that is compared."""

    name: str
    runs: tuple[Run, ...]
    interventions: int
    plain: bool


@dataclass(frozen=True)
class Controls:
    """Runs to measure others by."""

    random: tuple[Run, ...] = ()
    """Those in which nothing is learned."""
    fresh: tuple[Run, ...] = ()
    """Those of one task alone, which others meet after earlier ones."""


def known_fields(runs: Iterable[Run]) -> list[str]:
    """Every setting that some run has."""
    return list(dict.fromkeys(name for run in runs for name in run.settings))


def field_named(written: str, runs: Sequence[Run]) -> str:
    """The setting that `written` means: with hyphens or underscores; world is env. ValueError: there is none."""
    known = known_fields(runs)
    name = written.removeprefix("--").replace("_", "-")
    name = "env" if name == "world" else name
    require(
        name in known, "field", written, f"a setting, such as agent, loss, interventions{did_you_mean(name, known)}"
    )
    return name


def word(value: Any) -> str:
    """A setting's value as a name or a table has it."""
    return "+".join(value) or "none" if isinstance(value, tuple) and _names(value) else in_a_word(value)


def _names(value: tuple) -> bool:
    return all(isinstance(part, str) for part in value)


def chosen(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet all `conditions`, each FIELD=VALUE. ValueError: one is none, or no run meets them."""
    left = list(runs)
    for condition in conditions:
        written, equals, value = condition.partition("=")
        require(bool(equals) and bool(written), "where", condition, "FIELD=VALUE, as in --where loss=mse")
        name = field_named(written, runs)
        there = sorted({word(run.settings.get(name)) for run in left})
        left = [run for run in left if _means(value, run.settings.get(name))]
        require(bool(left), "where", condition, f"met by a run; of {name} there are {', '.join(there)}")
    return left


def _means(written: str, value: Any) -> bool:
    if isinstance(value, float):
        try:
            return float(written) == value
        except ValueError:
            return False
    return written.lower() in (word(value).lower(), word(value).lower().removeprefix("ale/"))


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that differ among the runs that have them, those of `FIRST` first; length and seed are none."""
    values: dict[str, set] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    found = [name for name, there in values.items() if len(there) > 1 and not _beside(name)]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), "." not in name))


def _beside(name: str) -> bool:
    return name in BESIDE or name in LENGTH or name.startswith(OF_BESIDE)


def key_of(run: Run, fields: Iterable[str]) -> tuple:
    """The run's values of `fields`."""
    return tuple(run.settings.get(name) for name in fields)


def telling(runs: Sequence[Run], fields: Sequence[str]) -> list[str]:
    """As few of `fields`, in their order, as part the runs like all of them do."""
    found: list[str] = []
    for name in fields:
        if len({key_of(run, found) for run in runs}) < len({key_of(run, [*found, name]) for run in runs}):
            found.append(name)
    return found


def grouped(runs: Sequence[Run], fields: Sequence[str]) -> list[Arm]:
    """An arm for every combination of values of `fields`, the plainest first."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(key_of(run, fields), []).append(run)
    arms = []
    for key, members in groups.items():
        settings = members[0].settings
        plain = settings.get("loss", "mse") in PLAIN and settings["agent"] != "c51"
        arms.append(Arm(_name(dict(zip(fields, key, strict=True)), settings), tuple(members), _count(settings), plain))
    return sorted(arms, key=lambda arm: (arm.interventions, not arm.plain, arm.name))


def _count(settings: dict[str, Any]) -> int:
    return len(settings["interventions"])


def _name(values: dict[str, Any], settings: dict[str, Any]) -> str:
    """An arm's name: what its `values` are, in words."""
    parts = [_part(name, value) for name, value in values.items() if value is not None]
    parts = [part for part in parts if part] if len(values) > 1 else parts
    return " ".join(parts) or ("none" if "interventions" in values else settings["agent"])


def _part(name: str, value: Any) -> str:
    if name == "interventions":
        return "+".join(value)
    if name in FIRST or name == "env":
        return word(value)
    return f"{name}={word(value)}"


def alike_but(run: Run, *names: str) -> tuple:
    """All that shapes the run's result, but the settings called `names`."""
    left = {k: v for k, v in run.settings.items() if not (k in BESIDE and k != "seed") and not k.startswith(OF_BESIDE)}
    return tuple(sorted(((k, v) for k, v in left.items() if k not in names), key=lambda item: item[0]))


def never_learns(run: Run) -> bool:
    """Whether the run ends before the first gradient step, so that it shows what acting at random brings."""
    settings = run.settings
    if settings["agent"] == "ppo":
        return settings["rollout-steps"] * settings["num-envs"] > run.steps
    return settings.get("learning-starts", 0) >= run.steps


def controls_in(runs: Sequence[Run]) -> tuple[list[Run], Controls]:
    """(the runs to compare, the controls among `runs`)."""
    random = [run for run in runs if never_learns(run)]
    rest = [run for run in runs if not never_learns(run)]
    continual = {_but_for_tasks(run) for run in rest if run.settings["task.period"]}
    fresh = [run for run in rest if not run.settings["task.period"] and _but_for_tasks(run) in continual]
    compared = [run for run in rest if run not in fresh]
    return (compared, Controls(tuple(random), tuple(fresh))) if compared else (list(runs), Controls())


def _but_for_tasks(run: Run) -> tuple:
    return alike_but(run, "seed", "steps", *OF_A_TASK)


def fresh_of(run: Run, controls: Controls) -> list[Run]:
    """The fresh agents with the settings of `run`, whatever their seed and task."""
    return [one for one in controls.fresh if _but_for_tasks(one) == _but_for_tasks(run)]


def other_budgets(runs: Sequence[Run], controls: Controls) -> list[str]:
    """A warning where fresh agents do not have as many steps as a task has."""
    periods = {_but_for_tasks(run): run.settings["task.period"] for run in runs}
    unequal = {(run.steps, periods.get(_but_for_tasks(run), run.steps)) for run in controls.fresh}
    listed = [f"{steps:,} steps for tasks of {period:,}" for steps, period in sorted(unequal) if steps != period]
    return [f"fresh agents have another budget than a task: {'; '.join(listed)}"] if listed else []


def random_in(world: Run, controls: Controls) -> list[Run]:
    """The random runs in the world of `world`."""
    fields = sorted(WORLD_FIELDS - set(OF_A_TASK))
    return [one for one in controls.random if key_of(one, fields) == key_of(world, fields)]


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """(the runs, of those with the same settings and seed the longest and newest alone, before one that was forked with
    all kept the whole one; the others with why not)."""
    kept: dict[tuple, Run] = {}
    dropped = []
    for run in sorted(runs, key=lambda run: (run.length, not run.settings.get("fork"), _age(run))):
        key = alike_but(run, "steps")
        if key in kept:
            dropped.append((kept[key].path, f"the same settings and seed as {run.name}, and not longer"))
        kept[key] = run
    return [run for run in runs if any(run is one for one in kept.values())], dropped


def _age(run: Run) -> float:
    return (run.path / "config.json").stat().st_mtime


def pooled(arms: Sequence[Arm]) -> list[str]:
    """A sentence for every arm whose runs differ in more than seed and world."""
    found = []
    for arm in arms:
        fields = ", ".join(name for name in differing(arm.runs) if name not in WORLD_FIELDS)
        if fields:
            found.append(f"{arm.name}: pools runs that differ in {fields}; a seed's runs count as their mean")
    return found


def unsaid(arms: Sequence[Arm], said: Sequence[str], fields: Sequence[str]) -> list[str]:
    """A sentence for every setting that differs between arms and is not in their names."""
    found = []
    for name in fields:
        values = _values(arms, name, word)
        if name not in said and len(set(values.values())) > 1:
            listed = "; ".join(f"{arm} {there}" for arm, there in values.items())
            found.append(f"not in the names, {name} differs: {listed}")
    return found


def _values(arms: Sequence[Arm], name: str, said: Callable[[Any], str]) -> dict[str, str]:
    """By arm that has the setting `name`, its values there."""
    found = {arm.name: sorted({run.settings[name] for run in arm.runs if name in run.settings}) for arm in arms}
    return {arm: ", ".join(map(said, values)) for arm, values in found.items() if values}


def losses(arms: Sequence[Arm], lost: Sequence[Run], fields: Sequence[str]) -> list[str]:
    """A warning for every arm of which some runs crashed or were not finite."""
    found = []
    for arm in arms:
        gone = sum(key_of(run, fields) == key_of(arm.runs[0], fields) for run in lost)
        if gone:
            of = gone + len(arm.runs)
            found.append(f"{arm.name}: {gone} of {of} runs failed and are left out: what remains is no fair sample")
    return found


def warnings(arms: Sequence[Arm]) -> list[str]:
    """What makes arms in one world incomparable: other budgets, replay capacities, levels."""
    found = []
    for name, words in CHECKED.items():
        values = {run.settings[name] for arm in arms for run in arm.runs if name in run.settings}
        if len(values) > 1:
            listed = "; ".join(f"{arm} {there}" for arm, there in _values(arms, name, "{:,}".format).items())
            found.append(f"{words} differ ({name}): {listed}")
    return found


def other_worlds(arms: Sequence[Arm], worlds: dict[str, list[Run]]) -> list[str]:
    """A warning where arms were not run in the same worlds."""
    where = {arm.name: [name for name, runs in worlds.items() if within([arm], runs)] for arm in arms}
    if len({tuple(names) for names in where.values()}) < 2:
        return []
    return [
        "arms were not run in the same worlds: " + "; ".join(f"{arm} in {', '.join(w)}" for arm, w in where.items())
    ]


def other_commits(runs: Sequence[Run]) -> list[str]:
    """A warning where the code was not the same, or is not known."""
    commits = sorted({_commit(run) for run in runs})
    if len(commits) > 1:
        return [f"the runs were made by {len(commits)} versions of the code: {', '.join(commits)}"]
    nowhere = commits[0].endswith("+changes") or commits[0] == "unknown"
    return [f"the runs were made by code that no commit holds: {commits[0]}"] if nowhere else []


def _commit(run: Run) -> str:
    commit, plus, changes = str(run.manifest.get("git_commit", "unknown")).partition("+")
    return f"{commit[:10]}{plus}{changes}"


def within(arms: Sequence[Arm], runs: Sequence[Run]) -> list[Arm]:
    """Of each of `arms` what is among `runs`."""
    held = set(map(id, runs))
    parts = [replace(arm, runs=tuple(run for run in arm.runs if id(run) in held)) for arm in arms]
    return [arm for arm in parts if arm.runs]


def by_world(runs: Sequence[Run], asked: Sequence[str]) -> dict[str, list[Run]]:
    """The runs by world: its id, and what else differs among the runs with that id, but for the fields `asked`."""
    env = () if "env" in asked else ("env",)
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(key_of(run, env), []).append(run)
    found: dict[str, list[Run]] = {}
    for like in groups.values():
        fields = [name for name in differing(like) if name in WORLD_FIELDS and name not in asked and name != "env"]
        for run in like:
            parts = [str(run.settings[name]).replace("ALE/", "") for name in env]
            parts += [f"{name}={word(run.settings[name])}" for name in fields]
            found.setdefault(" ".join(parts) or "all worlds", []).append(run)
    return dict(sorted(found.items()))
