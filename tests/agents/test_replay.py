"""The replay against a naive memory that keeps whole trajectories of full observations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.replay import Replay, channels_last
from agents.transitions import Spaces, Transitions
from tests.agents.helpers import ATARI, CPU, STACK, VECTOR, needs_cuda

GAMMA = 0.9


class State:
    """One state of a trajectory; `acted` is False for the state reached at an episode's end."""

    def __init__(self, observation, age):
        self.observation, self.age = observation, age
        self.acted, self.stops, self.cut = False, False, False
        self.action, self.reward = 0, 0.0


class Oracle:
    """Lists of every state ever met in each environment; the last `slots` of each count as stored."""

    def __init__(self, num_envs, slots, n_step, frames, gamma=GAMMA):
        self.slots, self.n_step, self.frames, self.gamma = slots, n_step, frames, gamma
        self.states = [[] for _ in range(num_envs)]
        self.fresh = [True] * num_envs

    def add(self, transitions, rewards, life_loss_ends):
        for e, states in enumerate(self.states):
            age = 0 if self.fresh[e] else states[-1].age + 1
            state = State(transitions.observations[e].copy(), age)
            state.acted, state.action, state.reward = True, int(transitions.actions[e]), float(rewards[e])
            lost = bool(transitions.life_lost[e]) and life_loss_ends
            state.stops = bool(transitions.terminated[e]) or lost
            state.cut = bool(transitions.terminated[e] or transitions.truncated[e])
            states.append(state)
            if state.cut:
                states.append(State(transitions.final_observations[e].copy(), age + 1))
            self.fresh[e] = state.cut

    def transition(self, states, i):
        """The n-step transition from state i as (observation, action, return, discount, next), None if not known."""
        total, discount, state = 0.0, 1.0, states[i]
        for k in range(self.n_step):
            if i + k + 1 >= len(states):
                return None
            state = states[i + k]
            total += self.gamma**k * state.reward
            discount = 0.0 if state.stops else self.gamma ** (k + 1)
            if state.stops or state.cut:
                break
        return states[i].observation, states[i].action, total, discount, states[i + k + 1].observation

    def valid(self):
        """Every valid transition by the identity of its newest frame."""
        found = {}
        for states in self.states:
            oldest = max(0, len(states) - self.slots)
            for i in range(oldest, len(states)):
                if states[i].acted and i - min(states[i].age, self.frames - 1) >= oldest:
                    transition = self.transition(states, i)
                    if transition is not None:
                        found[identity(transition[0])] = transition
        return found


