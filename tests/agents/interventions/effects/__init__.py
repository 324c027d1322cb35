"""What each intervention must have done after 50 gradient steps, in numbers, worked out anew from what a `History` saw:
alone, and beside others. What a partner changes by design is left out, and a comment there says why."""

import numpy as np

from agents.interventions import NAMES
from tests.agents.interventions.effects import architecture, surgeries, training
from tests.agents.interventions.effects.history import History
from tests.agents.interventions.effects.runs import STEPS, learn, make, prepare
from tests.agents.interventions.effects.settings import SETTINGS, close, role, same, together

EFFECTS = {
    name: next(vars(file)[name] for file in (architecture, training, surgeries) if name in vars(file)) for name in NAMES
}
"""By name, a function of the history that asserts what the intervention has done."""


def assert_effects(kind, names):
    """Train an agent of this kind beside these; every general condition and each one's own effect holds."""
    agent = make(kind, together(names))
    world, history = prepare(kind, agent), History(agent, kind)
    try:
        learn(agent, world)
        for general in (learned, losses, adam):
            general(history)
        for name in names:
            EFFECTS[name](history)
    finally:
        history.forget()


def learned(history):
    """Everything is finite, and what trains is in the optimizer and moves, what is frozen does not."""
    assert all(np.isfinite(part).all() for part in history.take())
    trained = {id(p) for group in history.adam.param_groups for p in group["params"]}
    assert all(id(p) in trained for p in history.network.parameters())
    assert history.agent.clock.gradient_steps == len(history.adam_steps) == STEPS
    for _, before, after in history.adam_steps[-1], history.adam_steps[STEPS // 2]:
        for trains, (name, place) in zip(before.trains, history.places.items(), strict=True):
            moved = (before.weights[place] != after.weights[place]).any()
            assert moved == trains, f"{name} {'moved' if moved else 'did not move'}"


def losses(history):
    """The gradient is that of the agent's loss and all penalties, which are logged as they were added."""
    config, logged, steps = history.config, history.metrics[-1], 1
    if history.on_policy:  # the mean over an update phase
        steps = history.sync
        own = logged["losses/policy_loss"] + config.vf_coef * logged["losses/value_loss"]
        own -= config.ent_coef * logged["losses/entropy"]
    else:
        own = logged["losses/td_loss"]
    for name, told in history.penalties.items():
        assert (f"losses/penalty/{name}" in logged) == bool(told)
        if told:
            added = np.mean([penalty.value for penalty in told[-steps:]])
            close(logged[f"losses/penalty/{name}"], added, 1e-4)
            own += added
    close(np.mean(history.losses[-steps:]), own, 1e-4, 1e-5, "loss")


def adam(history):
    """Every step is Adam's (Kingma & Ba 2015), in float64, with the betas and decays that the settings ask for."""
    names, present = list(history.places), {name: SETTINGS[name] for name in history.members}
    own = np.array([name in history.own for name in names])
    weight = own & [role(name) == "weight" for name in names]
    beta1, beta2 = present.get("adam_betas", {}).get("betas", history.config.adam.betas)
    coupled = history.spread(own * present.get("l2", {}).get("rate", 0.0))
    decoupled = history.spread(weight * present.get("weight_decay", {}).get("rate", 0.0))
    rate, eps = history.config.learning_rate.start, history.config.adam.eps
    gradients, before, after = zip(*history.adam_steps, strict=True)
    given = np.stack([present for _, present in gradients])
    old, new = ([np.stack([s[part] for s in side]) for part in range(4)] for side in (before, after))
    same(new[3], old[3] + given)
    given, steps = history.spread(given), history.spread(new[3].astype(np.float64))
    for part in range(3):
        same(new[part][~given], old[part][~given], "without a gradient")
    loss, w = np.stack([gradient for gradient, _ in gradients]), old[0].astype(np.float64)
    gradient = loss + coupled * w
    first = beta1 * old[1].astype(np.float64) + (1 - beta1) * gradient
    second = beta2 * old[2].astype(np.float64) + (1 - beta2) * gradient**2
    corrected = np.where(given, steps, 1)
    root = np.sqrt(second / (1 - beta2**corrected)) + eps
    moved = w * (1 - rate * decoupled) - rate * first / (1 - beta1**corrected) / root
    rounding = rate * 5e-7 * (np.abs(loss) + np.abs(coupled * w)) / root  # where loss and decay cancel
    close(np.where(given, new[0], 0), np.where(given, moved, 0), 1e-6, 1e-7 + rounding, "weights")
    close(np.where(given, new[1], 0), np.where(given, first, 0), 1e-4, 1e-9 + 1e-6 * np.abs(loss), "first moments")
