"""What the surgeries have done to weights and moments, edit by edit, whoever edited before or after."""

import math

import numpy as np

from tests.agents.interventions.effects.runs import CHECKED, STEPS
from tests.agents.interventions.effects.settings import BIRTH, HEADS, SETTINGS, close, only_these, role, same


def initial_law(history, name, values, rows_of_many=False):
    """Assert that `values` are drawn as the tensor called `name` was at the start (`rows_of_many`: rows of it)."""
    law, kind = history.config.network.initializer, role(name)
    module, own = name.rpartition(".")[0], name.rpartition(".")[2]
    if kind == "norm" or kind == "log_std":
        return close(values, float(kind == "norm" and own == "weight"), absolute=1e-4, what=name)
    fan_in = math.prod(history.shapes[f"{module}.weight"][1:])
    if kind == "bias" and law != "torch":
        return close(values, 0.0, absolute=1e-4, what=name)
    if law == "orthogonal":
        gain = {"policy_head": 0.01, "value_head": 1.0, "head": 1.0}.get(name.split(".")[0], math.sqrt(2))
        rows = values.reshape(len(values), -1)
        if rows_of_many:  # of a tall layer any rows are no longer than the gain
            full = history.shapes[name][0] <= fan_in
            lengths = np.linalg.norm(rows, axis=1)
            assert (lengths <= gain * 1.0001).all() and (not full or (lengths >= gain * 0.9999).all()), name
            return None
        smaller = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
        return close(smaller, gain**2 * np.eye(len(smaller)), absolute=1e-3 * gain**2 + 1e-6, what=name)
    bound = math.sqrt({"torch": 1, "lecun_uniform": 3}[law] / fan_in)
    assert np.abs(values).max(initial=0) <= bound * 1.0001 + 1e-4, name
    assert len(np.unique(values)) > 0.95 * values.size - 1, name
    if values.size >= 60:
        assert np.std(values) > 0.8 * bound / math.sqrt(3), name
    return None


def replaced_properly(history, who):
    """Units were replaced as `who` says, and what it noted is what was done: incoming weights drawn by the layer's law,
    outgoing ones zero, moments zero exactly there, and nothing else touched."""
    totals = {}
    for edit in history.of(who):
        rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
        for layer, mask in edit.replaced:
            totals[layer] = totals.get(layer, 0) + mask.sum()
            assert not mask.any() or learns(history, edit.before, layer), layer
            incoming, outgoing = history.owned(layer, mask)
            rows.append(incoming)
            columns.append(outgoing)
            statistics = history.owned_buffers(layer, mask)
            assert np.isin(edit.after.buffers[statistics], (0, 1)).all()
        rows, columns = np.concatenate(rows), np.concatenate(columns)
        both = np.union1d(rows, columns)
        only_these(history, edit, both)
        same(edit.after.weights[columns], 0)
        for moments in (edit.after.first, edit.after.second):
            same(moments[both], 0)
        for layer, mask in edit.replaced:
            new_units(history, edit, layer, mask, columns)
    done = history.done().items()
    noted = {where: int(count) for (by, what, where), count in done if (by, what) == (who, "replaced")}
    assert noted == totals and sum(totals.values()) > 0
    return totals


def learns(history, snapshot, layer):
    """Whether new units of the layer would learn: its weight and a consumer's train."""
    readers = [history.name_of(module.weight) for module, _ in history.layers[layer].consumers]
    return history.training(snapshot, f"{layer}.weight") and any(history.training(snapshot, n) for n in readers)


def new_units(history, edit, layer, mask, columns):
    """The incoming weights of the replaced units, but for the columns that were zeroed after they were drawn."""
    if not mask.any():
        return
    for name in (f"{layer}.weight", f"{layer}.bias"):
        old, values = (history.get(snapshot.weights, name)[mask] for snapshot in (edit.before, edit.after))
        zeroed = np.isin(history.where(history.tensors[name])[mask], columns)
        if role(name) == "weight":
            assert (values != old)[~zeroed].all()
        if not zeroed.any():
            initial_law(history, name, values, rows_of_many=True)
    norm = history.layers[layer].norm
    for own, tensor in norm._parameters.items() if norm else ():
        if tensor is not None:
            same(history.get(edit.after.weights, history.name_of(tensor))[mask], float(own == "weight"))


