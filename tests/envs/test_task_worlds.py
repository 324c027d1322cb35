"""Worlds that change, on every backend: when they do, and that a task is the plain world seen through its change."""

import numpy as np
import pytest

from envs import TaskConfig, make_vec
from envs.tasks import derived
from tests.envs.test_tasks import Naive

E = 2
SEED = 11
ATARI = [("ALE/Pong-v5", backend) for backend in ("envpool", "ale", "gymnasium")]
WORLDS = [*ATARI, ("Ant-v5", "envpool"), ("Ant-v5", "gymnasium"), ("CartPole-v1", "gymnasium")]
CARRIED = ("actions", "rewards")
GAMES = "ALE/Pong-v5,ALE/Breakout-v5"
# Loading a cartridge takes a tenth of a second for each environment: of the Atari worlds, a choice.
CUTS = [
    *[(*world, change) for world in WORLDS[3:] for change in ("observations", "reset")],
    ("ALE/Pong-v5", "envpool", "observations"),
    ("ALE/Pong-v5", "ale", "observations"),
    ("ALE/Pong-v5", "gymnasium", "reset"),
]
CHANGES = [
    *[(*world, change) for world in WORLDS[3:] for change in ("actions", "observations", "rewards")],
    ("ALE/Pong-v5", "envpool", "observations"),
    ("ALE/Pong-v5", "envpool", "rewards"),
    ("ALE/Pong-v5", "ale", "actions"),
    ("ALE/Pong-v5", "gymnasium", "observations"),
]
LIMITS = {"ALE/Pong-v5": 7, "Ant-v5": 7, "ALE/Breakout-v5": 7, "CartPole-v1": 9, GAMES: 7}


def build(env, backend, num_envs=E, seed=SEED, limit=None, task=None, **options):
    limit = LIMITS[env] if limit is None else limit
    if env.startswith("ALE"):
        options = {"noop_max": 4, **options}  # fewer idle frames than usual, for speed
    task = TaskConfig() if task is None else TaskConfig(**{"seed": 3, **task})
    return make_vec(env, num_envs, seed, backend, threads=1, max_episode_steps=limit, task=task, **options)


def actions_of(world, steps, seed=0):
    world.action_space.seed(seed)
    return [world.action_space.sample() for _ in range(steps)]


