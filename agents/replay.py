"""Replay of single observations: a ring an environment, stacks and n-step returns rebuilt when sampled.

An episode of T steps takes T + 1 slots: one a state acted in, and one for the state reached at its end, which is never
sampled as a start. So the next state always lies in the next slot, a truncated episode bootstraps from its real last
state, and a stack of frames costs one frame a step (1M Atari steps: 7.06 GB instead of 28).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.transfer import sent
from agents.transitions import Spaces, Transitions

WRITTEN_ONCE = ("observations", "actions", "rewards", "ages", "terminal", "final")
"""What of a slot stays as it is until the ring comes round to it. Its task can be forgotten, its episode cut later."""


EVERYWHERE = slice(None)
"""All environments; indexed by it, an array is not copied."""
Environment = np.ndarray | int
"""Whose ring each of a batch lies in, int64 [batch]; 0 where there is one ring."""
SHARE = 0.7
"""Of a GPU's free memory that a replay may take unasked."""


def storage_device(choice: str, device: torch.device, needed: int) -> torch.device:
    """Where a replay of `needed` bytes lies, by `choice` (auto, host, device), of an agent on `device`."""
    if choice == "auto" and device.type == "cuda":
        choice = "device" if needed <= SHARE * torch.cuda.mem_get_info(device)[0] else "host"
    return device if choice == "device" else torch.device("cpu")


class Batch(NamedTuple):
    """Sampled n-step transitions on the training device."""

    observations: Tensor
    """[batch, ...] in the world's dtype."""
    actions: Tensor
    """int64 [batch]."""
    rewards: Tensor
    """float32 [batch]: sum of gamma**k r over the steps summed."""
    discounts: Tensor
    """float32 [batch]: gamma**steps, 0 where the future ended."""
    next_observations: Tensor
    """[batch, ...] the states bootstrapped from."""


def channels_last(images: Tensor) -> Tensor:
    """`images`, uint8 [batch, channels, height, width], laid out with a pixel's channels side by side, as convolutions
    read them."""
    if images.device.type != "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    # the same as a shuffle of the channels of images of one pixel, which torch does in a fifth of a strided copy's time
    batch, stack, height, width = images.shape
    planes = images.reshape(batch, 1, 1, -1).permute(0, 3, 1, 2)
    return torch.channel_shuffle(planes, stack).view(batch, height, width, stack).permute(0, 3, 1, 2)


