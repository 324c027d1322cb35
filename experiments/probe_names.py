"""The probes there are, read in their files: importing those takes seconds of torch."""

import importlib.util
import re
from functools import cache
from pathlib import Path


@cache
def probe_costs() -> dict[str, str]:
    """By name, what a probe's file says that it costs: light, heavy or offline."""
    (package,) = importlib.util.find_spec("plasticity_probes").submodule_search_locations
    files = sorted((Path(package) / "probes").glob("[a-z]*.py"))
    said = {path.stem: re.search(r'^    cost = "(\w+)"', path.read_text(encoding="utf-8"), re.M) for path in files}
    return {name: found[1] if found else "light" for name, found in said.items()}


def about_the_probes() -> str:
    """For --help: which there are, and what the short names mean."""
    costs = probe_costs()
    light, heavy, offline = (
        ", ".join(name for name in costs if costs[name] == cost) for cost in ("light", "heavy", "offline")
    )
    return f"default ({light}), all (and {heavy}), none, or a list of these and of {offline}, which cost most"