@pytest.mark.parametrize(("at", "num_envs"), [("episode_end", 1), ("episode_end", 3), ("now", 1), ("now", 2)])
@pytest.mark.parametrize(
    ("env", "backend", "change"),
    [
        ("CartPole-v1", "gymnasium", "actions"),
        ("CartPole-v1", "gymnasium", "observations"),
        ("CartPole-v1", "gymnasium", "rewards"),
        ("CartPole-v1", "gymnasium", "reset"),
        ("Ant-v5", "envpool", "actions"),
        ("Ant-v5", "gymnasium", "observations"),
        ("ALE/Pong-v5", "envpool", "reset"),
        ("ALE/Pong-v5", "ale", "observations"),
        (GAMES, "envpool", "games"),
    ],
)
def test_boundaries_are_where_the_contract_says(env, backend, change, at, num_envs):
    period, steps = 10 * num_envs, 25 if env.startswith("ALE") else 50
    world = build(env, backend, num_envs, task={"change": change, "period": period, "at": at})
    at = "now" if change == "reset" else at
    naive = Naive([k % 2 for k in range(9)] if change == "games" else range(9), period, num_envs, at)
    _, infos = world.reset()
    assert infos["task_index"].tolist() == [0] * num_envs
    kept, cuts = [], 0
    for action in actions_of(world, steps):
        before = infos["task_index"].tolist()
        *_, terminated, truncated, infos = world.step(action)
        done = terminated | truncated
        due = naive.tick(set(np.flatnonzero(done)))
        assert infos["task_index"].tolist() == [index for index, _, _ in naive.rows()]
        if due and at == "now" and change not in CARRIED:
            assert done.all(), "an episode sees one task only"
            cuts += 1
        if done.any():
            assert infos["episode"]["task_index"][done].tolist() == np.array(before)[done].tolist()
        for i in range(num_envs):
            parameters = world.schedule.task(int(infos["task_index"][i])).parameters
            assert {name: column[i] for name, column in infos["task"].items()} == parameters
        arrays = [infos["task_index"], *infos["task"].values()]
        kept += [(array, array.copy()) for array in arrays]
    assert infos["task_index"].max() >= steps // 10 - 1
    assert cuts == (steps // 10 if at == "now" and change not in CARRIED else 0)
    assert all(np.array_equal(array, copy) for array, copy in kept), "what was handed out is never changed"
    assert world.reset()[1]["task_index"].tolist() == [naive.way[naive.due][0]] * num_envs, "reset() goes on"
    assert world.reset(seed=1)[1]["task_index"].tolist() == [0] * num_envs, "reset(seed) begins anew"
    world.close()


@pytest.mark.parametrize(
    ("env", "backend", "task"),
    [
        ("CartPole-v1", "gymnasium", {"change": "actions", "period": 30}),
        ("CartPole-v1", "gymnasium", {"change": "reset", "period": 30}),
        ("FrictionAnt-v0", "auto", {"period": 30}),
    ],
)
def test_the_same_tasks_whatever_is_played(env, backend, task):
    met = []
    for player, seed in ((0, 5), (1, 6)):
        limit = 6 if env == "FrictionAnt-v0" else 0
        world = build(env, backend, seed=seed, limit=limit, task=task)
        _, infos = world.reset()
        tasks = {}
        for action in actions_of(world, 100, player):
            *_, infos = world.step(action)
            for i in range(E):
                tasks[int(infos["task_index"][i])] = {name: column[i] for name, column in infos["task"].items()}
        met.append(tasks)
        world.close()
    shared = met[0].keys() & met[1].keys()
    assert len(shared) >= 5 and all(met[0][index] == met[1][index] for index in shared)
    assert len({str(met[0][index]) for index in shared}) >= 2


def test_without_a_seed_of_their_own_the_tasks_come_from_the_worlds():
    def permutations(**options):
        world = make_vec("Ant-v5", 1, task=TaskConfig(change="actions", period=1), backend="gymnasium", **options)
        return [world.schedule.task(k).parameters["permutation"] for k in range(1, 4)]

    assert permutations(seed=1) == permutations(seed=1) != permutations(seed=2)


@pytest.mark.parametrize(("env", "backend", "change"), CUTS)
def test_a_change_cuts_as_truncation_and_shows_what_would_have_come(env, backend, change):
    limit = 0 if env == "CartPole-v1" else 100
    plain = build(env, backend, limit=limit)
    changing = build(env, backend, limit=limit, task={"change": change, "period": 10, "at": "now"})
    plain.reset()
    changing.reset()
    for step, action in enumerate(actions_of(plain, 5), start=1):
        observations, rewards, terminated, _, _ = plain.step(action)
        seen, paid, ended, cut, infos = changing.step(action)
        assert np.array_equal(rewards, paid) and not terminated.any() and not ended.any()
        assert cut.tolist() == [step == 5] * E
        assert np.array_equal(observations, seen if step < 5 else infos["final_obs"])
    assert not np.array_equal(seen, infos["final_obs"])
    assert infos["episode"]["l"].tolist() == [5, 5]
    assert infos["task_index"].tolist() == [1, 1]
    plain.close()
    changing.close()


def permuted_action(action, order):
    """Action i does what action order[i] did; dimension i drives what dimension order[i] did."""
    if np.ndim(action) == 0:
        return order[action]
    moved = np.empty_like(action)
    for i, target in enumerate(order):
        moved[target] = action[i]
    return moved


def permuted_picture(observation, order):
    """Number i of a vector, pixel i of every frame, shows what number or pixel order[i] held."""
    if observation.ndim == 1:
        return observation[order]
    return np.stack([frame.ravel()[order].reshape(frame.shape) for frame in observation])


@pytest.mark.parametrize(("env", "backend", "change"), CHANGES)
def test_a_task_is_the_plain_world_seen_through_its_change(env, backend, change):
    # Poles fall one after the other, so that the environments are in different tasks at times.
    limit, steps = (0, 150) if env == "CartPole-v1" else (None, 50)
    plain = build(env, backend, limit=limit)
    changing = build(env, backend, limit=limit, task={"change": change, "period": 20, "reward_step": 2.5})
    content = [changing.schedule.task(index).content for index in range(16)]
    look = permuted_picture if change == "observations" else lambda observation, _: observation
    observations, _ = plain.reset()
    seen, infos = changing.reset()
    for action in actions_of(plain, steps):
        tasks = infos["task_index"]
        through = action
        if change == "actions":
            through = np.stack([permuted_action(action[i], content[tasks[i]]) for i in range(E)])
        observations, rewards, *ends, plain_infos = plain.step(through)
        seen, paid, *changing_ends, infos = changing.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(ends, changing_ends, strict=True))
        offsets = [content[k] for k in tasks] if change == "rewards" else 0.0
        assert np.array_equal(paid, rewards + offsets)
        for i in range(E):
            assert np.array_equal(seen[i], look(observations[i], content[infos["task_index"][i]]))
            if "final_obs" in infos and infos["_final_obs"][i]:
                assert np.array_equal(infos["final_obs"][i], look(plain_infos["final_obs"][i], content[tasks[i]]))
        assert seen in changing.observation_space
    assert infos["task_index"].min() >= 3
    plain.close()
    changing.close()