def redo(history):
    totals, edits = replaced_properly(history, "redo"), history.of("redo")
    assert [edit.gradient_step for edit in edits if edit.seen] == [10, 20, 30, 40, 50] and all(e.seen for e in edits)
    assert max(totals.values()) > 1
    for edit in (edit for edit in edits if edit.seen):
        told = dict(edit.replaced)
        for name, layer in history.layers.items():
            if not learns(history, edit.before, name):
                assert name not in told
                continue
            size = np.abs(edit.seen[name])
            size = size.mean((0, *range(2, size.ndim))).reshape(-1, layer.units).mean(0)
            scores = size / size.mean()
            sure = np.abs(scores - SETTINGS["redo"]["tau"]) > 1e-4
            same(told[name][sure], (scores <= SETTINGS["redo"]["tau"])[sure], name)


def cbp(history):
    """How many units are due, and which are old enough, follows from the ages alone."""
    replaced_properly(history, "cbp")
    rate, maturity = SETTINGS["cbp"]["replacement_rate"], SETTINGS["cbp"]["maturity"]
    ages = {name: np.zeros(layer.units, int) for name, layer in history.layers.items()}
    due, trained = dict.fromkeys(ages, 0.0), {name: learns(history, history.first, name) for name in ages}
    assert len(history.of("cbp")) == STEPS
    for edit in history.edits:
        told = dict(edit.replaced)
        for name in ages if (edit.who, edit.hook) == ("cbp", "every_step") else ():
            before, trained[name] = trained[name], learns(history, edit.before, name)
            if trained[name] and not before:  # thawed at a plasticity injection's birth
                ages[name][:] = 0
            ages[name] += trained[name]
            old = (ages[name] > maturity) & trained[name]
            due[name] += old.sum() * rate
            mask = told.get(name, np.zeros(len(old), bool))
            assert mask.sum() == int(due[name]) and not (mask & ~old).any(), name
            due[name] -= int(due[name])
        for name, mask in told.items():
            ages[name][mask] = 0
    found = history.members["cbp"].state_dict()
    for name, layer in found["layers"].items():
        if trained[name]:  # the age of what is frozen means nothing: thawed it begins at 0
            same(layer["ages"], ages[name])
        assert layer["trains"] == trained[name], name


def reset(history):
    edits = [edit for edit in history.of("reset") if edit.reset]
    assert [edit.gradient_step for edit in edits] == [20, 40]
    for edit in edits:
        heads = [name for name in history.own if name.split(".")[0] in HEADS and history.training(edit.before, name)]
        assert sorted(edit.reset) == sorted(heads) and heads
        only_these(history, edit, history.where_are(heads), heads)
        assert not edit.replaced
        for name in heads:
            values = history.get(edit.after.weights, name)
            assert (values != history.get(edit.before.weights, name)).any()
            assert edit.after.steps[history.own[name]] == 0
            for moments in (edit.after.first, edit.after.second):
                same(history.get(moments, name), 0)
            initial_law(history, name, values)
            if len(edit.after.target):
                same(edit.after.target[history.places[name]], edit.after.weights[history.places[name]])


def shrink_perturb(history):
    shrink, perturb = SETTINGS["shrink_perturb"]["shrink"], SETTINGS["shrink_perturb"]["perturb"]
    edits, former = history.of("shrink_perturb", ["every_step"]), None  # softly it is part of the step itself
    assert len(edits) == STEPS
    for edit in history.of("shrink_perturb", ["intervene"]):  # and does not come a second time when the host decides
        only_these(history, edit, [])
    for edit in edits:
        trained = history.trained(edit.before)
        places = history.where_are(trained)
        only_these(history, edit, places, moments=False)
        same(edit.after.buffers, edit.before.buffers)
        fresh = (edit.after.weights - shrink * edit.before.weights.astype(np.float64)) / perturb
        if former is None or edit.gradient_step in CHECKED:
            for name in trained:
                initial_law(history, name, history.get(fresh, name))
        assert former is None or (np.abs(fresh - former)[places] > 1e-5).mean() > 0.5
        former = fresh


