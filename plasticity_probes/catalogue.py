"""The probes by name, as the schedule runs them: from a `ProbeInput` to scalars, histograms and pictures.

Tags name the definition: ``dormant_fraction/tau=0.025/conv2``, ``srank/raw/dense1``, ``ntk/max_q/rank``. A layer's
value carries the layer's name, ``all`` pools the units of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plasticity_probes import curvature, dormancy, gradients, norms, rank, targets
from plasticity_probes.adam import adam_statistics
from plasticity_probes.ntk import ntk, ntk_statistics
from plasticity_probes.subject import Readout, Subject
from plasticity_probes.trainability import held_out_accuracy, random_function_labels, trainability
from plasticity_probes.units import HiddenLayer, activations

TAUS = (0.025, 0.1)
"""Thresholds of dormancy (Sokar23 use .1 and .025)."""
SMOOTH = ("tanh", "gelu", "silu", "leaky_relu", "elu", "sigmoid", "softplus")


@dataclass
class Findings:
    """What probes found; nothing has been read back from the device."""

    scalars: dict[str, Tensor] = field(default_factory=dict)
    """0-d tensors by tag."""
    histograms: dict[str, Tensor] = field(default_factory=dict)
    """Vectors by tag."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Matrices [rows, columns] in [-1, 1] by tag."""

    def merge(self, group: str, other: Findings) -> None:
        """Take over `other`, its tags under `group`."""
        for name in ("scalars", "histograms", "images"):
            getattr(self, name).update({f"{group}/{tag}": value for tag, value in getattr(other, name).items()})


@dataclass(frozen=True)
class RefitSettings:
    """How long the refits of "trainability" are; Lyle23's own numbers."""

    targets: int = 10
    steps: int = 2000
    progress: Callable[[int, int], None] | None = None
    """progress(done, total), after each gradient step of one refit probe."""


@dataclass
class ProbeInput:
    """A network and a batch, with what several probes need computed once."""

    subject: Subject
    network: nn.Module
    batch: Mapping[str, Tensor]
    layers: list[HiddenLayer]
    heavy_samples: int
    initial: Mapping[str, Tensor]
    previous: Mapping[str, Tensor]
    pictures: bool
    refits: RefitSettings = RefitSettings()
    reference: bool = False
    """Whether the batch is the frozen one."""
    tell: Callable[[str], None] = lambda sentence: None
    """Told what is wrong with a measurement that is made all the same."""
    outputs: Any = None
    """What the forward pass for `activations` gave; None before it."""

    @cached_property
    def prepared(self) -> tuple[Tensor, ...]:
        """The batch as the readouts take it."""
        with torch.no_grad():
            return self.subject.prepare(dict(self.batch))

    @cached_property
    def few(self) -> tuple[Tensor, ...]:
        """The first examples of it, for the heavy probes."""
        return tuple(part[: self.heavy_samples] for part in self.prepared)

    @cached_property
    def activations(self) -> dict[str, Any]:
        """Pre- and post-nonlinearity tensors by layer name (that of tags)."""
        observations, kept = self.batch["observations"], []

        def forward(network: nn.Module, observations: Tensor) -> Any:
            kept.append(self.subject.forward(network, observations))
            return kept[-1]

        found = activations(self.network, observations, forward, self.layers)
        self.outputs = kept[-1]
        return {self.subject.layer_name(name): tensors for name, tensors in found.items()}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Each layer's nonlinearity by the name of tags."""
        return {self.subject.layer_name(layer.name): layer.activation for layer in self.layers}

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """The last hidden layers' activations [samples, units]: those that no other hidden layer consumes."""
        producers = {layer.producer for layer in self.layers}
        last = [layer for layer in self.layers if not any(module in producers for module, _ in layer.consumers)]
        names = [self.subject.layer_name(layer.name) for layer in last]
        return {name: self.activations[name].post.flatten(1) for name in names if name in self.activations}


