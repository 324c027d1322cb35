"""The interventions on a Stable-Baselines3 model, by one line:

    model.learn(100_000, callback=InterventionCallback([ReDo(tau=0.025), L2Init(rate=1e-3)]))

Layers and parameters are called as in `named_modules()` of DQN's `q_net` and PPO's `policy`. Parts: what policy and
value share (DQN: the features extractor) is the encoder; DQN's Q-network is the critic; PPO's `policy_net`,
`action_net` and log_std are the actor, `value_net` and the value's own features extractor the critic.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from agents.clock import Clock
from agents.config import require
from agents.interventions.base import Forward, Intervention
from agents.interventions.lifecycle import Lifecycle, as_interventions
from agents.interventions.sb3.groups import Groups
from agents.interventions.sb3.networks import CaptureHooks, WithPenalty, laws, networks_of, quiet, require_supported
from agents.interventions.sb3.observations import Observations, example_for
from agents.interventions.sb3.refusals import refuse
from agents.interventions.sb3.report import Report
from agents.interventions.surgery import Moments
from agents.randomness import Generators
from plasticity_probes.prober import whole
from plasticity_probes.sb3.hooks import HookingCallback


class InterventionCallback(HookingCallback):
    """Applies interventions to a DQN or PPO model at each of its gradient steps.

    The interventions are copied; one callback may serve several models in turn, and starts anew with each, and where
    the count of steps is set back. After `learn(..., reset_num_timesteps=False)` it goes on. When `learn` ends, by
    an exception or Ctrl-C too, the model is plain again, and what is saved in between loads in plain Stable-Baselines3,
    without auxiliary heads; what the interventions remember is in `state_dict`. A model has one such callback with all
    its interventions, given to `learn` itself or in a list.

    Penalties join the backward pass of SB3's own loss, so that gradient clipping sees them as in our agents; but the
    norm is that of the policy's gradients alone, without those of auxiliary heads. Their mean since the last dump is
    logged as train/penalty/NAME, and what was done as surgery/NAME/....

    Target sync: right after SB3's (DQN); the end of each rollout (PPO). Task change: when every environment's info has
    a larger `task_index`, or by `on_task_change()`. PPO's `sample` draws from the latest complete rollout. Replaced and
    reset layers are drawn by the law that SB3 initialised them with.

    Args:
        interventions: a list of them in the order in which they are to act, each an object or a name, which stands for
            its defaults: [ReDo(tau=0.025), "l2_init"].
        moments: as of `Surgery`: other than "own" takes the place of every intervention's own choice.
        seed: of the interventions' random numbers; the global generators are left alone.

    Raises:
        ValueError: something else, or two that cannot work together; when training starts: another algorithm, an
            optimizer other than Adam, an intervention that has to build the network or to know the regression targets,
            a second such callback, a place within another callback.
    """

    def __init__(
        self, interventions: Sequence[Intervention | str], moments: str = "own", seed: int = 0, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        kinds = ("own", *get_args(Moments))
        require(moments in kinds, "moments", moments, ", ".join(kinds))
        self.chosen, self.moments, self.seed = as_interventions(interventions), moments, whole("seed", seed, least=0)
        self.lifecycle = Lifecycle(self.chosen)
        """Calls the interventions; `lifecycle.members` are the copies that act."""
        self.clock = Clock()
        """The model's steps, and its gradient steps since the callback was first used on it."""
        self._policy: nn.Module | None = None
        self._updating = False
        self._forward: Forward | None = None
        self._watch: CaptureHooks | None = None
        self._pending: dict[str, Any] | None = None  # a state that waits for a model

    def _require_beside(self, other: HookingCallback) -> None:
        if isinstance(other, InterventionCallback):
            first, second = (", ".join(one.name for one in each.chosen) or "none" for each in (other, self))
            raise ValueError(
                f"InterventionCallback: two on one model, of {first} and of {second}; give one callback all of them,"
                " in the order in which they are to act: InterventionCallback([..., ...])"
            )

    def _take_hold(self) -> None:
        if self._policy is not self.model.policy or self.model.num_timesteps < self.clock.steps:
            self._policy, self._forward, self.clock = None, None, Clock()
            require_supported(self.model)
            refuse(self.chosen)
            self._begin()
            self._policy = self.model.policy
        self.clock.steps, self._syncs = self.model.num_timesteps, self._target_syncs()
        if self.chosen:
            self._hook()
        self._take_over()

    def _begin(self) -> None:
        """Attach the interventions to a model that they have not seen."""
        model, self._generators = self.model, Generators(self.seed)
        generators = self._generators
        self.lifecycle = Lifecycle(self.chosen, clock=self.clock)
        if not self.chosen:
            return
        self._view, networks = networks_of(model)
        parts = dict.fromkeys(self._view.part_of(name) for name, _ in self._view.named_parameters())
        for one in self.chosen:
            one.require(one.only in ("all", *parts), "only", f"all or one of {', '.join(parts)} in this model")
        self._observations = Observations(model, generators.torch("surgery's samples"))
        self._report = Report(self.lifecycle.surgeries)
        with quiet(self._view), laws(model):
            example = example_for(model, generators.torch("example"))
            self._view.find_points(example)
            networks |= {name: network.like(self._view) for name, network in networks.items() if name != "online"}
            groups = self.lifecycle.attach(networks, example, generators)
        if any(member.captures for member in self.lifecycle.members):
            self._view.require_seen()
        self._groups = Groups(model.policy.optimizer, groups)
        drawn_on = generators.torch("surgery", model.device)
        self._groups.put_in()
        try:
            self.lifecycle.make_surgeon(model.policy.optimizer, drawn_on, self._observations.sample, self.moments)
        finally:
            self._groups.take_out()

    def _hook(self) -> None:
        """Put everything on the model."""
        policy, optimizer, hold = self.model.policy, self.model.policy.optimizer, self.hold
        hold.callback(self._forget_the_update)
        hold.enter_context(laws(self.model))
        hold.callback(self._groups.take_out)
        self._groups.put_in()
        hold.callback(optimizer.register_step_pre_hook(lambda *_: self._before_step()).remove)
        hold.callback(optimizer.register_step_post_hook(lambda *_: self._after_step()).remove)
        if isinstance(self.model, DQN):
            q_net = policy.q_net  # copies of it inherit the hooks
            opening = lambda network, _: self._open() if network is q_net else None  # noqa: E731
            closing = lambda network, _, outputs: self._close(outputs) if network is q_net else None  # noqa: E731
            hold.callback(q_net.register_forward_pre_hook(opening).remove)
            hold.callback(q_net.register_forward_hook(closing, always_call=True).remove)
        else:
            # PPO's update is the one caller of this method, which no hook of a module can tell
            evaluating = lambda this, *args, **kwargs: self._evaluating(this, *args, **kwargs)  # noqa: E731
            hold.callback(vars(policy).pop, "evaluate_actions", None)
            policy.evaluate_actions = types.MethodType(evaluating, policy)
        hold.callback(self._report.detach)
        self._report.attach(self.logger)

    def _forget_the_update(self) -> None:
        """Training may have ended in the midst of one."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
        self._updating, self._forward = False, None

    def _on_training_end(self) -> None:
        super()._on_training_end()
        for sentence in self._idle():
            warnings.warn(sentence, stacklevel=2)

    def _idle(self) -> list[str]:
        """A sentence for each intervention that edits weights now and then and has not since it met this model."""
        if not self.chosen or not self.clock.gradient_steps:
            return []
        done = self.lifecycle.surgery.deeds.since.items()
        acted = self._report.acted | {who for (who, *_), amount in done if int(amount)}
        idle = [one for one in self.lifecycle.members if one.is_surgery and one.name not in acted]
        none_came = "waits for a task change, and none came: no environment's info has had a larger task_index"
        return [
            f"{one.name}: {none_came if one.waits_for_a_task_change else 'never acted'}, in "
            f"{self.clock.gradient_steps:,} gradient steps"
            for one in idle
        ]

    def _on_rollout_start(self) -> None:
        self._updating = False

    def _on_step(self) -> bool:
        super()._on_step()
        self.clock.steps = self.model.num_timesteps
        self._hear_of_sync()
        tasks = [info.get("task_index") for info in self.locals.get("infos", ())]
        if tasks and None not in tasks:
            before, task = self.clock.task, int(min(tasks))
            self.clock.task = task if before is None else max(task, before)
            if before is not None and task > before:
                self.on_task_change()
        return True

    def _on_rollout_end(self) -> None:
        if self.chosen and isinstance(self.model, PPO):
            self._observations.keep_rollout()
            with self._acting():
                self.lifecycle.on_target_sync()
        self._hear_of_sync()
        self._updating = True

    def _target_syncs(self) -> int:
        """How many times DQN has updated its target network; it does so after `_on_step` of the callbacks."""
        if not isinstance(self.model, DQN):
            return 0
        return self.model._n_calls // max(self.model.target_update_interval // self.model.n_envs, 1)

    def _hear_of_sync(self) -> None:
        syncs = self._target_syncs()
        if syncs > self._syncs:
            with self._acting():
                self.lifecycle.on_target_sync()
        self._syncs = syncs

    def on_task_change(self) -> None:
        """Tell the interventions that every environment has entered a new task. RuntimeError before any training."""
        if self._policy is None:
            raise RuntimeError("on_task_change: training has not started")
        self.clock.task_began = self.clock.steps
        with self._acting():
            self.lifecycle.on_task_change()

    @contextmanager
    def _acting(self) -> Iterator[None]:
        if self.lifecycle.surgery is None:
            yield
            return
        self.clock.steps = self.model.num_timesteps
        with quiet(self._view), nullcontext() if self._training is not None else laws(self.model):
            yield

    def _open(self) -> None:
        """The update's forward pass begins, if this is it: SB3 takes all others without gradients."""
        if self._updating and torch.is_grad_enabled():
            self._watch = CaptureHooks(self._view, self.lifecycle.wanted)

    def _close(self, outputs: Tensor | None) -> Tensor | None:
        """It has ended (with an error: no outputs). Returns `outputs` with the penalties behind them."""
        watch, self._watch = self._watch, None
        if watch is None:
            return None
        watch.stop()
        if outputs is None or watch.observations is None:
            return None
        with quiet(self._view):
            self._forward = self.lifecycle.forward(watch.observations, watch.captured)
            penalties = self.lifecycle.penalties(self._forward)
        self._report.penalized(penalties)
        return WithPenalty.apply(outputs, sum(penalties.values())) if penalties else None

    def _evaluating(self, this: ActorCriticPolicy, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """`evaluate_actions` of the policy `this` (a copy inherits it, but its modules are not watched)."""
        self._open()
        values = joined = None
        try:
            values, *others = type(this).evaluate_actions(this, *args, **kwargs)
        finally:
            joined = self._close(values)
        return values if joined is None else joined, *others

    def _before_step(self) -> None:
        if self._forward is None:
            raise RuntimeError(
                "InterventionCallback: the optimizer is about to step after no forward pass of an update; the callback "
                "must be given to learn() itself or in a list, and the model must train as SB3's own does"
            )

    def _after_step(self) -> None:
        forward, self._forward = self._forward, None
        self.clock.gradient_steps += 1
        with self._acting():
            self.lifecycle.draw()
            self.lifecycle.every_step(forward)
            self.lifecycle.intervene()

    def state_dict(self) -> dict[str, Any]:
        """What the interventions remember, as tensors and primitives; beside what `model.save` writes. {} before any
        training."""
        if self._pending is not None or self._policy is None:
            return self._pending or {}
        state = {"clock": self.clock.state_dict()}
        if self.chosen:
            state["interventions"] = self.lifecycle.state_dict()
            state["generators"] = self._generators.state_dict()
            state["auxiliary"] = self._groups.auxiliary_state()
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, now or when training starts. ValueError: it is of other interventions."""
        members = state.get("interventions", {}).get("members", {}).keys()
        names = [member.name for member in self.chosen]
        if state and sorted(members) != sorted(names):
            raise ValueError(f"state: is of {', '.join(members) or 'none'}, must be of {', '.join(names) or 'none'}")
        self._pending = copy.deepcopy(state) or None
        if self._training is not None:
            self._take_over()

    def _take_over(self) -> None:
        state, self._pending = self._pending, None
        if state is None:
            return
        self.clock.load_state_dict(state["clock"])
        if self.chosen:
            self.lifecycle.load_state_dict(state["interventions"])
            self._generators.load_state_dict(state["generators"])
            self._groups.load_auxiliary_state(state["auxiliary"])
