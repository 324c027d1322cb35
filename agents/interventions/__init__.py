"""What is meant to keep plasticity. base.py says what an intervention is, surgery.py edits weights for them,
lifecycle.py calls them; every other file holds one, and is called as its flag is.

    from agents.interventions import LayerNorm, ReDo
    agent = build_agent(config, spaces, num_envs, generators, device, interventions=[LayerNorm(), ReDo(tau=0.025)])

Importing this package is light: a name brings its module, and torch, when it is asked for.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.interventions.base import Intervention

SHARED = ("base", "lifecycle", "slices", "surgery")
EXTRA = ("sb3",)
NAMES = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in (*SHARED, *EXTRA))
)
"""The interventions there are, as they are written after --interventions: the names of their files."""


def require_known(name: str) -> None:
    """Raise `ValueError` naming what there is, unless `name` is an intervention's."""
    if name not in NAMES:
        raise ValueError(f"interventions = {name!r}: must be some of {', '.join(NAMES)}")


def intervention_class(name: str) -> "type[Intervention]":
    """The class of the intervention called `name`, the one in its file that bears that name."""
    from agents.interventions.base import Intervention

    require_known(name)
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Intervention)]
    return next(kind for kind in kinds if kind.name == name)


def __getattr__(attribute: str) -> Any:
    """A public class or function of any of the files, imported now."""
    for module in (*SHARED, *NAMES) if not attribute.startswith("_") else ():
        found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute, None)
        if isinstance(found, type) or callable(found):
            globals()[attribute] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