def units(given: ProbeInput) -> Findings:
    """Dormant, dead, inactive and linearised units of every hidden layer, and of all layers pooled."""
    found = Findings()
    masks: dict[str, dict[str, Tensor]] = {}
    for name, tensors in given.activations.items():
        kind, post = given.kinds[name], tensors.post
        if kind == "crelu":  # unit i is positive in one half or in the other
            post = post.narrow(1, 0, post.shape[1] // 2) + post.narrow(1, post.shape[1] // 2, post.shape[1] // 2)
        for tau in TAUS:
            masks.setdefault(f"dormant_fraction/tau={tau}", {})[name] = dormancy.dormant_units(post, tau)
        if kind in ("relu", "crelu"):  # smooth units are never 0
            masks.setdefault("inactive_fraction", {})[name] = dormancy.inactive_units(post)
        if kind in ("relu", "crelu", "tanh"):
            masks.setdefault("dead_fraction", {})[name] = dormancy.dead_units(
                post, "tanh" if kind == "tanh" else "relu"
            )
        if kind == "relu" or kind in SMOOTH:
            linear = dormancy.linearized_units(tensors.pre, "relu" if kind == "relu" else "smooth")
            masks.setdefault("linearized_fraction", {})[name] = linear
        if given.pictures:
            found.histograms[f"unit_scores/{name}"] = dormancy.unit_scores(post)
    for probe, by_layer in masks.items():
        found.scalars |= {f"{probe}/{name}": mask.mean() for name, mask in by_layer.items()}
        found.scalars[f"{probe}/all"] = dormancy.pooled_fraction(by_layer)
    return found


def ranks(given: ProbeInput) -> Findings:
    """Every rank of the last hidden layers' features, raw and centred."""
    found = Findings()
    for name, features in given.features.items():
        samples, width = features.shape
        if samples < width:
            given.tell(f"ranks of {name}: {width} features, but only {samples} examples, which no rank can exceed")
        for definition, value in rank.ranks(features).items():
            centring, which = definition.split("/")
            found.scalars[f"{which}/{centring}/{name}"] = value
        if given.pictures:
            found.histograms[f"singular_values/raw/{name}"] = rank.singular_values(features)
    return found


def weights(given: ProbeInput) -> Findings:
    """Norm, mean size and changes of the weights, and how far a step turns them."""
    network = given.network
    measured = {
        "weight_norm": norms.weight_norms(network),
        "mean_abs_weight": norms.mean_abs_weight(network),
        "weight_change/since_last_probe": norms.weight_change(network, given.previous),
        "weight_change/since_init": norms.weight_change(network, given.initial),
    }
    if given.subject.optimizer is not None:
        rate = given.subject.optimizer.param_groups[0]["lr"]
        measured["effective_learning_rate/adam"] = norms.effective_learning_rate(network, float(rate))
    return Findings({f"{probe}/{_named(given, name)}": v for probe, by in measured.items() for name, v in by.items()})


def preactivations(given: ProbeInput) -> Findings:
    """Mean and variance of the preactivations over samples, and their spread over units."""
    return Findings(
        {
            f"preactivation/{statistic}/{name}": value
            for name, tensors in given.activations.items()
            for statistic, value in dormancy.preactivation_statistics(tensors.pre).items()
        }
    )


def values(given: ProbeInput) -> Findings:
    """Predictions, targets and their errors, in units of the return."""
    found = Findings()
    for readout in given.subject.readouts:
        if readout.regression is None or (readout.on_policy and given.reference):
            continue
        with torch.no_grad():
            predictions, wanted = readout.regression(given.network, *given.prepared)
        mean, std = targets.target_statistics(wanted)
        found.scalars |= {_tag(readout, "target/mean"): mean, _tag(readout, "target/std"): std}
        found.scalars[_tag(readout, "prediction/mean")] = predictions.detach().float().mean()
        errors = targets.td_error_statistics(predictions, wanted)
        found.scalars |= {_tag(readout, f"td_error/{name}"): value for name, value in errors.items()}
    return found


def adam(given: ProbeInput) -> Findings:
    """Adam's moments: how large its steps are."""
    if given.subject.optimizer is None:
        raise ValueError("optimizer = None: must be given")
    return Findings({f"adam/{name}": value for name, value in adam_statistics(given.subject.optimizer).items()})


def gradient(given: ProbeInput) -> Findings:
    """Gradient norms by layer, and how the gradients of single examples agree."""
    found = Findings()
    for readout in given.subject.readouts:
        if readout.losses is None or (readout.on_policy and given.reference):
            continue
        names, parameters = zip(*((n, p) for n, p in given.network.named_parameters() if p.requires_grad), strict=True)
        with torch.enable_grad():
            loss = readout.losses(given.network, *given.prepared).mean()
            wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = {name: value for name, value in zip(names, wanted, strict=True) if value is not None}
        for name, value in gradients.gradient_norms(given.network, whole).items():
            found.scalars[_tag(readout, f"gradient_norm/{_named(given, name)}")] = value
        gram = gradients.gradient_gram(given.network, readout.losses, given.few, vectorized=_vectorized(given))
        cosines = gradients.cosine_matrix(gram)
        found.scalars[_tag(readout, "gradient_covariance/negative_share")] = gradients.negative_share(cosines)
        if given.pictures:
            found.images[_tag(readout, "gradient_covariance")] = _clustered(cosines)
    return found


def tangent_kernel(given: ProbeInput) -> Findings:
    """The eNTK of each readout's named output."""
    found = Findings()
    observations = given.batch["observations"][: given.heavy_samples]
    for readout in given.subject.readouts:
        module = _Called(given.network, given.subject.forward)
        kernel = ntk(module, observations, readout.output, vectorized=_vectorized(given))
        for name, value in ntk_statistics(kernel).items():
            found.scalars[_tag(readout, f"ntk/{readout.output_name}/{name}")] = value
        if given.pictures:
            found.images[_tag(readout, f"ntk/{readout.output_name}")] = _clustered(gradients.cosine_matrix(kernel))
    return found


def sharpness(given: ProbeInput) -> Findings:
    """The Hessian's largest eigenvalue (LA) and the one of largest magnitude (LM), for each readout's mean loss."""
    found = Findings()
    parameters = [parameter for parameter in given.network.parameters() if parameter.requires_grad]
    for readout in given.subject.readouts:
        if readout.losses is None or (readout.on_policy and given.reference):
            continue

        def loss(readout: Readout = readout) -> Tensor:
            return readout.losses(given.network, *given.few).mean()

        for which in ("LA", "LM"):
            result = curvature.hessian_eigenvalues(loss, parameters, which=which)
            found.scalars[_tag(readout, f"hessian_eigenvalue/{which}")] = result.values[0]
    return found


def refits(given: ProbeInput) -> Findings:
    """Refits of copies: error on new targets beside fresh networks' (Lyle23), and held-out accuracy on the labels of a
    random network, with a fresh optimizer, the carried one, and from a fresh network."""
    subject, settings = given.subject, given.refits
    if subject.fresh is None or subject.optimizer is None:
        raise ValueError("fresh network or optimizer = None: both must be given")
    network = _Called(given.network, subject.forward)
    observations = given.batch["observations"]
    group = subject.optimizer.param_groups[0]
    constants = {"lr": float(group["lr"]), "betas": group["betas"], "eps": group["eps"]}

    def optimizer(parameters: Any) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, **constants)

    def fresh(_: torch.Generator) -> nn.Module:
        return _Called(subject.fresh(), subject.forward)

    found = Findings()
    for readout in subject.readouts:
        by_target = trainability(
            network,
            observations,
            optimizer,
            fresh,
            output=lambda outputs, readout=readout: readout.output(outputs).unsqueeze(1),
            targets=settings.targets,
            steps=settings.steps,
            progress=settings.progress,
        )
        found.scalars |= {_tag(readout, f"trainability/{name}"): value.mean() for name, value in by_target.items()}
    if subject.behaviour is not None:
        found.scalars |= _held_out(given, network, fresh, optimizer)
    return found


