"""PopArt: targets are standardised, and the value head is rescaled so that its outputs are preserved."""

from collections.abc import Sequence
from dataclasses import dataclass

from agents.config import AgentConfig, require
from agents.heads import PopArtHead, ValueHead
from agents.interventions.base import Intervention
from agents.kinds import kind_of


@dataclass(eq=False)
class PopArt(Intervention):
    """Preserving outputs precisely while adaptively rescaling targets (van Hasselt et al. 2016, arXiv 1602.07714;
    Hessel et al. 2019), with one mean mu and scale sigma for the value head.

    For each batch of targets g: mu and nu move by the share beta_t towards mean(g) and mean(g^2), sigma is
    sqrt(nu - mu^2) held within [1e-4, 1e6] (Hessel19), then weight and bias of the head become w * sigma / sigma' and
    (sigma * b + mu - mu') / sigma', Adam's moments staying as they are, so that every output is what it was
    (1602.07714, proposition 1). The loss compares outputs and targets as (x - mu) / sigma. Networks give values in
    units of the return; a target network has its own mu and sigma, copied with its weights.

    beta_t = step_size / (1 - (1 - step_size)^t), as Adam corrects its bias: 1 at the first batch, whose statistics are
    so taken over as they are and not mixed with a made-up start. nu is kept as the variance nu - mu^2, moved by an
    equal rule, since the difference of the two loses all digits where the mean is large. A batch with a target that is
    not finite changes nothing.
    """

    name = "popart"
    # the head's weights grow with the targets' scale falling: clipped, they would not keep the outputs
    conflicts = frozenset({"weight_clip"})

    step_size: float = 3e-4
    """Step size of the statistics per batch of targets, in (0, 1]: DQN has one a gradient step, PPO one an update
    phase. Hessel19: 3e-4."""

    def __post_init__(self) -> None:
        self.require(0 < self.step_size <= 1, "step_size", "in (0, 1]")
        self.require(self.only in ("all", "critic"), "only", "all or critic: it acts on the value head")

    def check(self, agent: AgentConfig, others: Sequence[Intervention]) -> None:
        """Refuse value heads that do not learn by plain regression, and targets that move by degrees."""
        beside = "beside popart"
        kind = kind_of(agent)
        if not kind.regressions:
            raise ValueError(f"popart: needs a value head that is learned by regression, {kind.name}'s is not")
        loss = getattr(agent, kind.value_loss)
        require(loss in kind.regressions, kind.value_loss, loss, f"{' or '.join(kind.regressions)} {beside}")
        if kind.target_network:
            why = "the mean of two heads with scales of their own is no head's output"
            require(agent.tau == 1, "tau", agent.tau, f"1 {beside}: {why}")
        clips = getattr(agent, "clip_vloss", False)
        require(not clips, "clip_vloss", clips, f"off {beside}: it clips in units of return")

    def value_head(self, head: ValueHead) -> ValueHead:
        """The same regression on standardised values and targets."""
        return PopArtHead(head.loss, self.step_size, self.name)
