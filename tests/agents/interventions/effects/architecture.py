"""What the architecture is, and what the values in it obey."""

import functools
import math
from contextlib import nullcontext

import numpy as np
import torch

from agents.networks import learning
from tests.agents.helpers import NoiseWorld
from tests.agents.interventions.effects.runs import STEPS
from tests.agents.interventions.effects.settings import SETTINGS, close, only_these, same


def inside(history, training=False):
    """What goes into and comes out of each module for fresh observations, and what the layers hold before and after the
    nonlinearity, by name; with `training` as in an update, on the twin."""
    observations = torch.from_numpy(NoiseWorld(history.agent.spaces, 8, seed=5).observations)
    network, now, found = history.network, history.take(), {}
    if training:
        network = history.twin_with(now.weights, now.buffers)
    handles = [
        module.register_forward_hook(functools.partial(_keep, found, name)) for name, module in network.named_modules()
    ]
    with torch.no_grad(), learning(network) if training else nullcontext():
        captured = history.lifecycle.capture(network, observations)
    for handle in handles:
        handle.remove()
    return found, {name: tuple(map(_in_full, pair)) for name, pair in captured.items()}


def _keep(found, name, module, given, out):
    if isinstance(given[0], torch.Tensor) and isinstance(out, torch.Tensor):
        found[name] = (_in_full(given[0]), _in_full(out))


def _in_full(tensor):
    return tensor.double().numpy()


def activation(history):
    assert {layer.activation for layer in history.layers.values()} == {"tanh"}
    for pre, post in inside(history)[1].values():
        close(post, np.tanh(pre))


def crelu(history):
    for name, layer in history.layers.items():
        assert layer.activation == "crelu"
        assert layer.units == (32 if "conv" in name else 8)  # half of what it is without
        for consumer, owner in layer.consumers:
            assert history.shapes[history.name_of(consumer.weight)][1] == len(owner) and set(owner.tolist()) >= {0, 7}
            assert (np.bincount(owner.numpy()) == len(owner) / layer.units).all()
    for pre, post in inside(history)[1].values():
        close(post, np.concatenate([np.maximum(pre, 0), np.maximum(-pre, 0)], 1))


def standardized(z, axes, weight, bias):
    mean, variance = z.mean(axes, keepdims=True), z.var(axes, keepdims=True)
    fits = [1, -1, *[1] * (z.ndim - 2)]
    return (z - mean) / np.sqrt(variance + 1e-5) * weight.reshape(fits) + bias.reshape(fits)


def layer_norm(history):
    found, captured = inside(history)
    for name, layer in history.layers.items():
        z = found[name][1]
        gain, bias = (tensor.detach().double().numpy() for tensor in (layer.norm.weight, layer.norm.bias))
        expected = standardized(z, tuple(range(1, z.ndim)), gain, bias)
        close(captured[name][0], expected, 1e-3, 1e-4, name)


def batch_norm(history):
    live, captured = inside(history, training=True)
    now = history.take().buffers
    for name, layer in history.layers.items():
        z, axes = live[name][1], (0, *range(2, live[name][1].ndim))
        gain, bias = (tensor.detach().double().numpy() for tensor in (layer.norm.weight, layer.norm.bias))
        close(captured[name][0], standardized(z, axes, gain, bias), 1e-3, 1e-4, name)
        prefix = next(n for n, module in history.network.named_modules() if module is layer.norm)
        mean, variance = (history.buffer(now, f"{prefix}.running_{kind}") for kind in ("mean", "var"))
        norm = dict(history.twin.named_modules())[prefix]  # the update's forward pass moves them by a tenth
        close(norm.running_mean, 0.9 * mean + 0.1 * z.mean(axes), 1e-4, 1e-5)
        close(norm.running_var, 0.9 * variance + 0.1 * z.var(axes, ddof=1), 1e-4, 1e-5)
        steps = int(history.buffer(now, f"{prefix}.num_batches_tracked"))
        assert steps == STEPS and (mean != 0).any() and (variance != 1).any()
    acting, captured = inside(history)
    for name, layer in history.layers.items():
        norm, fits = layer.norm, [1, -1, *[1] * (acting[name][1].ndim - 2)]
        gain, bias, mean, variance = (
            tensor.detach().double().numpy().reshape(fits)
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        close(captured[name][0], (acting[name][1] - mean) / np.sqrt(variance + 1e-5) * gain + bias, 1e-3, 1e-4, name)


def dropout(history):
    rate, (dropped, alive, right) = SETTINGS["dropout"]["rate"], zip(*history.masks, strict=True)
    assert all(right) and len(set(dropped)) > 1
    assert abs(sum(dropped) / sum(alive) - rate) < 5 * math.sqrt(rate * (1 - rate) / sum(alive))
    found, _ = inside(history)
    outside = [pair for name, pair in found.items() if "dropout" in name.rpartition(".")[2]]
    assert len(outside) == len(history.layers)
    for given, out in outside:
        same(given, out)


def spectral_norm(history):
    scaled = [name for name in history.buffer_places if name.endswith(".u")]
    assert scaled
    for edit in history.of("spectral_norm"):  # one power iteration after every gradient step
        only_these(history, edit, [])
        for name in scaled:
            u, v = (history.buffer(edit.before.buffers, f"{name[:-1]}{which}") for which in "uv")
            matrix = _scaled_weight(history, edit.before.weights, name)
            if matrix.any():  # whoever replaces all units of the encoder leaves nothing of a frozen layer
                v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
                u = matrix @ v / np.linalg.norm(matrix @ v)
            close(history.buffer(edit.after.buffers, name), u, absolute=1e-5)
            close(history.buffer(edit.after.buffers, f"{name[:-1]}v"), v, absolute=1e-5)
    assert len(history.of("spectral_norm")) == STEPS
    now, (found, _) = history.take(), inside(history)
    for name in scaled:
        matrix = _scaled_weight(history, now.weights, name)
        u, v = (history.buffer(now.buffers, f"{name[:-1]}{which}") for which in "uv")
        sigma = u @ matrix @ v
        given, (_, out) = found[name.removesuffix(".u")][0], found[_scaled_layer(name)]
        bias = history.get(now.weights, f"{_scaled_layer(name)}.bias")
        close(out, given @ (matrix / (sigma if matrix.any() else 1)).T + bias, 1e-4, 1e-5)
        # never more than the largest singular value; less where others have just redrawn weights, and where the largest
        # ones are almost equal (.638 and .629 in one of these runs), but on the way there
        largest = np.linalg.svd(matrix)[1][0]
        assert sigma <= largest * (1 + 1e-5)
        if matrix.any():
            for _ in range(300):
                v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
                u = matrix @ v / np.linalg.norm(matrix @ v)
            assert abs(u @ matrix @ v / largest - 1) < 0.01


def _scaled_layer(buffer):
    """spectral2.u stands before dense2."""
    return buffer.removesuffix(".u").replace("spectral", "dense")


def _scaled_weight(history, weights, buffer):
    matrix = history.get(weights, f"{_scaled_layer(buffer)}.weight")
    return matrix.reshape(len(matrix), -1)