def _held_out(given: ProbeInput, network: nn.Module, fresh: Callable, optimizer: Callable) -> dict[str, Tensor]:
    def logits(outputs: Any) -> Tensor:
        behaviour = given.subject.behaviour(outputs)
        return behaviour[0] if isinstance(behaviour, tuple) else behaviour

    observations = given.batch["observations"]
    state = given.subject.optimizer.state_dict()
    accuracies = held_out_accuracy(
        network,
        observations,
        random_function_labels(fresh(torch.Generator()), observations, logits),
        optimizer,
        optimizer_state=state if state["state"] else None,
        fresh_network=fresh,
        steps=given.refits.steps,
        output=logits,
        progress=given.refits.progress,
    )
    return {f"refit_accuracy/{name}": value for name, value in accuracies.items()}


PROBES: dict[str, Callable[[ProbeInput], Findings]] = {
    "units": units,
    "ranks": ranks,
    "weights": weights,
    "preactivations": preactivations,
    "values": values,
    "adam": adam,
    "gradients": gradient,
    "ntk": tangent_kernel,
    "sharpness": sharpness,
    "trainability": refits,
}
LIGHT = ("units", "ranks", "weights", "preactivations", "values", "adam", "churn")
HEAVY = ("gradients", "ntk")
HEAVIEST = ("sharpness", "trainability")
"""Not among "all"; where they are named they run when heavy ones do."""
WITHOUT_BATCH = ("weights", "adam", "churn")
OF_THE_NETWORK = ("units", "ranks", "preactivations", "ntk")
"""What a freshly initialised network is measured by too: it has no learning behind it, only a shape."""


class _Called(nn.Module):
    """A network that is called as its subject calls it."""

    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, observations: Tensor) -> Any:
        return self._forward(self.network, observations)


def _clustered(cosines: Tensor) -> Tensor:
    order = gradients.cluster_order(cosines)
    return cosines.cpu()[order][:, order]


def _tag(readout: Readout, tag: str) -> str:
    return f"{tag}/{readout.name}" if readout.name else tag


def _named(given: ProbeInput, parameter: str) -> str:
    """A parameter's name in tags: its layer's, and what it is of it."""
    layer, dot, part = parameter.rpartition(".")
    return f"{given.subject.layer_name(layer)}.{part}" if dot else parameter


def _vectorized(given: ProbeInput) -> bool:
    """Convolutions on a CPU run faster one example at a time."""
    convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in given.network.modules())
    return not convolutional or next(given.network.parameters()).device.type != "cpu"
