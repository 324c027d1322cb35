"""A supervised learner with interventions: what an agent is without a world."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agents.config import NetworkConfig
from agents.guard import Watch
from agents.heads import ValueHead
from agents.interventions.base import Intervention
from agents.interventions.lifecycle import Configure
from agents.learner import Learner, Step
from agents.losses import squared_error
from agents.networks import MLP, QNetwork
from agents.randomness import Generators
from agents.value_config import DQNConfig
from plasticity_probes import activations, dead_units, linearized_units, pooled_fraction, ranks

Loss = Callable[[Tensor, Tensor], Tensor]


class SupervisedLearner:
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

        def build(configure: Configure, generator: torch.Generator) -> QNetwork:
            torso = MLP(tuple(images.shape[1:]), configure(NetworkConfig(width=256, depth=2), "encoder"), generator)
            return QNetwork(torso, outputs, ValueHead(squared_error), "torch", generator)

        def sample(n: int) -> Tensor:
            return images[torch.randint(len(images), (n,), generator=drawing)]

        rates = DQNConfig(learning_rate=learning_rate)
        self.learner = Learner(rates, build, images[:2], generators, sample, interventions=interventions)
        self.network = self.learner.network
        self.watch = Watch(self.learner.optimization, self.learner.state_dict)

    def learn(self, labels: Tensor, steps: int, batch_size: int = 128) -> None:
        """`steps` gradient steps on labels [n, ...], in shuffled epochs. Raises `NonFiniteError` where a loss or a
        gradient is not finite, or, after the last step, a result."""
        rows: list[Tensor] = []
        for _ in range(steps):
            if not rows:
                rows = list(torch.randperm(len(labels), generator=self.order).split(batch_size))[::-1]
            chosen = rows.pop()
            self.learner.clock.steps += 1
            self.learner.update(self._learn, (self.images[chosen], labels[chosen]))
        self.watch.flush()

    def _learn(self, batch: tuple[Tensor, Tensor]) -> Step:
        return self.learner.step(batch[0], self._loss_of, batch[1])

    def _loss_of(self, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, None]:
        return self.loss(outputs, wanted), None

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
