"""Probes in a run: when they are taken, where their batches are kept, and how TensorBoard lays them out."""

from collections.abc import Callable

import torch
from torch import Tensor

from agents.ppo import PPO
from agents.probing import learner_of
from agents.randomness import Generators
from agents.value_agent import ValueAgent
from experiments.config import TrainConfig
from experiments.run_directory import RunDirectory
from plasticity_probes.catalogue import Findings
from plasticity_probes.schedule import Prober

REFERENCE, CURRENT = "reference.pt", "current.pt"

LAYOUT = {
    "returns": {
        "episodic return": ["Multiline", [r"^charts/episodic_return$"]],
        "return by task": ["Multiline", [r"^tasks/(mean|last_tenth)_return$"]],
        "task": ["Multiline", [r"^tasks/index$"]],
    },
    "plasticity (reference batch)": {
        "dormant fraction, tau .025": ["Multiline", [r"^probes_(reference|fresh)/dormant_fraction/tau=0.025/all$"]],
        "dead fraction": ["Multiline", [r"^probes_(reference|fresh)/dead_fraction/all$"]],
        "linearised fraction": ["Multiline", [r"^probes_(reference|fresh)/linearized_fraction/all$"]],
        "effective rank, raw": ["Multiline", [r"^probes_(reference|fresh)/effective_rank/raw/.*$"]],
        "effective rank, centred": ["Multiline", [r"^probes_(reference|fresh)/effective_rank/centred/.*$"]],
        "srank, centred": ["Multiline", [r"^probes_(reference|fresh)/srank/centred/.*$"]],
        "weight norm": ["Multiline", [r"^probes/weight_norm/total$"]],
        "weight change since the last probe": ["Multiline", [r"^probes/weight_change/since_last_probe/total$"]],
        "Adam's update ratio": ["Multiline", [r"^probes/adam/update_ratio$"]],
        "churn of one update": ["Multiline", [r"^probes/churn/.*$"]],
    },
    "targets": {
        "target mean": ["Multiline", [r"^targets/mean$"]],
        "target standard deviation": ["Multiline", [r"^targets/std$"]],
        "share of targets clipped by the support": ["Multiline", [r"^targets/clipped_share$"]],
        "TD error, mean size": ["Multiline", [r"^losses/td_error$"]],
    },
}
"""The first page of TensorBoard's custom scalars."""


class Probing:
    """The prober of a run. What its methods return goes to the logger as it is."""

    def __init__(
        self, config: TrainConfig, agent: ValueAgent | PPO, directory: RunDirectory, tell: Callable[[str], None]
    ) -> None:
        self.folder = directory.path / "probes"
        self.steps = config.run.steps
        self.prober: Prober | None = None
        if config.run.probes in ((), ("none",)):
            return
        settings = config.probe
        self.prober = Prober(
            learner_of(agent, Generators(config.run.seed)),
            config.run.probes,
            config.probe_every,
            settings.heavy_factor,
            settings.samples,
            settings.heavy_samples,
            tell=tell,
        )

    def tick(self, step: int) -> Findings | None:
        """Probes that are due by the steps; at the run's last step they are `last`'s."""
        if self.prober is None or step >= self.steps or not self.prober.due(step):
            return None
        return self._measure(step, boundary=False)

    def at_boundary(self, step: int) -> Findings | None:
        """Probes of a task that ends now."""
        return self._measure(step, boundary=True) if self.prober is not None and step else None

    def after_update(self) -> Findings | None:
        """What the update did to the policy, where a probe asked for it."""
        return None if self.prober is None else self.prober.after_update()

    def last(self, step: int) -> Findings | None:
        """The last probes of a run, and the ends of the fresh network's lines."""
        if self.prober is None:
            return None
        findings = self._measure(step, boundary=True) or Findings()
        if self.prober.names and self.prober.reference is None:
            self.prober.tell(f"no probe was taken: there were never {self.prober.samples} examples (--probe.samples)")
        findings.scalars |= self.prober.fresh_line()
        return findings

    def _measure(self, step: int, boundary: bool) -> Findings | None:
        first = self.prober.reference is None
        findings = self.prober.measure(step, boundary)
        if findings is not None and first:
            self._keep(REFERENCE, self.prober.reference)
        if findings is not None and boundary:
            self._keep(CURRENT, self.prober.current)
        return findings

    def _keep(self, name: str, batch: dict[str, Tensor]) -> None:
        self.folder.mkdir(exist_ok=True)
        torch.save({key: tensor.cpu() for key, tensor in batch.items()}, self.folder / name)
