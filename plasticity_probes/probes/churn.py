"""What one update changes on states that it did not see."""

from typing import Any

import torch
from torch import Tensor

from plasticity_probes.churn import greedy_action_churn, policy_churn, value_churn
from plasticity_probes.probe import Curve, Findings, Probe, ProbeInput


class Churn(Probe):
    """How far the first update after a probe moves values, greedy actions and the policy on the reference batch."""

    position = 7
    of_batch = False
    needs = ("behaviour",)
    tags = ("churn",)
    curves = (
        Curve("churn of an update: values", "churn/value"),
        Curve("churn of an update: critic's values", "churn/value/critic"),
        Curve("churn of an update: greedy actions", "churn/greedy_action"),
        Curve("churn of an update: KL of the policy", "churn/policy_kl"),
    )

    def before_update(self, given: ProbeInput) -> tuple[Any, Tensor | None]:
        """Behaviour and the critic's values."""
        subject = given.subject
        with torch.no_grad():
            behaviour = subject.behaviour(given.outputs)
            values = None if subject.critic is None else subject.critic(given.outputs).clone()
            whole = isinstance(behaviour, tuple)
            return (tuple(part.clone() for part in behaviour) if whole else behaviour.clone()), values

    def after_update(self, given: ProbeInput, before: tuple[Any, Tensor | None]) -> Findings:
        """How far they are from those now."""
        (behaviour, values), (new_behaviour, new_values) = before, self.before_update(given)
        found = {}
        if values is not None:
            found["churn/value/critic"] = value_churn(values, new_values)
        kind = given.subject.behaviour_kind
        if kind == "values":
            found["churn/value"] = value_churn(behaviour, new_behaviour)
            found["churn/greedy_action"] = greedy_action_churn(behaviour, new_behaviour)
        else:
            found["churn/policy_kl"] = policy_churn(behaviour, new_behaviour, kind)
        return Findings(found)
