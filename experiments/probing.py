"""Probes in a run: when they are taken, and where their batches are kept."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from agents.agent import Agent
from agents.probing import subject_of
from experiments.config import TrainConfig
from experiments.run import Event, TaskChange, Tick, Update
from experiments.run_directory import RunDirectory, write_tensors
from plasticity_probes.probe import Findings
from plasticity_probes.prober import CURRENT, REFERENCE, Prober

FILES = {REFERENCE: "reference.pt", CURRENT: "current.pt"}
"""Where in a run's folder of probes the batch of a group of tags is kept."""


class Probing:
    """The prober of a run that is measured. `found(step, findings)` is told what it finds, `tell` what failed."""

    def __init__(
        self,
        config: TrainConfig,
        agent: Agent,
        directory: RunDirectory,
        found: Callable[[int, Findings | None], None],
        tell: Callable[[str], None],
    ) -> None:
        self.folder, self.found = directory.path / "probes", found
        self.steps, self.clock = config.run.steps, agent.clock
        self.measured: int | None = None  # step of the latest probe,
        self.learned = 0  # and gradient steps until then
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

    def notice(self, event: Event) -> None:
        """Measure where it is time: when probes are due by the steps, when a task ends, and after the first update that
        follows, what it did."""
        if isinstance(event, Tick):
            if self._due(event.step):
                self._measure(event.step, boundary=False)
        elif isinstance(event, Update):
            if self.prober.awaits_update:
                self.found(event.step, self.prober.after_update())
        elif isinstance(event, TaskChange) and event.step:
            self._measure(event.step, boundary=True)

    def _due(self, step: int) -> bool:
        """Once something was learned since the latest: between two updates of PPO and before a replay is learned from,
        the network is the same. At the run's last step they are `last`'s."""
        due = step < self.steps and self.prober.due(step)
        return due and (self.measured is None or self.clock.gradient_steps != self.learned)

    def last(self, step: int) -> None:
        """The last probes of a run."""
        self._measure(step, boundary=True)
        if self.prober.names and self.prober.reference is None:
            self.prober.tell(f"no probe was taken: there were never {self.prober.samples} examples (--probe.samples)")

    def _measure(self, step: int, boundary: bool) -> None:
        first = self.prober.reference is None
        findings = self.prober.measure(step, boundary)
        if findings is None:
            return
        if first:
            self._keep(REFERENCE, self.prober.reference)
        if boundary:
            self._keep(CURRENT, self.prober.current)
        if step != self.measured:  # TensorBoard takes a line of two points for outliers, and draws it at the end alone
            findings.scalars |= self.prober.fresh_line()
        self.measured, self.learned = step, self.clock.gradient_steps
        self.found(step, findings)

    def _keep(self, group: str, batch: dict[str, Tensor]) -> None:
        self.folder.mkdir(exist_ok=True)
        write_tensors(self.folder / FILES[group], {key: tensor.cpu() for key, tensor in batch.items()})

    def state_dict(self) -> dict[str, Any]:
        """When it measured last, and what the prober remembers."""
        return {"measured": self.measured, "learned": self.learned, "prober": self.prober.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.measured, self.learned = state["measured"], state["learned"]
        self.prober.load_state_dict(state["prober"])
