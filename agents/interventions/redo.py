"""ReDo: dormant units are recycled (Sokar et al. 2023, arXiv 2302.12902, algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from torch import Tensor, nn

from agents.clock import Clock
from agents.interventions.base import Intervention
from agents.interventions.slices import replaceable, trains
from agents.interventions.surgery import Moments, Surgery
from agents.randomness import Generators
from agents.when import When
from plasticity_probes.dormancy import unit_scores


@dataclass(eq=False)
class ReDo(Intervention):
    """Every so often the dormant units of all hidden layers of the online network are replaced at once: all their
    incoming weights anew by each layer's own law, then all their outgoing ones zero (Sokar23, algorithm 1).

    A unit is dormant if its score s_i = E|h_i| / (mean over the layer's units of E|h|), over `samples` observations
    from replay or rollout (and over positions, of a convolution's channel), is at most `tau` (Sokar23, definition 3.1).
    h is what comes out of the nonlinearity. Where that doubles the units (CReLU, Fourier features), E|h_i| is the mean
    over a unit's two columns i and i + n. In a layer that is zero on every sample all units are dormant.

    At tau 0 the function stays as it is, except behind norms over units (LayerNorm), whose statistics new units shift.
    """

    name = "redo"
    needs_hidden_layers = True
    is_surgery = True

    tau: float = 0.1
    """Greatest score of a dormant unit; >= 0 (Sokar23: .1, and .025 for DrQ(eps)); 0 takes the silent units alone."""
    when: When = When("every 1000 gradient steps")
    """Of the recyclings (Sokar23: every 1000 GRADIENT steps; Dohare24's PPO: every 100)."""
    samples: int = 256
    """Observations that the scores are taken over, drawn with replacement from what replay or rollout holds by then
    (Sokar23's code: `batch_size_statistics` 256; Dohare24's PPO: the minibatch of 128). With few, rare units look
    silent."""
    moments: Moments = "zero"
    """What becomes of Adam's moments in the replaced weights and biases: zero (Sokar23's code in Dopamine, which leaves
    those of biases alone), keep, mean (the first 0, the second that of the units that stay), local (0, with a step
    count of their own)."""

    def __post_init__(self) -> None:
        self.require(0 <= self.tau < inf, "tau", ">= 0 and finite")
        self.require(self.samples >= 1, "samples", ">= 1")

    def attach(self, networks: Mapping[str, nn.Module], generators: Generators) -> None:
        """ValueError: a layer's units cannot be replaced one by one, or no layer trains."""
        self._replaceable = replaceable(self.layers, self.name)

    def intervene(self, surgery: Surgery, clock: Clock) -> None:
        captured = surgery.activations(self.samples)
        layers = [layer for layer in self._replaceable if trains(layer)]
        dormant = {layer: scores(captured[layer.name][1], layer.units) <= self.tau for layer in layers}
        surgery.replace(dormant, moments=self.moments, networks=("online",))


def scores(post: Tensor, units: int) -> Tensor:
    """Sokar23's score of each of a layer's units [units], from what comes out of its nonlinearity [samples, units (or a
    multiple), positions...]."""
    copies = post.shape[1] // units
    return unit_scores(post if copies == 1 else post.unflatten(1, (copies, units)).transpose(1, 2))
