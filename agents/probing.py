"""What a prober needs to know of our agents."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agents import losses
from agents.agent import Agent
from agents.kinds import kind_of
from agents.ppo import PPO
from agents.randomness import Generators
from agents.value_agent import ValueAgent, take
from plasticity_probes.subject import Readout, Subject

CONTAINERS = frozenset({"torso", "layers", "convolutions", "dense", "encoder", "linear"})


def subject_of(agent: Agent, generators: Generators) -> Subject:
    """`agent` as a `Prober` measures it; every random number comes from `generators`' streams for probes."""
    return kind_of(agent.config).subject(agent, generators)


def layer_name(name: str) -> str:
    """A layer's name in tags: conv2, head, actor/dense1."""
    parts = [part for part in name.split(".") if part not in CONTAINERS]
    return "/".join(part.removesuffix("_torso") for part in parts)


def subject_of_values(agent: ValueAgent, generators: Generators) -> Subject:
    """One that learns Q-values from a replay."""
    head, drawing, init = agent.head, generators.numpy("probes"), generators.torch("probes' fresh network")

    def draw(samples: int) -> dict[str, Tensor] | None:
        if len(agent.replay) < samples or not agent.replay.ready(samples):
            return None
        return agent.replay.sample(samples, drawing)._asdict()

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        target = agent.target(**{name: batch[name] for name in ("rewards", "discounts", "next_observations")})
        return batch["observations"], batch["actions"], target.regressand, target.values

    def per_example(network: nn.Module, observations: Tensor, actions: Tensor, regressand: Tensor, _: Tensor) -> Tensor:
        return head.loss(take(network(observations), actions), regressand)

    def regression(
        network: nn.Module, observations: Tensor, actions: Tensor, _: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        return head.values(take(network(observations), actions)), values

    readout = Readout("", lambda outputs: head.values(outputs).amax(1), "max_q", per_example, regression)
    return Subject(
        agent.network,
        draw,
        (readout,),
        prepare,
        optimizer=agent.learner.optimization.adam,
        behaviour=head.values,
        fresh=lambda: agent.learner.fresh(init),
        layer_name=layer_name,
    )


class _Recent:
    """Some rows of the last rollout that was learned from."""

    def __init__(self, generator: torch.Generator) -> None:  # on the rollout's device
        self.generator, self.rows = generator, None

    def keep(self, data: dict[str, Tensor]) -> None:
        """Copy at most 1,024 rows, drawn without replacement; the rollout itself is overwritten soon."""
        total = len(data["returns"])
        rows = torch.randperm(total, generator=self.generator, device=self.generator.device)[:1024]
        self.rows = {name: tensor[rows] for name, tensor in data.items()}

    def draw(self, samples: int) -> dict[str, Tensor] | None:
        """The first `samples` of the rows, or as many as there are."""
        return None if self.rows is None else {name: tensor[:samples] for name, tensor in self.rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.rows = state["rows"]


PPO_COLUMNS = ("observations", "actions", "log_probs", "advantages", "returns", "values")


def subject_of_ppo(agent: PPO, generators: Generators) -> Subject:
    """PPO, on the last rollout that it learned from."""
    recent, init = _Recent(generators.torch("probes", agent.device)), generators.torch("probes' fresh network")
    agent.keep_recent = recent.keep

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        advantages = losses.standardize(batch["advantages"]) if agent.config.norm_adv != "off" else batch["advantages"]
        return tuple(({**batch, "advantages": advantages})[name] for name in PPO_COLUMNS)

    def policy_loss(network: nn.Module, *columns: Tensor) -> Tensor:
        batch = dict(zip(PPO_COLUMNS, columns, strict=True))
        log_probs, _ = agent.policy.log_prob_entropy(network, network(batch["observations"])[0], batch["actions"])
        return losses.ppo_policy_loss(log_probs - batch["log_probs"], batch["advantages"], agent.config.clip_coef)

    def value_loss(network: nn.Module, *columns: Tensor) -> Tensor:
        batch = dict(zip(PPO_COLUMNS, columns, strict=True))
        return agent.value_loss(network(batch["observations"])[1], batch)

    def regression(network: nn.Module, *columns: Tensor) -> tuple[Tensor, Tensor]:
        batch = dict(zip(PPO_COLUMNS, columns, strict=True))
        return agent.head.values(network(batch["observations"])[1]), batch["returns"]

    def value_of(given: tuple[Tensor, Tensor]) -> Tensor:
        return agent.head.values(given[1])

    def behaviour(given: tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        return (given[0], agent.network.log_std) if agent.policy.continuous else given[0]

    def fresh() -> nn.Module:
        network = agent.learner.fresh(init)
        if network.normalizer is not None:  # its statistics are of the world, not learned
            network.normalizer.load_state_dict(agent.network.normalizer.state_dict())
        return network

    def name_of(layer: str) -> str:
        """A torso that policy and value share is neither's."""
        return layer_name(layer.removeprefix("actor_torso.") if agent.network.critic_torso is None else layer)

    return Subject(
        agent.network,
        recent.draw,
        (
            Readout("actor", lambda given: given[0].sum(1), "policy_sum", policy_loss, on_policy=True),
            Readout("critic", value_of, "value", value_loss, regression, on_policy=True),
        ),
        prepare,
        optimizer=agent.learner.optimization.adam,
        behaviour=behaviour,
        behaviour_kind="continuous" if agent.policy.continuous else "discrete",
        critic=value_of,
        fresh=fresh,
        layer_name=name_of,
        recent=recent,
    )
