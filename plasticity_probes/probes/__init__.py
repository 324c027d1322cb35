"""The probes: every file here holds one, a subclass of `plasticity_probes.probe.Probe`, and is called as the probe is
after --probes. A probe of your own is one more file."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from plasticity_probes.probe import Probe

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The names of the files."""
GROUPS = {"default": ("light",), "all": ("light", "heavy"), "none": ()}
"""What the short names mean: all probes of these costs."""


@cache
def probes() -> Mapping[str, Probe]:
    """All of them by name, by their positions. (Not when this is imported: a probe may import what imports this.)

    TypeError: a file holds no probe, or several.
    """
    return {probe.name: probe for probe in sorted(map(_load, NAMES), key=lambda probe: (probe.position, probe.name))}


def _load(name: str) -> Probe:
    module = importlib.import_module(f"{__name__}.{name}")
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    kinds = [kind for kind in own if issubclass(kind, Probe)]
    if len(kinds) != 1:
        raise TypeError(f"{module.__file__}: holds {len(kinds)} subclasses of Probe; must hold one")
    kinds[0].name = name
    return kinds[0]()


def chosen(names: Sequence[str] | str) -> tuple[str, ...]:
    """The probes that `names` stand for, in the order of `probes()`. ValueError for an unknown one."""
    known = probes()
    allowed = f"default, all, none or some of {', '.join(known)}"
    given = (names,) if isinstance(names, str) else names
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ValueError(f"probes = {names!r}: must be a list of names, or one: {allowed}")
    wanted: set[str] = set()
    for name in given:
        if not isinstance(name, str) or (name not in GROUPS and name not in known):
            raise ValueError(f"probes = {name!r}: must be {allowed}")
        wanted.update([other for other in known if known[other].cost in GROUPS[name]] if name in GROUPS else [name])
    return tuple(name for name in known if name in wanted)
