"""The callback that measures a Stable-Baselines3 model."""

from __future__ import annotations

import math
import time
import warnings

import torch
from stable_baselines3.common.logger import Image, Logger
from torch import nn

from plasticity_probes.pictures import in_colours
from plasticity_probes.probe import Findings
from plasticity_probes.prober import Prober, whole
from plasticity_probes.probes import chosen
from plasticity_probes.sb3.batches import ReplayBatches, RolloutBatches, own_random_state
from plasticity_probes.sb3.hooks import HookingCallback
from plasticity_probes.sb3.subjects import ProbedNetwork, probed_networks

SUMMARY = {
    "probes/dormant_fraction/tau=0.025/all": "dormant units, tau .025",
    "probes/dead_fraction/all": "dead units",
    "probes/weight_norm/total": "weight norm",
    "probes/churn/value": "churn, value",
    "probes/churn/policy_kl": "churn, policy KL",
    "probes/churn/action": "churn, action",
}
"""What is printed, under "plasticity/"; everything else is for TensorBoard, CSV and JSON."""
NUMBERS_ONLY, PICTURES_ONLY, PRINT_ONLY = (
    ("stdout", "log"),
    ("stdout", "log", "json", "csv"),
    ("tensorboard", "json", "csv"),
)


class PlasticityCallback(HookingCallback):
    """Measures plasticity every so many steps, before the update that is due then, and once more at the end.

    Works with DQN, PPO, A2C, SAC, TD3 and DDPG, on any observations but dictionaries. Off-policy, batches come from the
    replay buffer, and nothing is measured while it holds fewer than `samples` transitions; on-policy, from the latest
    rollout, or the latest few where one has fewer than `samples` steps. Given to `learn` itself or in a list; several
    may measure one model, each probes of its own. The model is plain again when `learn` ends, however it ends.

    Args:
        every: steps between two probes, over all environments.
        probes: names of the files in plasticity_probes/probes, or "default", "all", "none".
        samples: examples in a batch; the ranks of a wider layer cannot show with fewer examples than units.
        heavy_factor: heavy probes run at every so many-th probe, and at the end.
        heavy_samples: examples for them.
        seed: of the probes' own random numbers.
        verbose: 1 prints how long each probe took.

    Raises:
        ValueError: an unknown probe or a number that is none or too small; when training starts, a model that is not
            supported, a place within another callback, another such callback that measures one of these probes.
    """

    def __init__(
        self,
        every: int = 10_000,
        probes: tuple[str, ...] | list[str] | str = ("default",),
        samples: int = 512,
        heavy_factor: int = 10,
        heavy_samples: int = 256,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.probes, self.names = probes, chosen(probes)
        self.numbers = {
            "every": whole("every", every),
            "heavy_factor": whole("heavy_factor", heavy_factor),
            "samples": whole("samples", samples),
            "heavy_samples": whole("heavy_samples", heavy_samples),
        }
        self.seed = whole("seed", seed, least=0)
        self.latest: dict[str, float] = {}
        """The latest value by tag."""
        self._parts: list[ProbedNetwork] = []
        self._source: ReplayBatches | RolloutBatches | None = None
        self._policy: nn.Module | None = None
        self._measured_at = -1
        self._pending: Findings | None = None  # measured, but not yet written: the update that churn needs is to come

    def _require_beside(self, other: HookingCallback) -> None:
        common = [name for name in self.names if name in other.names] if isinstance(other, PlasticityCallback) else ()
        if common:
            raise ValueError(
                f"PlasticityCallback: two of them would measure {', '.join(common)} of one model, and write twice under"
                " one tag; give one callback all probes, or each probes of its own"
            )

    def _take_hold(self) -> None:
        if self._policy is not self.model.policy or self.model.num_timesteps < self._measured_at:
            self._policy, self._measured_at, self._pending = None, -1, None
            self._source, self._parts = probed_networks(self.model, self.seed, self.numbers["samples"])
            for part in self._parts:
                part.prober = Prober(part.subject, self.probes, tell=self._tell, **self.numbers)
            self._policy = self.model.policy
        self.hold.callback(self._write_what_waits)
        for part in self._parts:
            hook = part.optimizer.register_step_post_hook(lambda *_, part=part: self._updated(part))
            self.hold.callback(hook.remove)

    def _write_what_waits(self) -> None:
        """For an update that has not come and may never: what was measured before it is worth having."""
        try:
            self._write()
        except Exception as error:  # training may have ended because the logger cannot write
            self._tell(f"the probes at step {self._measured_at} could not be written: {error}")

    def _on_step(self) -> bool:
        super()._on_step()
        if isinstance(self._source, ReplayBatches):
            self._probe_if_due()
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self._source, RolloutBatches):
            self._source.keep()
            self._probe_if_due()

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if not self.names or not self._parts:
            return
        self._measure(boundary=True)
        self._write()
        if self._measured_at < 0:
            self._tell(f"no probe was taken: there were never {self.numbers['samples']} samples")

    def _probe_if_due(self) -> None:
        if self._parts[0].prober.due(self.model.num_timesteps):
            self._measure(boundary=False)

    def _measure(self, boundary: bool) -> None:
        """Write what waited for an update in vain, and measure."""
        step, started = self.model.num_timesteps, time.perf_counter()
        if not self._source.ready() or step == self._measured_at:
            return
        self._write()
        found = Findings()
        with own_random_state(self.model.device):
            for part in self._parts:
                measured = part.prober.measure(step, boundary) or Findings()
                measured.scalars |= part.prober.fresh_line()  # again and again, for a line in the chart
                part.awaits_update = part.prober.awaits_update
                found.merge(part.tagged(measured))
        self._pending, self._measured_at = found, step
        if self.verbose >= 1:
            print(f"probes at step {step:,}: {time.perf_counter() - started:.2f} s")
        if not any(part.awaits_update for part in self._parts):
            self._write()

    def _updated(self, part: ProbedNetwork) -> None:
        """An optimizer has made a step."""
        if not part.awaits_update:
            return
        part.awaits_update = False
        with own_random_state(self.model.device):
            found = part.prober.after_update()
        if found is not None and self._pending is not None:
            self._pending.merge(part.tagged(found))
        if not any(other.awaits_update for other in self._parts):
            self._write()

    def _write(self) -> None:
        """To the writers of SB3's logger; through a logger of our own, so that SB3's averages stay as they are and the
        step is that of the measurement."""
        if self._pending is None:
            return
        found, self._pending = self._pending, None
        for part in self._parts:
            part.awaits_update = False
        values = torch.stack([value.float() for value in found.scalars.values()]).tolist() if found.scalars else []
        finite = {tag: value for tag, value in zip(found.scalars, values, strict=True) if math.isfinite(value)}
        self.latest |= finite
        logger = Logger(self.logger.dir, self.logger.output_formats)
        logger.set_level(self.logger.level)
        logger.record("plasticity/step", self._measured_at, exclude=PRINT_ONLY)
        logger.record("time/total_timesteps", self._measured_at, exclude=(*NUMBERS_ONLY, "tensorboard"))
        for tag, value in finite.items():
            logger.record(tag, value, exclude=NUMBERS_ONLY)
            for part in self._parts:
                short = SUMMARY.get(tag.removesuffix(part.suffix))
                if short is not None and tag.endswith(part.suffix):
                    name = f"plasticity/{short} ({part.name})" if part.name else f"plasticity/{short}"
                    logger.record(name, value, exclude=PRINT_ONLY)
        for tag, vector in found.histograms.items():
            if torch.isfinite(vector).all():
                logger.record(tag, vector.cpu(), exclude=PICTURES_ONLY)
        for tag, matrix in found.images.items():
            logger.record(tag, Image(in_colours(matrix), "CHW"), exclude=PICTURES_ONLY)
        logger.dump(self._measured_at)

    @staticmethod
    def _tell(sentence: str) -> None:
        warnings.warn(sentence, stacklevel=2)