@pytest.mark.parametrize(("env", "backend"), WORLDS)
def test_a_periodic_reset_is_a_world_freshly_built_from_the_drawn_seed(env, backend):
    world = build(env, backend, task={"change": "reset", "period": 20})
    observations, infos = world.reset()
    fresh, fresh_observations = build(env, backend), None
    fresh_observations, _ = fresh.reset()
    for step, action in enumerate(actions_of(world, 20), start=1):
        assert np.array_equal(observations, fresh_observations)
        observations, rewards, terminated, truncated, infos = world.step(action)
        expected, fresh_rewards, fresh_terminated, fresh_truncated, _ = fresh.step(action)
        assert np.array_equal(rewards, fresh_rewards) and np.array_equal(terminated, fresh_terminated)
        if step % 10 == 0:
            assert (terminated | truncated).all()
            fresh.close()
            seeds = infos["task"]["reset_seed"]
            assert seeds[0] == seeds[1] == world.schedule.task(step // 10).content
            fresh = build(env, backend, seed=int(seeds[0]))
            expected, _ = fresh.reset()
        else:
            assert np.array_equal(truncated, fresh_truncated)
        fresh_observations = expected
    assert infos["task_index"].tolist() == [2, 2]
    fresh.close()
    world.close()


@pytest.mark.parametrize("backend", ["envpool", "ale", "gymnasium"])
def test_games_in_turn_are_the_plain_games(backend):
    world = build(GAMES, backend, task={"change": "games", "period": 24})
    first = build("ALE/Pong-v5", backend, full_action_space=True)
    seed = derived(SEED, 1, 0, 1) % (2**31 - E)  # task 1, stage 0, built for the first time
    second = build("ALE/Breakout-v5", backend, seed=seed, full_action_space=True)
    observations, infos = world.reset()
    expected, _ = first.reset()
    second.reset()
    assert world.single_action_space.n == 18
    for step, action in enumerate(actions_of(world, 20), start=1):
        assert np.array_equal(observations, expected)
        observations, rewards, terminated, truncated, infos = world.step(action)
        plain = first if step <= 14 else second
        expected, plain_rewards, *_, plain_infos = plain.step(action)
        assert np.array_equal(rewards, plain_rewards)
        assert (terminated | truncated).tolist() == [step % 7 == 0] * E
        if step % 7 == 0:
            assert np.array_equal(infos["final_obs"], plain_infos["final_obs"])
            assert infos["episode"]["task_index"].tolist() == [0, 0]
        if step == 14:  # the change was due at tick 12
            # A new game is a pool that has been started, and whose environments begin as they come over.
            expected, _ = second.pool.restart(np.arange(E))
            assert infos["task"]["game"].tolist() == ["ALE/Breakout-v5"] * E
    for each in (world, first, second):
        each.close()


@pytest.mark.parametrize("backend", ["envpool", "ale", "gymnasium"])
def test_while_one_environment_still_plays_the_old_game_both_are_the_plain_games(backend):
    """Environment 0 loses its game by itself (Breakout, FIRE pressed alone), environment 1 sits it out."""
    games = "ALE/Breakout-v5,ALE/Pong-v5"
    task = TaskConfig(change="games", period=200, seed=3)
    options = {"threads": 1, "noop_max": 0, "max_episode_steps": 180}
    world = make_vec(games, E, SEED, backend, task=task, **options)
    old = make_vec("ALE/Breakout-v5", E, SEED, backend, full_action_space=True, **options)
    new = make_vec("ALE/Pong-v5", E, 0, backend, full_action_space=True, **options)
    world.reset()
    old.reset()
    new.reset()
    fresh, _ = new.pool.restart(np.array([0]))  # a pool's first game may begin otherwise than the second
    action, idle = np.array([1, 0]), np.array([0, 0])
    moved = False
    for _ in range(180):
        observations, *_, terminated, truncated, infos = world.step(action if not moved else idle)
        expected, *_, old_terminated, _, _ = old.step(action if not moved else idle)
        assert np.array_equal(observations[1], expected[1]) or truncated[1]
        if moved:
            ahead, *_ = new.step(idle)
            if infos["task_index"].tolist() == [1, 0]:
                assert np.array_equal(observations[0], ahead[0])
        elif terminated[0]:
            assert old_terminated[0]
            assert np.array_equal(observations[0], fresh[0]), "without idle frames Pong always begins alike"
            moved = True
        if infos["task_index"].tolist() == [1, 1]:
            break
    assert moved and infos["task_index"].tolist() == [1, 1]
    for each in (world, old, new):
        each.close()


def test_modes_and_difficulties_are_the_cartridges_own():
    """Breakout's mode 12 shows another wall; task 3 of the list (mode by mode, then the next difficulty) is that."""
    task = {"change": "modes", "period": 6}
    pictures = {}
    for backend in ("envpool", "gymnasium"):
        for first, names in ((0, (0, 0)), (3, (12, 0))):
            world = build("ALE/Breakout-v5", backend, 1, limit=3, task={**task, "first": first}, noop_max=0)
            observations, infos = world.reset()
            assert (infos["task"]["mode"][0], infos["task"]["difficulty"][0]) == names
            pictures[backend, first] = observations
            world.close()
    plain = build("ALE/Breakout-v5", "envpool", 1, noop_max=0).reset()[0]
    assert np.array_equal(pictures["envpool", 0], plain) and np.array_equal(pictures["gymnasium", 0], plain)
    assert np.array_equal(pictures["envpool", 3], pictures["gymnasium", 3])
    assert not np.array_equal(pictures["envpool", 3], plain)


def test_a_reset_world_that_begins_with_a_later_task_has_that_tasks_seed():
    world = build("CartPole-v1", "gymnasium", task={"change": "reset", "period": 0, "first": 4})
    observations, infos = world.reset()
    plain = build("CartPole-v1", "gymnasium", seed=int(infos["task"]["reset_seed"][0]))
    assert np.array_equal(observations, plain.reset()[0])
