"""A supervised learner with interventions: what an agent is without a world."""

from collections.abc import Callable

import torch
from torch import Tensor

from agents.config import NetworkConfig
from agents.guard import Watch
from agents.heads import ValueHead
from agents.interventions.lifecycle import Configure
from agents.learner import Learner, Step
from agents.losses import squared_error
from agents.networks import MLP, QNetwork, SmallCNN
from agents.randomness import Generators
from agents.value_config import DQNConfig
from experiments.supervised.config import SupervisedConfig
from plasticity_probes import activations, dead_units, dormant_units, linearized_units, pooled_fraction, ranks

Loss = Callable[[Tensor, Tensor], Tensor]
AT_ONCE = 2_000
"""Images that go through the network together where all of them do."""
PROBED = 1_000
"""Images that features are measured on, at most."""


class SupervisedLearner:
    """A network on images uint8 [n, channels, height, width], learning by Adam from minibatches.

    `loss(outputs [batch, outputs], targets [batch, ...])` gives the mean loss.
    """

    def __init__(self, config: SupervisedConfig, images: Tensor, outputs: int, loss: Loss) -> None:
        self.config, self.loss = config, loss
        generators = Generators(config.seed)
        self.order, drawing = generators.torch("order"), generators.torch("surgery's samples")
        self.walking = generators.torch("walk")
        self.images = images
        torso = SmallCNN if config.torso == "small_cnn" else MLP

        def build(configure: Configure, generator: torch.Generator) -> QNetwork:
            network = configure(NetworkConfig(width=config.width, depth=config.depth), "encoder")
            inner = torso(tuple(images.shape[1:]), network, generator)
            return QNetwork(inner, outputs, ValueHead(squared_error), "torch", generator)

        def sample(n: int) -> Tensor:
            return self.images[torch.randint(len(self.images), (n,), generator=drawing)]

        rates = DQNConfig(learning_rate=config.learning_rate)
        self.learner = Learner(rates, build, images[:2], generators, sample, interventions=config.interventions)
        self.network = self.learner.network
        self.watch = Watch(self.learner.optimization, self.learner.state_dict)

    def learn(self, images: Tensor, targets: Tensor, steps: int, walk: bool = False) -> None:
        """`steps` gradient steps on images [n, ...] and targets [n, ...], in shuffled epochs; where `walk`, each is
        replaced by one in a random direction. Raises `NonFiniteError` where something is not finite."""
        self.images = images
        rows: list[Tensor] = []
        for _ in range(steps):
            if not rows:
                rows = list(torch.randperm(len(targets), generator=self.order).split(self.config.batch_size))[::-1]
            chosen = rows.pop()
            self.learner.clock.steps += 1
            before = [p.detach().clone() for p in self.network.parameters()] if walk else []
            self.learner.update(self._learn, (images[chosen], targets[chosen]))
            self._go_elsewhere(before)
        self.watch.flush()

    def _learn(self, batch: tuple[Tensor, Tensor]) -> Step:
        return self.learner.step(batch[0], self._loss_of, batch[1])

    def _loss_of(self, outputs: Tensor, wanted: Tensor) -> tuple[Tensor, None]:
        return self.loss(outputs, wanted), None

    def on_task_change(self) -> None:
        """Another task begins: interventions that wait for that act."""
        self.learner.on_task_change()

    @torch.no_grad()
    def _go_elsewhere(self, before: list[Tensor]) -> None:
        """From `before` as far as the step went in each tensor, in a direction drawn uniformly: Brownian motion."""
        for parameter, start in zip(self.network.parameters(), before, strict=bool(before)):
            direction = torch.randn(start.shape, generator=self.walking)
            parameter.copy_(start + direction * ((parameter - start).norm() / direction.norm()))

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """For all `images`, [n, outputs]."""
        return torch.cat([self.network(part) for part in images.split(AT_ONCE)])

    def features(self, images: Tensor) -> dict[str, float]:
        """Shares of units over all hidden layers, and the last layer's effective rank, raw and centred."""
        found = list(activations(self.network, images[:PROBED]).values())
        useless = [torch.maximum(dead_units(layer.post), linearized_units(layer.pre)) for layer in found]
        rank = ranks(found[-1].post.flatten(1))
        return {
            "features/dead_or_linearised": pooled_fraction(useless).item(),
            "features/dormant": pooled_fraction([dormant_units(layer.post, 0.1) for layer in found]).item(),
            "features/effective_rank": rank["raw/effective_rank"].item(),
            "features/effective_rank_centred": rank["centred/effective_rank"].item(),
            "weights/norm": torch.cat([p.detach().flatten() for p in self.network.parameters()]).norm().item(),
        }
