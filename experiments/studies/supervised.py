"""A supervised learner with interventions: what an agent is without a world."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.config import AdamConfig, NetworkConfig
from agents.guard import Watch
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import Lifecycle
from agents.networks import MLP, QNetwork, learning
from agents.optimization import Optimization
from agents.randomness import Generators
from plasticity_probes import activations, dead_units, linearized_units, pooled_fraction, ranks

Loss = Callable[[Tensor, Tensor], Tensor]


class Learner:
    """An MLP (256-256 ReLU) on images uint8 [n, 1, height, width], learning by Adam from minibatches.

    `loss(outputs [batch, outputs], labels [batch, ...])` gives the mean loss. `interventions` are copied.
    """

    def __init__(
        self,
        images: Tensor,
        outputs: int,
        loss: Loss,
        interventions: Sequence[Intervention],
        learning_rate: float,
        seed: int,
    ) -> None:
        self.images, self.loss = images, loss
        generators = Generators(seed)
        self.order, drawing = generators.torch("order"), generators.torch("surgery's samples")
        self.lifecycle = Lifecycle(interventions)
        init = generators.torch("init")
        config = self.lifecycle.configure(NetworkConfig(width=256, depth=2), "encoder")
        torso = MLP(tuple(images.shape[1:]), config, init)
        network = QNetwork(torso, outputs, 1, "torch", init)
        self.network = self.lifecycle.build(network, init).eval()
        groups = self.lifecycle.attach({"online": self.network}, images[:2], generators.torch("interventions"))
        self.optimization = Optimization(groups, learning_rate, AdamConfig(), 0.0, self.network)
        self.optimization.guard.hold(self.lifecycle.unsettled())
        self.watch = Watch(self.optimization, self.state_dict)

        def sample(n: int) -> Tensor:
            return images[torch.randint(len(images), (n,), generator=drawing)]

        self.lifecycle.operate(self.optimization.adam, generators.torch("surgery"), sample)

    def learn(self, labels: Tensor, steps: int, batch_size: int = 128) -> None:
        """`steps` gradient steps on labels [n, ...], in shuffled epochs. Raises `NonFiniteError` where a loss or a
        gradient is not finite, or, after the last step, a result."""
        rows: list[Tensor] = []
        for _ in range(steps):
            if not rows:
                rows = list(torch.randperm(len(labels), generator=self.order).split(batch_size))[::-1]
            chosen = rows.pop()
            self.optimization.begin()
            observations, captured = self.images[chosen], self.lifecycle.capturing()
            with learning(self.network):
                outputs = self.network(observations, captured)
            forward = self.lifecycle.forward(observations, captured)
            penalties = self.lifecycle.penalties(forward).values()
            self.optimization.step(sum(penalties, start=self.loss(outputs, labels[chosen])))
            done = self.optimization.gradient_steps
            self.lifecycle.after_step(forward, done, steps=done)
        self.watch.flush()

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, and what the interventions remember."""
        return {
            "network": self.network.state_dict(),
            "optimization": self.optimization.state_dict(),
            "interventions": self.lifecycle.state_dict(),
        }

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """For all images, [n, outputs]."""
        return self.network(self.images)

    def features(self) -> dict[str, float]:
        """Share of dead or linearised units over both layers, and the last layer's effective rank, raw and centred."""
        found = list(activations(self.network, self.images).values())
        useless = [torch.maximum(dead_units(layer.post), linearized_units(layer.pre)) for layer in found]
        rank = ranks(found[-1].post.flatten(1))
        return {
            "dead or linearised": pooled_fraction(useless).item(),
            "effective rank, raw": rank["raw/effective_rank"].item(),
            "effective rank, centred": rank["centred/effective_rank"].item(),
        }