def nap(history):
    start = {name: np.linalg.norm(history.get(history.first.weights, f"{name}.weight")) for name in history.layers}
    edits, largest = history.of("nap"), 0.0
    assert len(edits) == STEPS
    for edit in edits:
        touched = []
        for name, layer in history.layers.items():
            own = [f"{name}.weight", f"{name}.bias"]
            if not history.training(edit.before, own[0]):
                continue
            factor = start[name] / np.linalg.norm(history.get(edit.before.weights, own[0]))
            close(np.linalg.norm(history.get(edit.after.weights, own[0])), start[name], 1e-5)
            for tensor in own:
                close(history.get(edit.after.weights, tensor), history.get(edit.before.weights, tensor) * factor)
            for power, statistic in enumerate(history.running(layer), start=1):  # of a batch norm
                old, new = (history.buffer(snapshot.buffers, statistic) for snapshot in (edit.before, edit.after))
                close(new, old * factor**power)
            touched += own
            largest = max(largest, abs(factor - 1))
        only_these(history, edit, history.where_are(touched), moments=False)
    assert largest > 1e-5
    assert all(layer.norm is not None for layer in history.layers.values())


def weight_clip(history):
    edits, clipped = history.of("weight_clip"), 0
    assert len(edits) == STEPS
    for edit in edits:
        limits = np.full(len(edit.before.weights), np.inf)
        for name in history.trained(edit.before):
            if role(name) in ("weight", "bias"):
                limits[history.places[name]] = SETTINGS["weight_clip"]["kappa"] * _bound(history, name)
        close(edit.after.weights, np.clip(edit.before.weights, -limits, limits), 1e-6, 0)
        clipped += (np.abs(edit.before.weights) > limits * 1.00001).sum()
        unclipped = np.abs(edit.before.weights) < limits * 0.99999
        same(edit.after.weights[unclipped], edit.before.weights[unclipped])
        only_these(history, edit, slice(None), moments=False)
    assert clipped > 0


def _bound(history, name):
    """The largest magnitude of the layer's weights at the start; orthogonal: of the uniform law of equal variance."""
    shape = history.shapes[f"{name.rpartition('.')[0]}.weight"]
    fan_in, law = math.prod(shape[1:]), history.config.network.initializer
    if law == "orthogonal":
        gain = {"policy_head": 0.01, "value_head": 1.0, "head": 1.0}.get(name.split(".")[0], math.sqrt(2))
        return gain * math.sqrt(3 / max(shape[0], fan_in))
    return math.sqrt({"torch": 1, "lecun_uniform": 3}[law] / fan_in)


def plasticity_injection(history):
    twins = {name: name.replace(".a.", ".b.") for name in history.own if ".a." in name}
    live = {name: name.replace(".a.", ".live.") for name in twins}
    assert twins and all(name in history.own for name in (*twins.values(), *live.values()))
    born = [edit for edit in history.of("plasticity_injection") if not np.array_equal(*(s.trains for s in edit[3:5]))]
    assert [edit.gradient_step for edit in born] == [BIRTH]
    birth = born[0]
    for name, twin in twins.items():  # equal until then, untrained; the learner is new to Adam
        same(history.get(birth.after.weights, name), history.get(birth.after.weights, twin), name)
        index, one = history.own[name], history.own[live[name]]
        assert birth.after.steps[index] == 0 and not history.get(birth.after.second, name).any()
        assert (birth.before.trains[index], birth.before.trains[one]) == (False, True)
        assert (birth.after.trains[index], birth.after.trains[one]) == (True, False)
        assert not birth.after.trains[history.own[twin]]
    only_these(history, birth, history.where_are(twins), list(twins))
    same(birth.after.weights, birth.before.weights)
    last, kept = history.take(), birth.after.weights.copy()
    since = next(n for n, edit in enumerate(history.edits) if edit is birth) + 1
    for edit in history.edits[since:]:  # whoever replaces units of the encoder cuts them off from all three
        for layer, mask in edit.replaced:
            kept[history.owned(layer, mask)[1]] = 0
    for name in (*twins.values(), *live.values()):
        same(history.get(last.weights, name), history.get(kept, name), name)
    for name, twin in twins.items():
        assert (history.get(last.weights, name) != history.get(last.weights, twin)).any()
        assert not last.trains[history.own[twin]] and last.trains[history.own[name]]