class Replay:
    """Uniform replay over `num_envs` rings of `capacity // num_envs` slots.

    `device` is where batches go, `storage_device` where observations lie (rewards, actions and flags always lie in main
    memory: they decide what is sampled). Sampling draws from `generator` alone and is uniform over all valid starts: a
    state acted in whose stack and n-step successor are both still (already) there.
    """

    def __init__(
        self,
        spaces: Spaces,
        num_envs: int,
        capacity: int,
        n_step: int,
        gamma: float,
        generator: np.random.Generator,
        device: torch.device,
        storage_device: torch.device,
    ) -> None:
        self.slots = capacity // num_envs
        self.stack = spaces.frame_stack or 1
        self.stacked = spaces.frame_stack is not None
        self.num_envs, self.n_step, self.gamma = num_envs, n_step, gamma
        self.generator, self.device = generator, device
        flat = num_envs * self.slots
        dtype = np.uint8 if spaces.is_image else np.float32
        if storage_device.type == "cpu":
            # NumPy's zeros are untouched pages until written, so a large empty replay costs nothing
            self.observations = torch.from_numpy(np.zeros((flat, *spaces.stored_shape), dtype))
        else:
            kind = torch.uint8 if spaces.is_image else torch.float32
            self.observations = torch.zeros(flat, *spaces.stored_shape, dtype=kind, device=storage_device)
        self.actions = np.zeros(flat, np.int64)
        self.rewards = np.zeros(flat, np.float32)
        self.ages = np.zeros(flat, np.int32)  # steps since the episode's start, so that a stack stops there
        self.terminal = np.zeros(flat, bool)  # no future after this step (terminated, or a lost life where so told)
        self.ended = np.zeros(flat, bool)  # the next slot is the episode's last state
        self.final = np.zeros(flat, bool)  # this slot is an episode's last state: not a start
        self.tasks = np.full(flat, -1, np.int32)  # the task a slot was filled in, -1 for slots not in use
        self.written = np.zeros(num_envs, np.int64)  # slots ever written; the next one is this, modulo the ring
        self.filled = np.zeros(num_envs, np.int64)
        self.age = np.zeros(num_envs, np.int32)
        self.offset = np.arange(num_envs) * self.slots
        self._no_tasks = np.zeros(num_envs, np.int32)
        self._scratch: Tensor | None = None

    def __len__(self) -> int:
        """Slots in use over all environments."""
        return int(self.filled.sum())

    def ready(self, batch_size: int) -> bool:
        """Whether more than `batch_size` slots are in use and some n-step transition is complete."""
        filled = self.filled.tolist()  # of few, sum and max in Python take a tenth of NumPy's time
        return sum(filled) > batch_size and max(filled) > self.n_step

    def _store(self, environments: np.ndarray | slice, observations: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Write the newest observation of `environments` at their heads; return the flat indices written."""
        where = self.offset[environments] + self.written[environments] % self.slots
        newest = observations[environments, -1] if self.stacked else observations[environments]
        if self.observations.device.type == "cpu":
            self.observations.numpy()[where] = newest  # torch takes several times as long over a few
        else:
            source, rows = sent([newest, where], self.observations.device)
            self.observations[rows] = source.to(self.observations.dtype)
        self.ages[where] = self.age[environments]
        self.tasks[where] = tasks[environments]
        self.written[environments] += 1
        self.filled[environments] = np.minimum(self.filled[environments] + 1, self.slots)
        self.age[environments] += 1
        return where

    def add(self, transitions: Transitions, rewards: np.ndarray, life_loss_ends: bool) -> None:
        """Append one step of every environment, with `rewards` [E] as the learner sees them."""
        ended = transitions.ended
        tasks = self._no_tasks if transitions.tasks is None else transitions.tasks
        where = self._store(EVERYWHERE, transitions.observations, tasks)
        self.actions[where] = transitions.actions
        self.rewards[where] = rewards
        self.terminal[where] = (
            transitions.terminated | transitions.life_lost if life_loss_ends else transitions.terminated
        )
        self.ended[where], self.final[where] = ended, False
        if np.count_nonzero(ended):
            finished = np.flatnonzero(ended)
            self.final[self._store(finished, transitions.final_observations, tasks)] = True
            self.age[finished] = 0

    @property
    def oldest(self) -> np.ndarray:
        """int64 [E]: the oldest slot in use of each ring, counted from the first one ever written."""
        return self.written - self.filled

    def cut(self, observations: np.ndarray) -> None:
        """End every episode where it stands, truncated in `observations` [E, ...]."""
        going = np.flatnonzero(self.age)
        last = self.offset + (self.written - 1) % self.slots
        self.ended[last[going]] = True
        self.final[self._store(going, observations, self.tasks[last])] = True
        self.age[going] = 0

    def task_share(self, task: int) -> float:
        """Share of the stored transitions that were made in `task` or a later one; 0 where nothing is stored."""
        transitions = (self.tasks >= 0) & ~self.final
        stored = np.count_nonzero(transitions)
        return float(np.count_nonzero(transitions & (self.tasks >= task)) / stored) if stored else 0.0

    def keep_task(self, task: int) -> None:
        """Forget what was stored before the environments entered `task` or a later one (each its newest stretch)."""
        for environment in range(self.num_envs):
            ring = self.tasks[self.offset[environment] :][: self.slots]
            newest_first = (self.written[environment] - 1 - np.arange(self.filled[environment])) % self.slots
            others = np.flatnonzero(ring[newest_first] < task)
            kept = others[0] if others.size else self.filled[environment]
            ring[newest_first[kept:]] = -1
            self.filled[environment] = kept

    def _slots(self, environment: Environment, steps_from_oldest: np.ndarray) -> np.ndarray:
        """Flat indices of the slots so many steps after each ring's oldest one."""
        oldest = self.written[environment] - self.filled[environment]
        return self.offset[environment] + (oldest + steps_from_oldest) % self.slots

    def _follow(
        self, environment: Environment, start: np.ndarray, slot: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Walk n steps from `start` (counted from the oldest slot), which lies in `slot`: summed rewards, discounts,
        steps walked.

        Where the walk runs past what is written before the episode ends, steps is n_step + 1: not a valid start.
        """
        # the state reached must be written: only then has this step happened as far as this ring knows
        ahead = self.filled[environment] - start - 1
        gamma, terminal = np.float32(self.gamma), self.terminal[slot]
        rewards, discounts, known = self.rewards[slot], gamma * ~terminal, ahead > 0
        steps = np.where(known, 1, self.n_step + 1)
        walking = known & ~(self.ended[slot] | terminal) if self.n_step > 1 else known
        for walked in range(1, self.n_step):
            known = ahead > walked
            here = self._slots(environment, start + np.where(known, walked, 0))
            terminal = self.terminal[here]
            with np.errstate(over="ignore"):  # an infinite sum makes an infinite target, which is refused by name
                rewards += np.where(walking, discounts * self.rewards[here], np.float32(0.0))
            discounts = np.where(walking, discounts * gamma * ~terminal, discounts)
            steps = np.where(walking, np.where(known, walked + 1, self.n_step + 1), steps)
            walking &= known & ~self.ended[here] & ~terminal
        return rewards, discounts, steps

    def _draw(self, batch_size: int, generator: np.random.Generator) -> tuple[Any, ...]:
        """Draw starts uniformly by rejection: (environment, start, slot, rewards, discounts, steps), [batch_size]; of
        one ring the environment is 0."""
        edges = self.filled.cumsum()
        kept: list[tuple[np.ndarray, ...]] = []
        missing, tries = batch_size, 0
        while missing > 0:
            flat = generator.integers(edges[-1], size=missing)
            environment = edges.searchsorted(flat, side="right") if self.num_envs > 1 else 0
            start = flat - (edges[environment] - self.filled[environment])
            slot = self._slots(environment, start)
            drawn = start, slot, *self._follow(environment, start, slot)
            valid = ~self.final[slot] & (drawn[-1] <= self.n_step)
            if self.stacked:
                valid &= np.minimum(self.ages[slot], self.stack - 1) <= start  # the whole stack is there still
            if not kept and np.count_nonzero(valid) == batch_size:
                return environment, *drawn
            of_several = (environment,) if self.num_envs > 1 else ()
            kept.append(tuple(part[valid] for part in (*drawn, *of_several)))
            missing -= len(kept[-1][0])
            tries += 1
            if tries == 1000:
                raise RuntimeError(f"replay: no valid transition among {len(self)} slots; raise learning_starts")
        *drawn, last = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        return (last, *drawn) if self.num_envs > 1 else (0, *drawn, last)

    def _frames(self, environment: Environment, start: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """The slots whose observations, [stack] for each of `start` [batch] where these are stacks, make what was seen
        there, in `slot`. Stacks do not leave the episode."""
        if not self.stacked:
            return slot
        back = np.minimum(np.arange(self.stack - 1, -1, -1), self.ages[slot][:, None])
        across = environment[:, None] if self.num_envs > 1 else environment
        return self._slots(across, start[:, None] - back).reshape(-1)

    def _fetch(self, rows: Tensor) -> Tensor:
        """What was seen, [batch, ...] on the training device, from the slots that `_frames` says."""
        copied = self.device.type == "cpu" and self.stack > 1 and self.observations.dim() == 3  # into channels last
        found = torch.index_select(self.observations, 0, rows, out=self._frames_for(rows) if copied else None)
        if found.device.type != self.device.type:
            found = found.pin_memory().to(self.device, non_blocking=True)
        if not self.stacked:
            return found
        stacks = found.unflatten(0, (-1, self.stack))
        return channels_last(stacks) if stacks.dim() == 4 else stacks

    def _frames_for(self, rows: Tensor) -> Tensor:
        """Memory for the frames of so many rows: new memory for megabytes costs a third of their copying."""
        if self._scratch is None or len(self._scratch) != len(rows):
            self._scratch = torch.empty(len(rows), *self.observations.shape[1:], dtype=self.observations.dtype)
        return self._scratch

    def sample(self, batch_size: int, generator: np.random.Generator | None = None) -> Batch:
        """Draw `batch_size` valid transitions with replacement, with `generator` in place of the replay's own if given.

        Raises RuntimeError when nothing valid is stored.
        """
        if not len(self):
            raise RuntimeError("replay: empty")
        environment, start, slot, rewards, discounts, steps = self._draw(batch_size, generator or self.generator)
        columns, reached = [self.actions[slot], rewards, discounts], start + steps
        # both states of each are fetched at once
        starts, slots = np.concatenate([start, reached]), np.concatenate([slot, self._slots(environment, reached)])
        frames = self._frames(np.tile(environment, 2) if self.num_envs > 1 else environment, starts, slots)
        together = self.observations.device.type == self.device.type
        sent_columns = sent([*columns, frames] if together else columns, self.device)
        states = self._fetch(sent_columns[3] if together else torch.from_numpy(frames))
        return Batch(states[:batch_size], *sent_columns[:3], states[batch_size:])

    def part(self, start: np.ndarray, stop: np.ndarray) -> dict[str, np.ndarray]:
        """A copy, in main memory, of what was written to the slots from `start` up to `stop` (int64 [E], counted from
        the first one ever written, none of them overwritten), one environment after the other: {name: [slots, ...]}
        for the names of `WRITTEN_ONCE`."""
        rows = self._rows(start, stop)
        observations = self.observations.index_select(0, torch.from_numpy(rows).to(self.observations.device))
        rest = {name: getattr(self, name)[rows] for name in WRITTEN_ONCE[1:]}
        return {"observations": observations.cpu().numpy(), **rest}

    def put_back(self, start: np.ndarray, stop: np.ndarray, part: dict[str, np.ndarray]) -> None:
        """Lay what `part` gave into its slots. Parts are put back in the order in which they were written."""
        rows = self._rows(start, stop)
        observations = torch.from_numpy(part["observations"]).to(self.observations)
        self.observations.index_copy_(0, torch.from_numpy(rows).to(self.observations.device), observations)
        for name in WRITTEN_ONCE[1:]:
            getattr(self, name)[rows] = part[name]

    def _rows(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        rings = zip(self.offset, start, stop, strict=True)
        return np.concatenate([offset + np.arange(first, end) % self.slots for offset, first, end in rings])

    def state_dict(self) -> dict[str, Tensor]:
        """All but what `part` gives: tasks, episodes' ends, and where each ring stands."""
        names = ("tasks", "ended", "written", "filled", "age")
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave. ValueError where it is of another size."""
        for name, given in state.items():
            own = getattr(self, name)
            if own.shape != given.shape:
                raise ValueError(f"replay.{name}: must be of shape {own.shape}, as here, not {tuple(given.shape)}")
            own[:] = given.numpy()
