"""One page that holds a whole comparison and works without a network: curves, tables, settings, commands."""

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

from experiments.results.arms import known_fields, word
from experiments.results.comparison import Comparison
from experiments.results.figures import COLOURS
from experiments.results.lines import BAND, HUNDREDTHS, binned, curve_of, has, tags_of
from experiments.results.pictures import probes_of
from experiments.results.runs import Run
from experiments.results.scores import World
from experiments.results.statistics import of_seeds
from experiments.results.tables import below, grids_of, least, legend, remarks

MOST_TAGS = 80
"""Curves that one page holds beside the one compared."""
ROOMS = ("probes/", "targets/", "losses/", "replay/", "surgery/", "probes_reference/", "charts/")
"""Tags that are drawn, the first ones first."""


def write_report(told: Comparison, folder: Path, command: str, closing: str) -> Path:
    """Write report.html in `folder`. ValueError: the library whose script it holds is not installed."""
    here = Path(__file__).parent / "report.html"
    filled = {"/*PLOTLY*/": plotly_script(), "/*DATA*/": _as_json(_page(told, command, closing))}
    page = here.read_text(encoding="utf-8")
    for place, text in filled.items():
        page = page.replace(place, text)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def plotly_script() -> str:
    """Plotly's script, as its Python package has it, without importing that."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ValueError("plotly is not installed: pip install -r requirements.txt; report.html needs its script")
    script = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return script.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _as_json(page: dict[str, Any]) -> str:
    return json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")


def _page(told: Comparison, command: str, closing: str) -> dict[str, Any]:
    names = [arm.name for arm in told.arms]
    worlds = ", ".join(world.name for world in told.worlds)
    returns = told.measure == "return"
    tables = [
        {
            "title": one.title,
            "world": one.world,
            "scope": one.scope,
            "grids": grids_of(one, returns),
            "least": least(one),
        }
        for one in told.tables
    ]
    return {
        "title": f"{len(names)} arm{'s' if len(names) > 1 else ''} in {worlds}",
        "subtitle": f"{command}. {closing[:1].upper()}{closing[1:]}.",
        "measure": told.measure,
        "metric": told.settings.metric,
        "colours": dict(zip(names, itertools.cycle(COLOURS), strict=False)),
        "remarks": remarks(told),
        "legend": legend(told),
        "tables": tables,
        "worlds": [_world(told, world) for world in told.worlds],
        "differing": _settings(told, _differing(told)) if told.fields else [],
        "settings": _settings(told, sorted(known_fields(told.runs))),
        "commands": [[arm.name, [[str(run.path), run.command] for run in arm.runs]] for arm in told.arms],
    }


def _differing(told: Comparison) -> list[str]:
    """The settings that differ, and the parameters of interventions that some arms have and others have not."""
    listed = [set(run.settings["interventions"]) for run in told.runs]
    some = {name.replace("_", "-") for name in set.union(*listed) - set.intersection(*listed)}
    parameters = [name for name in known_fields(told.runs) if name.partition(".")[0] in some]
    return list(dict.fromkeys([*told.fields, *parameters]))


def _settings(told: Comparison, fields: list[str]) -> list[list[str]]:
    """A row a setting, a column an arm."""
    rows = []
    for name in fields:
        values = [sorted({word(run.settings[name]) for run in arm.runs if name in run.settings}) for arm in told.arms]
        rows.append([name, *(", ".join(there[:8]) + (", ..." if len(there) > 8 else "") or "-" for there in values)])
    return [["setting", *(arm.name for arm in told.arms)], *rows]


def _world(told: Comparison, world: World) -> dict[str, Any]:
    everybody = [run for runs in world.runs.values() for run in runs]
    metric, probes = told.settings.metric, probes_of(everybody)
    tags = [tag for room in ROOMS for tag in tags_of(everybody) if tag.startswith(room)]
    tags = list(dict.fromkeys([metric, *probes, *tags]))[: MOST_TAGS + 1]
    first = next((tag for tag in probes if tag != metric), None)
    second = next((tag for tag in ("targets/mean", *probes[1:]) if tag in tags and tag not in (first, metric)), None)
    return {
        "name": world.name,
        "length": world.length,
        "boundaries": world.ends[:-1],
        "names": world.task_names if world.changes else [],
        "band": f"mean over runs in hundredths of {world.length:,} steps; band: {BAND}",
        "curves": {tag: _curves(world, tag) for tag in tags},
        "seeds": {arm: [_seed(run, metric, world.length) for run in runs] for arm, runs in world.runs.items()},
        "shown": [tag for tag in (first, second) if tag],
        "tasks": {arm: _intervals(scores.values.T) for arm, scores in world.scores.items()},
        "grids": below(told, world),
    }


def _curves(world: World, tag: str) -> dict[str, Any]:
    found = {}
    for arm, runs in world.runs.items():
        if any(has(run, tag) for run in runs):
            curve = curve_of(runs, tag, world.length)
            found[arm] = {
                "x": curve.steps.tolist(),
                "mean": _short(curve.means),
                "low": _short(curve.lows),
                "high": _short(curve.highs),
                "n": int(curve.runs.max(initial=0)),
            }
    return found


def _seed(run: Run, tag: str, length: int) -> dict[str, Any]:
    values, counts = binned(run.series(tag), length / HUNDREDTHS, HUNDREDTHS)
    places = counts.nonzero()[0]
    return {
        "seed": run.seed,
        "x": [round((k + 1) * length / HUNDREDTHS) for k in places.tolist()],
        "y": _short(values[places]),
    }


def _intervals(columns: Any) -> dict[str, list]:
    found = [of_seeds(column) for column in columns]
    return {name: _short(part) for name, part in zip(("mean", "low", "high"), zip(*found, strict=True), strict=True)}


def _short(values: Any) -> list[float | None]:
    """Numbers of five digits; null for NaN."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]
