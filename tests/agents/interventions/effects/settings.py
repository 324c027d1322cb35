"""Parameters with which every intervention acts visibly within 50 gradient steps of a small agent, who refuses whom,
and small tools that the statements of effects share."""

import itertools

import numpy as np

from agents.interventions import NAMES, intervention_class

BIRTH, PERIOD, RESET = 25, 10, 20  # gradient steps
SETTINGS = {
    "activation": {"kind": "tanh"},
    "adam_betas": {"betas": (0.8, 0.95)},
    "batch_norm": {},
    "cbp": {"replacement_rate": 0.05, "maturity": 5, "moments": "zero"},
    "crelu": {},
    "dropout": {"rate": 0.3},
    "infer": {"heads": 4, "alpha": 0.1, "beta": 2.0},
    "l2": {"rate": 0.1},
    "l2_init": {"rate": 0.1},
    "layer_norm": {},
    "nap": {},
    "optimizer_reset": {},
    "parseval": {"rate": 0.01},
    "pfo": {"layers_used": "all"},
    "plasticity_injection": {"when": f"at gradient step {BIRTH}"},
    "popart": {"step_size": 0.1},
    "redo": {"tau": 0.9, "when": f"every {PERIOD} gradient steps"},
    "reset": {"when": f"every {RESET} gradient steps"},
    "shrink_perturb": {"form": "juliani", "when": "every gradient step", "shrink": 0.99, "perturb": 0.02},
    "spectral_norm": {},
    "weight_clip": {"kappa": 0.5},
    "weight_decay": {"rate": 1.0},
}

HEADS = ("head", "policy_head", "value_head")

REFUSED = {
    frozenset(pair)
    for pair in (
        ("activation", "crelu"),
        ("batch_norm", "infer"),
        ("batch_norm", "layer_norm"),
        ("batch_norm", "pfo"),
        ("dropout", "pfo"),
        ("infer", "plasticity_injection"),
        ("l2", "weight_decay"),
        ("nap", "spectral_norm"),
        ("plasticity_injection", "popart"),
        ("popart", "weight_clip"),
    )
}
"""The pairs that are refused whatever their parameters."""

NOT_INJECTED = ("batch_norm", "dropout")
"""What a plasticity injection bears in front of the injected layers, but not among them."""


def setting(name, **changes):
    """A new instance that acts visibly."""
    return intervention_class(name)(**{**SETTINGS[name], **changes})


def together(names, **changes):
    """New instances of these, in this order; `changes` of parameters by name."""
    if any(name in NOT_INJECTED for name in names):
        changes = {"plasticity_injection": {"last": 1}, **changes}
    return [setting(name, **changes.get(name, {})) for name in names]


def allowed(names):
    """Whether no two of these refuse each other."""
    return not any(frozenset(pair) in REFUSED for pair in itertools.combinations(names, 2))


def fits(kind, names):
    """Whether an agent of this kind takes each of these, whatever the others are."""
    return not ("popart" in names and kind.startswith("c51"))  # it needs a value head learned by regression


def combinations(size):
    """All sets of that many that can work together, in the order of the names."""
    return [names for names in itertools.combinations(NAMES, size) if allowed(names)]


def close(found, expected, relative=1e-5, absolute=1e-6, what=""):
    """As NumPy's, which takes ten times as long, but only where it fails."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape and expected.shape:
        raise AssertionError(f"{what}: {found.shape}, must be {expected.shape}")
    if not (np.abs(found - expected) <= absolute + relative * np.abs(expected)).all():
        np.testing.assert_allclose(found, expected, relative, np.max(absolute), err_msg=what)
        raise AssertionError(f"{what}: further apart than {np.max(absolute)} somewhere")


def same(found, expected, what=""):
    """Bit for bit."""
    if not (np.asarray(found) == np.asarray(expected)).all():
        np.testing.assert_array_equal(found, expected, err_msg=what)


def only_these(history, edit, places, steps=(), moments=True):
    """An edit changed nothing but the weights (and, if `moments`, the moments) at `places` and Adam's steps of the
    tensors in `steps`."""
    others = np.ones(len(edit.before.weights), bool)
    others[places] = False
    for part in ("weights", "first", "second"):
        kept = others if moments or part == "weights" else slice(None)
        same(getattr(edit.after, part)[kept], getattr(edit.before, part)[kept], f"{edit.who}: {part} elsewhere")
    kept = np.array([name not in steps for name in history.places])
    same(edit.after.steps[kept], edit.before.steps[kept])


def role(name):
    """weight, bias, norm or log_std, by a parameter's name."""
    module, _, kind = name.rpartition(".")
    return "norm" if ".norm" in f".{module}" else kind
