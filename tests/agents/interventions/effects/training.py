"""What is added to the loss, and what becomes of targets, gradients and Adam."""

import math

import numpy as np
import torch

from tests.agents.interventions.effects.architecture import inside
from tests.agents.interventions.effects.runs import STEPS
from tests.agents.interventions.effects.settings import SETTINGS, close, only_these, role, same


def adam_betas(history):
    betas = SETTINGS["adam_betas"]["betas"]
    assert all(tuple(group["betas"]) == betas for group in history.adam.param_groups)  # and see `adam`


def decays(history, rate, wanted, decoupled):
    """Adam's groups carry the decay on the wanted roles alone; see `adam` for what it does there."""
    for group in history.adam.param_groups:
        for parameter in group["params"]:
            name = history.name_of(parameter)
            pulled = not name.startswith("auxiliary") and (wanted is None or role(name) in wanted)
            assert group["weight_decay"] == (rate if pulled else 0), name
            assert group.get("decoupled_weight_decay", False) == (decoupled and pulled), name


def l2(history):
    decays(history, SETTINGS["l2"]["rate"], None, False)


def weight_decay(history):
    decays(history, SETTINGS["weight_decay"]["rate"], ("weight",), True)


def logged(history, name):
    """The penalties of all gradient steps."""
    told = history.penalties[name]
    assert [penalty.gradient_step for penalty in told] == list(range(1, STEPS + 1))
    return told


def l2_init(history):
    largest = 0.0
    for told, (_, before, _) in zip(logged(history, "l2_init"), history.adam_steps, strict=True):
        places = history.where_are(history.trained(before))
        gap = before.weights[places].astype(np.float64) - told.start[places]
        close(told.value, SETTINGS["l2_init"]["rate"] * (gap**2).sum(), 1e-4, 1e-9)
        largest = max(largest, told.value)
    assert largest > 0
    for name, start in history.members["l2_init"].state_dict()["start"].items():
        same(start, history.start[history.places[name]].reshape(history.shapes[name]), name)


def parseval(history):
    rate, scale = SETTINGS["parseval"]["rate"], 2.0
    for told, (_, before, _) in zip(logged(history, "parseval"), history.adam_steps, strict=True):
        expected = 0.0
        for name in history.layers:
            if history.training(before, f"{name}.weight"):
                rows = history.get(before.weights, f"{name}.weight")
                rows = rows.reshape(len(rows), -1)
                expected += ((rows @ rows.T - scale * np.eye(len(rows))) ** 2).sum()
        close(told.value, rate * expected, 1e-4)


def features(history):
    """The last hidden layer of every branch: those that feed no other one."""
    producers = {id(layer.producer) for layer in history.layers.values()}
    feeds = {name: {id(module) for module, _ in layer.consumers} for name, layer in history.layers.items()}
    return [name for name in feeds if not feeds[name] & producers]


def infer(history):
    alpha, beta, last = SETTINGS["infer"]["alpha"], SETTINGS["infer"]["beta"], features(history)
    heads = [name for name in history.places if name not in history.own]  # weight and bias, for each branch
    assert len(heads) == 2 * len(last)
    initial = history.twin_with(history.first.weights, history.first.buffers)
    for told in (told for told in logged(history, "infer") if told.captured):
        with torch.no_grad():
            then = history.lifecycle.capture(initial, told.observations)
        before, expected = history.adam_steps[told.gradient_step - 1][1].weights, 0.0
        for branch, name in enumerate(last):
            says = []
            for weights, held in ((before, told.captured[name][-1]), (history.first.weights, then[name][1])):
                weight, bias = (history.get(weights, head) for head in heads[2 * branch : 2 * branch + 2])
                says.append(held.flatten(1).double().numpy() @ weight.T + bias)
            expected += ((says[0] - beta * says[1]) ** 2).mean()
        close(told.value, alpha * expected, 1e-4)
    now = history.take().weights
    for head in heads:
        assert (history.get(now, head) != history.get(history.first.weights, head)).any()


def pfo(history):
    parts = {}
    for name in history.layers:
        parts.setdefault(history.network.part_of(name), []).append(name)
    assert len(parts) == (2 if "two torsos" in history.kind else 1)
    largest = 0.0
    for told in (told for told in logged(history, "pfo") if told.captured):
        old = history.twin_with(*told.old)
        with torch.no_grad():
            then = history.lifecycle.capture(old, told.observations)
        expected = 0.0
        for names in parts.values():
            changes = [(told.captured[name][0] - then[name][0]).double().numpy() for name in names]
            expected += sum((change**2).sum() for change in changes) / sum(change.size for change in changes)
        close(told.value, expected, 1e-3, 1e-9)
        largest = max(largest, told.value)
    assert largest > 0


def optimizer_reset(history):
    edits = history.of("optimizer_reset")
    assert len(edits) == STEPS // history.sync
    own = np.array([name in history.own for name in history.places])
    for edit in edits:
        same(edit.after.weights, edit.before.weights)
        now, others = history.spread(own & edit.after.trains), history.spread(~own)
        for part in ("first", "second"):
            same(getattr(edit.after, part)[now], 0)
            same(getattr(edit.after, part)[others], getattr(edit.before, part)[others])
        same(edit.after.steps[own & edit.after.trains], 0)
        same(edit.after.steps[~own], edit.before.steps[~own])  # auxiliary heads keep theirs
    last = history.take()
    same(last.steps[own & last.trains], STEPS % history.sync or history.sync)


def popart(history):
    step, seen, mean, square = SETTINGS["popart"]["step_size"], 0.0, 0.0, 0.0
    head = "value_head" if history.on_policy else "head"
    names = [f"{head}.linear.weight", f"{head}.linear.bias"]
    edits = history.of("popart", "meet")
    assert len(edits) == len(history.targets) == (STEPS // history.sync if history.on_policy else STEPS)
    for edit, targets in zip(edits, history.targets, strict=True):
        seen += step * (1 - seen)
        mean += step / seen * (targets.mean() - mean)
        square += step / seen * ((targets**2).mean() - square)
        scale = math.sqrt(square - mean**2)
        found = {kind: float(history.buffer(edit.after.buffers, f"{head}.{kind}")) for kind in ("mean", "scale")}
        close([found["mean"], found["scale"]], [mean, scale], 1e-4, 1e-5)
        outputs = []
        for snapshot in (edit.before, edit.after):
            m, s = (history.buffer(snapshot.buffers, f"{head}.{kind}") for kind in ("mean", "scale"))
            weight, bias = (history.get(snapshot.weights, name) for name in names)
            outputs.append((weight * s, bias * s + m))
        for before, after in zip(*outputs, strict=True):
            close(after, before, 1e-5, 1e-5)
        only_these(history, edit, history.where_are(names), moments=False)
    found, _ = inside(history)
    close(found[head][1], found[f"{head}.linear"][1] * scale + mean, 1e-4, 1e-4)  # in units of the return
    given, result = history.given[-1], history.compared[-1]
    for before, after in zip(given, result, strict=True):
        close(after.detach(), (before.detach().double() - mean) / scale, 1e-3, 1e-4)
