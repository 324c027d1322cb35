"""What copies of the network can still learn."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plasticity_probes.probe import Findings, Probe, ProbeInput
from plasticity_probes.trainability import held_out_accuracy, random_function_labels, trainability


class Trainability(Probe):
    """Refits of copies: error on new targets beside fresh networks' (Lyle23), and held-out accuracy on the labels of a
    random network, with a fresh optimizer, the carried one, and from a fresh network."""

    position = 11
    cost = "offline"
    needs = ("fresh", "optimizer")
    tags = ("trainability", "refit_accuracy")

    def measure(self, given: ProbeInput) -> Findings:
        """Thousands of gradient steps; `given.refits` says how many."""
        subject, settings = given.subject, given.refits
        group = subject.optimizer.param_groups[0]
        constants = {"lr": float(group["lr"]), "betas": group["betas"], "eps": group["eps"]}

        def optimizer(parameters: Any) -> torch.optim.Adam:
            return torch.optim.Adam(parameters, **constants)

        def fresh(_: torch.Generator) -> nn.Module:
            return given.called(subject.fresh())

        found = Findings()
        for readout in subject.readouts:
            by_target = trainability(
                given.called(),
                given.batch["observations"],
                optimizer,
                fresh,
                output=lambda outputs, readout=readout: readout.output(outputs).unsqueeze(1),
                targets=settings.targets,
                steps=settings.steps,
                progress=settings.progress,
            )
            found.scalars |= {readout.tag(f"trainability/{name}"): value.mean() for name, value in by_target.items()}
        if subject.behaviour is not None:
            found.scalars |= self._held_out(given, fresh, optimizer)
        return found

    def _held_out(self, given: ProbeInput, fresh: Callable, optimizer: Callable) -> dict[str, Tensor]:
        def logits(outputs: Any) -> Tensor:
            behaviour = given.subject.behaviour(outputs)
            return behaviour[0] if isinstance(behaviour, tuple) else behaviour

        observations = given.batch["observations"]
        state = given.subject.optimizer.state_dict()
        accuracies = held_out_accuracy(
            given.called(),
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
