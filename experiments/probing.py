"""Probes in a run: when they are taken, and where their batches are kept."""

from collections.abc import Callable

from torch import Tensor

from agents.agent import Agent
from agents.probing import subject_of
from experiments.config import TrainConfig
from experiments.run_directory import RunDirectory, write_tensors
from plasticity_probes.probe import Findings
from plasticity_probes.prober import CURRENT, REFERENCE, Prober

FILES = {REFERENCE: "reference.pt", CURRENT: "current.pt"}
"""Where in a run's folder of probes the batch of a group of tags is kept."""


class Probing:
    """The prober of a run. What its methods return goes to the logger as it is."""

    def __init__(self, config: TrainConfig, agent: Agent, directory: RunDirectory, tell: Callable[[str], None]) -> None:
        self.folder = directory.path / "probes"
        self.steps, self.clock = config.run.steps, agent.clock
        self.measured: int | None = None  # step of the latest probe,
        self.learned = 0  # and gradient steps until then
        self.prober: Prober | None = None
        if config.run.probes in ((), ("none",)):
            return
        settings = config.probe
        self.prober = Prober(
            subject_of(agent, agent.generators),
            config.run.probes,
            config.probe_every,
            settings.heavy_factor,
            settings.samples,
            settings.heavy_samples,
            tell=tell,
        )

    def tick(self, step: int) -> Findings | None:
        """Probes that are due by the steps, once something was learned since the latest: between two updates of PPO and
        before a replay is learned from, the network is the same. At the run's last step they are `last`'s."""
        if self.prober is None or step >= self.steps or not self.prober.due(step):
            return None
        if self.measured is not None and self.clock.gradient_steps == self.learned:
            return None
        return self._measure(step, boundary=False)

    def at_boundary(self, step: int) -> Findings | None:
        """Probes of a task that ends now."""
        return self._measure(step, boundary=True) if self.prober is not None and step else None

    def after_update(self) -> Findings | None:
        """What the update did to the policy, where a probe asked for it."""
        return None if self.prober is None else self.prober.after_update()

    def last(self, step: int) -> Findings | None:
        """The last probes of a run."""
        if self.prober is None:
            return None
        findings = self._measure(step, boundary=True)
        if self.prober.names and self.prober.reference is None:
            self.prober.tell(f"no probe was taken: there were never {self.prober.samples} examples (--probe.samples)")
        return findings

    def _measure(self, step: int, boundary: bool) -> Findings | None:
        first = self.prober.reference is None
        findings = self.prober.measure(step, boundary)
        if findings is None:
            return None
        if first:
            self._keep(REFERENCE, self.prober.reference)
        if boundary:
            self._keep(CURRENT, self.prober.current)
        if step != self.measured:  # TensorBoard takes a line of two points for outliers, and draws it at the end alone
            findings.scalars |= self.prober.fresh_line()
        self.measured, self.learned = step, self.clock.gradient_steps
        return findings

    def _keep(self, group: str, batch: dict[str, Tensor]) -> None:
        self.folder.mkdir(exist_ok=True)
        write_tensors(self.folder / FILES[group], {key: tensor.cpu() for key, tensor in batch.items()})