class Numbered:
    """Observations in which every frame of every environment and episode is a different number."""

    def __init__(self, frames, num_envs, rng, ends, stacked=True):
        self.frames, self.rng, self.ends, self.stacked = frames, rng, ends, stacked
        self.count = 0
        self.num_envs = num_envs
        self.now = [self.reset() for _ in range(num_envs)]

    def frame(self):
        self.count += 1
        if not self.stacked:
            return np.array([self.count, -self.count], np.float32)
        return np.resize(np.array([self.count // 256, self.count % 256], np.uint8), (2, 3))

    def reset(self):
        frame = self.frame()
        return np.stack([frame] * self.frames) if self.stacked else frame

    def step(self):
        terminated, truncated, lost = (self.rng.random(self.num_envs) < chance for chance in self.ends)
        truncated &= ~terminated
        ended = terminated | truncated
        reached = [np.concatenate([o[1:], self.frame()[None]]) if self.stacked else self.frame() for o in self.now]
        # rows of final observations that are not valid are garbage on purpose
        final = [o if end else np.full_like(o, 77) for o, end in zip(reached, ended, strict=True)]
        after = [self.reset() if end else o for o, end in zip(reached, ended, strict=True)]
        before, self.now = self.now, after
        actions = self.rng.integers(5, size=self.num_envs)
        rewards = self.rng.standard_normal(self.num_envs)
        final = np.stack(final) if ended.any() else None
        return Transitions(
            np.stack(before), actions, rewards, terminated, truncated, lost & ~ended, np.stack(after), final
        )


def identity(observation):
    newest = np.asarray(observation)
    if newest.dtype == np.uint8:
        return int(newest[-1].flat[0]) * 256 + int(newest[-1].flat[1])
    return int(newest[0])


def spaces_for(frames):
    if frames is None:
        return Spaces((2,), np.dtype(np.float32), "discrete", 5)
    return Spaces((frames, 2, 3), np.dtype(np.uint8), "discrete", 5, frame_stack=frames)


def filled(frames, num_envs, capacity, n_step, steps, ends, seed=0, life_loss_ends=False, gamma=GAMMA, device=CPU):
    """A replay and its oracle that have seen the same `steps` steps of every environment."""
    rng = np.random.default_rng(seed)
    replay = Replay(spaces_for(frames), num_envs, capacity, n_step, gamma, rng, device, device)
    oracle = Oracle(num_envs, capacity // num_envs, n_step, frames or 1, gamma)
    world = Numbered(frames or 1, num_envs, np.random.default_rng(seed + 1), ends, frames is not None)
    for _ in range(steps):
        transitions = world.step()
        replay.add(transitions, transitions.rewards, life_loss_ends)
        oracle.add(transitions, transitions.rewards, life_loss_ends)
    return replay, oracle


def check_batch(batch, valid):
    """Every sampled row is exactly the oracle's transition; returns the identities sampled."""
    parts = [part.cpu().numpy() for part in batch]
    seen = [identity(observation) for observation in parts[0]]
    for row, key in enumerate(seen):
        assert key in valid, "a transition that is not valid was sampled"
        observation, action, total, discount, following = valid[key]
        assert np.array_equal(parts[0][row], observation)
        assert parts[1][row] == action
        assert abs(parts[2][row] - total) < 1e-5
        assert abs(parts[3][row] - discount) < 1e-6
        assert np.array_equal(parts[4][row], following)
    return seen


@given(
    frames=st.sampled_from([None, 1, 2, 4]),
    num_envs=st.integers(1, 3),
    n_step=st.integers(1, 5),
    spare=st.integers(0, 25),
    remainder=st.integers(0, 2),
    steps=st.integers(1, 120),
    ends=st.tuples(*[st.sampled_from([0.0, 0.05, 0.3, 1.0])] * 3),
    life_loss_ends=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_samples_exactly_the_oracles_transitions(
    frames, num_envs, n_step, spare, remainder, steps, ends, life_loss_ends, seed
):
    capacity = num_envs * ((frames or 1) + n_step + 1 + spare) + min(remainder, num_envs - 1)
    replay, oracle = filled(frames, num_envs, capacity, n_step, steps, ends, seed, life_loss_ends)
    valid = oracle.valid()
    if not valid:
        with pytest.raises(RuntimeError, match="replay"):
            replay.sample(4)
        return
    # a transition is missed by 20 V uniform draws with chance e^-20 each
    batch = replay.sample(20 * len(valid))
    assert set(check_batch(batch, valid)) == set(valid)


@pytest.mark.parametrize("frames", [4, None])
@pytest.mark.parametrize("n_step", [1, 3])
def test_stays_right_while_the_ring_wraps_many_times(frames, n_step):
    rng = np.random.default_rng(0)
    replay = Replay(spaces_for(frames), 3, 60, n_step, GAMMA, rng, CPU, CPU)
    oracle = Oracle(3, 20, n_step, frames or 1)
    world = Numbered(frames or 1, 3, np.random.default_rng(1), (0.1, 0.1, 0.1), frames is not None)
    for step in range(1, 401):  # about 480 slots an environment: 24 times around
        transitions = world.step()
        replay.add(transitions, transitions.rewards, True)
        oracle.add(transitions, transitions.rewards, True)
        if step % 7 == 0:
            check_batch(replay.sample(16), oracle.valid())
    assert len(replay) == 60


@pytest.mark.parametrize(("frames", "n_step", "ends"), [(4, 3, (0.2, 0.1, 0.1)), (None, 1, (0.0, 0.0, 0.0))])
def test_sampling_is_uniform_over_all_valid_transitions(frames, n_step, ends):
    replay, oracle = filled(frames, 3, 120, n_step, steps=150, ends=ends)
    valid = oracle.valid()
    seen = check_batch(replay.sample(60 * len(valid)), valid)
    counts = np.array([seen.count(key) for key in valid])
    assert stats.chisquare(counts).pvalue > 1e-3


def test_two_environments_of_different_fill_are_equally_weighted_by_transition():
    # environment 0 ends at every step and so takes two slots a step: fewer of its starts are kept
    replay, oracle = Replay(spaces_for(None), 2, 40, 1, GAMMA, np.random.default_rng(0), CPU, CPU), Oracle(2, 20, 1, 1)
    world = Numbered(1, 2, np.random.default_rng(0), (0.0, 0.0, 0.0), stacked=False)
    for _ in range(30):
        t = world.step()
        t = t._replace(terminated=np.array([True, False]), final_observations=t.next_observations + 0.5)
        replay.add(t, t.rewards, False)
        oracle.add(t, t.rewards, False)
    valid = oracle.valid()
    # environment 0: 10 (start, final) pairs in 20 slots; environment 1: 19 starts with a known successor
    assert len(valid) == 10 + 19
    seen = check_batch(replay.sample(3000), valid)
    assert stats.chisquare([seen.count(key) for key in valid]).pvalue > 1e-3


def by_hand(rewards, terminated, truncated, lost, n_step, life_loss_ends=True):
    """One environment, states 1, 2, ... (final state of an episode: 100 + the state acted in), gamma 1/2."""
    replay = Replay(spaces_for(None), 1, 50, n_step, 0.5, np.random.default_rng(0), CPU, CPU)
    for t, reward in enumerate(rewards):
        row = lambda value: np.full((1, 2), value, np.float32)  # noqa: E731
        flags = [np.array([t in steps]) for steps in (terminated, truncated, lost)]
        transition = Transitions(row(t + 1), np.array([t]), np.array([reward]), *flags, row(t + 2), row(101 + t))
        replay.add(transition, np.array([reward]), life_loss_ends)
    batch = replay.sample(400)
    columns = (batch.observations[:, 0], batch.rewards, batch.discounts, batch.next_observations[:, 0])
    return {start: rest for start, *rest in zip(*(c.tolist() for c in columns), strict=True)}


def test_one_step_by_hand():
    found = by_hand([1, 2, 3, 4], terminated=[1], truncated=[], lost=[], n_step=1)
    # state 4's successor is not known yet
    assert found == {1: [1, 0.5, 2], 2: [2, 0, 102], 3: [3, 0.5, 4]}


def test_three_steps_by_hand():
    # gamma 1/2. From 1: 1 + 2/2 + 4/4 = 3, discount 1/8 at state 4. From 3: 4 + 8/2 and the truncated end,
    # bootstrapped from its final state with discount 1/4; from 4: 8, discount 1/2. From 5: 16 + 32/2 + 64/4 = 48.
    found = by_hand([1, 2, 4, 8, 16, 32, 64, 128], terminated=[], truncated=[3], lost=[], n_step=3)
    assert found == {
        1: [3, 0.125, 4],
        2: [2 + 2 + 2, 0.125, 104],
        3: [8, 0.25, 104],
        4: [8, 0.5, 104],
        5: [48, 0.125, 8],
    }


@pytest.mark.parametrize("life_loss_ends", [True, False])
def test_a_lost_life_by_hand(life_loss_ends):
    found = by_hand([1, 2, 4, 8, 16], [], [], lost=[1], n_step=2, life_loss_ends=life_loss_ends)
    # from 1: 1 + 2/2; from 2 the life is lost at once: 2 alone, or 2 + 4/2 where it ends nothing
    ends = {1: [2, 0, 3], 2: [2, 0, 3]}
    goes_on = {1: [2, 0.25, 3], 2: [4, 0.25, 4]}
    assert found == (ends if life_loss_ends else goes_on) | {3: [8, 0.25, 5]}


def test_stacks_after_a_reset_repeat_the_first_frame():
    replay, oracle = filled(4, 1, 100, 1, steps=30, ends=(0.3, 0.0, 0.0))
    first = [o for o, *_ in oracle.valid().values() if (o == o[0]).all()]
    assert len(first) > 2  # the case occurs
    check_batch(replay.sample(500), oracle.valid())


def test_batches_have_the_worlds_types():
    replay, _ = filled(4, 2, 100, 1, steps=30, ends=(0.1, 0.1, 0.1))
    batch = replay.sample(8)
    assert batch.observations.dtype == batch.next_observations.dtype == torch.uint8
    assert batch.observations.shape == batch.next_observations.shape == (8, 4, 2, 3)
    assert (batch.actions.dtype, batch.rewards.dtype, batch.discounts.dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )


@pytest.mark.parametrize("spaces", [ATARI, Spaces((3, 20, 30), np.dtype(np.uint8), "discrete", 2, frame_stack=3)])
def test_stacks_of_frames_lie_channels_last(spaces):
    frames = np.random.default_rng(0).integers(0, 256, (2, *spaces.observation_shape), np.uint8)
    laid_out = channels_last(torch.from_numpy(frames))
    assert laid_out.is_contiguous(memory_format=torch.channels_last) and not laid_out.is_contiguous()
    assert np.array_equal(laid_out.numpy(), frames)


def test_the_replay_copies_what_it_is_given():
    replay, _ = filled(None, 1, 20, 1, steps=0, ends=(0, 0, 0))
    observations = np.ones((1, 2), np.float32)
    no = np.array([False])
    step = Transitions(observations, np.array([1]), np.array([1.0]), no, no, no, observations, None)
    replay.add(step, step.rewards, False)
    replay.add(step, step.rewards, False)
    observations[:] = 9.0  # as a world that reuses its buffers would
    assert replay.sample(1).observations.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("frames", [None, 1, 2, 4])
def test_a_batch_stays_as_it_was_when_others_are_drawn(frames):
    replay, _ = filled(frames, 2, 60, 1, 50, (0.1, 0.1, 0.1))
    first = replay.sample(16)
    before = [part.clone() for part in first]
    for size in (16, 16, 8):
        replay.sample(size)
    assert all(torch.equal(part, kept) for part, kept in zip(first, before, strict=True))


def test_same_generator_same_sample():
    first, second = (filled(4, 2, 60, 2, 50, (0.1, 0.1, 0.1), seed=5)[0] for _ in range(2))
    for a, b in zip(first.sample(32), second.sample(32), strict=True):
        assert torch.equal(a, b)


# -- memory and errors -----------------------------------------------------------------------------------------------


def nbytes(replay):
    """Bytes of everything that the replay keeps for each slot."""
    arrays = [value for value in vars(replay).values() if isinstance(value, np.ndarray) and len(value) > 10]
    return sum(array.nbytes for array in arrays) + replay.observations.numel() * replay.observations.element_size()


@pytest.mark.parametrize("spaces", [ATARI, STACK, VECTOR])
def test_replay_bytes_are_those_of_a_real_buffer(spaces):
    replay = Replay(spaces, 2, 1000, 1, 0.99, np.random.default_rng(0), CPU, CPU)
    assert spaces.replay_bytes(1000) == nbytes(replay)
    assert spaces.replay_bytes(1_000_000) == 1000 * nbytes(replay)


def test_a_million_atari_steps_fit_in_seven_gigabytes():
    assert 84 * 84 * 1_000_000 <= ATARI.replay_bytes(1_000_000) <= 7.2e9


def test_an_empty_replay_says_so():
    replay, _ = filled(4, 1, 20, 1, steps=0, ends=(0, 0, 0))
    assert len(replay) == 0
    with pytest.raises(RuntimeError, match="empty"):
        replay.sample(1)


def test_a_replay_without_a_whole_transition_says_so():
    replay, _ = filled(4, 1, 20, 3, steps=2, ends=(0, 0, 0))
    assert len(replay) == 2
    with pytest.raises(RuntimeError, match="no valid transition"):
        replay.sample(1)


@needs_cuda
@pytest.mark.parametrize("frames", [4, None])
def test_a_replay_on_the_device_gives_the_same_transitions(frames):
    replay, oracle = filled(frames, 2, 60, 3, 100, (0.1, 0.1, 0.1), device=torch.device("cuda"))
    batch = replay.sample(500)
    assert all(part.device.type == "cuda" for part in batch)
    check_batch(batch, oracle.valid())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), num_envs=st.integers(1, 3), steps=st.integers(5, 60), n_step=st.integers(1, 3))
def test_forgetting_earlier_tasks_leaves_the_newest_stretch_of_each_ring(seed, num_envs, steps, n_step):
    rng = np.random.default_rng(seed)
    replay = Replay(VECTOR, num_envs, 24 * num_envs, n_step, GAMMA, np.random.default_rng(seed), CPU, CPU)
    tasks = np.zeros(num_envs, int)
    made = [[] for _ in range(num_envs)]  # by environment: (task, is a transition) of every slot ever filled
    for step in range(steps):
        terminated = rng.random(num_envs) < 0.2
        observations = np.full((num_envs, 5), step, np.float32)
        nobody, rewards = np.zeros(num_envs, bool), tasks.astype(np.float32)
        actions = rng.integers(3, size=num_envs)
        ends = (rewards, terminated, nobody, nobody)
        transitions = Transitions(observations, actions, *ends, observations, observations, tasks.copy())
        replay.add(transitions, rewards, False)
        for e in range(num_envs):
            made[e] += [(tasks[e], True)] + ([(tasks[e], False)] if terminated[e] else [])
        tasks = tasks + (rng.random(num_envs) < 0.1)
    newest = int(max(task for slots in made for task, _ in slots))
    stored = [slots[-24:] for slots in made]
    transitions = [task for slots in stored for task, counts in slots if counts]
    assert replay.task_share(newest) == pytest.approx(transitions.count(newest) / len(transitions))
    kept = 0
    for slots in stored:
        for task, _ in reversed(slots):
            if task != newest:
                break
            kept += 1
    replay.keep_task(newest)
    assert len(replay) == kept
    assert replay.task_share(newest) == 1.0
    if replay.ready(0):
        assert (replay.sample(20).rewards[:, None] >= newest).all()  # the reward is the task, n of them at most


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=needs_cuda)])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(frames=st.sampled_from([None, 4]), steps=st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_parts_handed_out_as_they_were_written_make_the_same_replay_again(device, frames, steps):
    replay = filled(frames, 3, 75, 2, 0, (0, 0, 0), device=device)[0]
    world = Numbered(frames or 1, 3, np.random.default_rng(1), (0.2, 0.1, 0.1), frames is not None)
    again = filled(frames, 3, 75, 2, 0, (0, 0, 0), device=device)[0]
    start = replay.written.copy()
    for count in steps:  # at most 30 slots of 25 between two parts: some are overwritten before they are handed out
        for _ in range(count):
            transitions = world.step()
            replay.add(transitions, transitions.rewards, True)
        start = np.maximum(start, replay.oldest)
        again.put_back(start, replay.written, replay.part(start, replay.written))
        start = replay.written.copy()
    again.load_state_dict(replay.state_dict())
    for name in ("actions", "rewards", "ages", "terminal", "ended", "final", "tasks", "written", "filled", "age"):
        assert np.array_equal(getattr(replay, name), getattr(again, name)), name
    assert torch.equal(replay.observations, again.observations)
    if replay.ready(8):
        again.generator.bit_generator.state = replay.generator.bit_generator.state
        assert all(map(torch.equal, replay.sample(30), again.sample(30)))


def test_a_replay_of_another_size_is_refused():
    state = filled(None, 3, 75, 2, 5, (0, 0, 0))[0].state_dict()
    with pytest.raises(ValueError, match=r"replay.tasks: must be of shape \(60,\), as here, not \(75,\)"):
        filled(None, 3, 60, 2, 5, (0, 0, 0))[0].load_state_dict(state)
