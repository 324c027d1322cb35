"""What is meant to keep plasticity. base.py says what an intervention is, surgery.py edits weights for them,
lifecycle.py calls them; every other file holds one, and is called as its flag is.

    from agents.interventions import LayerNorm, ReDo
    agent = build_agent(config, spaces, num_envs, generators, device, interventions=[LayerNorm(), ReDo(tau=0.025)])

Importing this package is light: a name brings its module, and torch, when it is asked for.
"""

import dataclasses
import functools
import importlib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.described import Field, class_in_source, fields_in_source, texts_of
from agents.spelling import did_you_mean, folded

if TYPE_CHECKING:  # what `__getattr__` hands out, for editors
    from agents.interventions.activation import Activation as Activation
    from agents.interventions.adam_betas import AdamBetas as AdamBetas
    from agents.interventions.base import Forward as Forward
    from agents.interventions.base import Intervention as Intervention
    from agents.interventions.batch_norm import BatchNorm as BatchNorm
    from agents.interventions.cbp import CBP as CBP
    from agents.interventions.crelu import CReLU as CReLU
    from agents.interventions.dropout import Dropout as Dropout
    from agents.interventions.infer import InFeR as InFeR
    from agents.interventions.l2 import L2 as L2
    from agents.interventions.l2_init import L2Init as L2Init
    from agents.interventions.layer_norm import LayerNorm as LayerNorm
    from agents.interventions.nap import NaP as NaP
    from agents.interventions.optimizer_reset import OptimizerReset as OptimizerReset
    from agents.interventions.parseval import Parseval as Parseval
    from agents.interventions.pfo import PFO as PFO
    from agents.interventions.plasticity_injection import PlasticityInjection as PlasticityInjection
    from agents.interventions.popart import PopArt as PopArt
    from agents.interventions.redo import ReDo as ReDo
    from agents.interventions.reset import Reset as Reset
    from agents.interventions.shrink_perturb import ShrinkAndPerturb as ShrinkAndPerturb
    from agents.interventions.slices import Slots as Slots
    from agents.interventions.slices import UnitSet as UnitSet
    from agents.interventions.spectral_norm import SpectralNorm as SpectralNorm
    from agents.interventions.surgery import Surgery as Surgery
    from agents.interventions.weight_clip import WeightClip as WeightClip
    from agents.interventions.weight_decay import WeightDecay as WeightDecay

SHARED = ("base", "lifecycle", "slices", "surgery")
FOR_OWN = {"Forward": "base", "Intervention": "base", "Slots": "slices", "Surgery": "surgery", "UnitSet": "slices"}
"""What one needs for an intervention of one's own, and the file that holds it."""
NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in SHARED))
"""The interventions there are, as they are written after --interventions: the names of their files."""


COMBINATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "ln_wd": {"layer_norm": {}, "weight_decay": {}},
    "cbp_l2": {
        "adam_betas": {"betas": (0.99, 0.99)},
        "l2": {"rate": 1e-4},
        "cbp": {"accumulation": "bernoulli", "moments": "keep"},
    },
    "redo_l2": {
        "adam_betas": {"betas": (0.99, 0.99)},
        "l2": {"rate": 1e-4},
        "redo": {"tau": 0.1, "when": "every 100 gradient steps", "samples": 128, "moments": "keep"},
    },
}
"""What the literature uses together: LayerNorm and weight decay (Lyle24); CBP and ReDo with L2 and tuned Adam, as the
authors' PPO (Dohare24; their ReDo scores the minibatch itself, ours as many observations of the rollout; weights
between two units that are replaced together are 0 here and random in their code, in ReDo as in CBP). By intervention,
the parameters that differ from its defaults."""


ALSO_CALLED = {
    "activation": "fourier leaky_relu gelu swish silu tanh deep_fourier_features",
    "adam_betas": "betas tuned_adam equal_betas adam",
    "cbp": "continual_backprop continual_backpropagation continualbp gnt generate_and_test",
    "crelu": "concat_relu concatenated_relu",
    "infer": "initial_feature_regularization",
    "l2": "l2_regularization l2_penalty",
    "l2_init": "regenerative_regularization regenerative l2init",
    "layer_norm": "ln rms_norm layernormalization",
    "ln_wd": "layer_norm_weight_decay",
    "nap": "normalize_and_project",
    "optimizer_reset": "adam_reset reset_optimizer reset_adam",
    "parseval": "parseval_regularization orthogonal_regularization",
    "pfo": "proximal_feature_optimization",
    "plasticity_injection": "injection pi",
    "redo": "recycling_dormant_neurons dormant recycle",
    "reset": "resets head_reset reset_last_layers last_layer_reset primacy_bias",
    "shrink_perturb": "shrink_and_perturb snp sp",
    "spectral_norm": "sn spectral_normalization",
    "weight_clip": "weight_clipping clip_weights",
    "weight_decay": "wd adamw decoupled_weight_decay",
    "batch_norm": "bn batch_normalization",
}
"""What others call them, so that a wrong name is answered with the right one."""


def require_known(name: str) -> None:
    """Raise `ValueError` naming what there is, unless `name` is an intervention's or a combination's."""
    if name in NAMES or name in COMBINATIONS:
        return
    together = ", ".join(f"{name} ({' + '.join(parts)})" for name, parts in COMBINATIONS.items())
    meant = [ours for ours, others in ALSO_CALLED.items() if folded(name) in map(folded, others.split())]
    hint = f"; did you mean {meant[0]!r}?" if meant else did_you_mean(name, [*NAMES, *COMBINATIONS])
    raise ValueError(f"interventions = {name!r}: must be some of {', '.join(NAMES)}; or of {together}{hint}")


@functools.cache
def parameters_of(name: str) -> list[Field]:
    """The parameters of the intervention called `name`, read in its file: torch is imported only where that file says
    them in a way that has to be run."""
    try:
        return fields_in_source(f"{__name__}.{name}", name)
    except LookupError:
        kind = intervention_class(name)
        hints, texts = typing.get_type_hints(kind), texts_of(kind)
        return [
            Field(field.name, hints[field.name], field.default, texts.get(field.name, ""))
            for field in dataclasses.fields(kind)
        ]


def expanded(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By intervention, in order, the parameters that the `names` of interventions and combinations give it.

    ValueError: a name is unknown, or one intervention is named twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        require_known(name)
        for part, parameters in COMBINATIONS.get(name, {name: {}}).items():
            if part in found:
                within = "" if name == part else f" (once in {name})"
                raise ValueError(f"interventions: {part} is given twice{within}")
            found[part] = parameters
    return found


def intervention_class(name: str) -> "type[Intervention]":
    """The class of the intervention called `name`, the one in its file that bears that name."""
    from agents.interventions.base import Intervention

    if name not in NAMES:
        require_known(name)
        raise ValueError(f"{name!r} is a combination of interventions, not one")
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Intervention)]
    return next(kind for kind in kinds if kind.name == name)


@functools.cache
def _classes() -> dict[str, str]:
    """The files by the names of the classes that they hold, read in their sources where these say it."""

    def named(name: str) -> str:
        try:
            return class_in_source(f"{__name__}.{name}", name)
        except LookupError:
            return intervention_class(name).__name__

    return {named(name): name for name in NAMES} | FOR_OWN


def __getattr__(attribute: str) -> Any:
    """An intervention, or what one's own needs, imported now."""
    if attribute.startswith("_") or attribute not in _classes():
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_classes()[attribute]}"), attribute)
    globals()[attribute] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
