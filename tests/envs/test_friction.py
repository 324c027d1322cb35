"""Friction-changing Ant: the law of its frictions; both backends against gymnasium's and envpool's own Ants."""

import os
from pathlib import Path

import envpool
import gymnasium
import mujoco
import numpy as np
import pytest
from scipy.stats import kstest

from envs import FrictionConfig, TaskConfig, WorldConfig, make_vec
from envs.families.friction_ant import FRICTION_ANT, FrictionLaw
from envs.friction import FrictionGymnasiumPool, NativeFrictionPool
from envs.tasks import Task

BACKENDS = ["native", "gymnasium"]
FRICTIONS = [0.02, 0.3, 2.0]
DOHARE = {"ant_observation": "padded-111", "contact_cost_weight": 0.0, "healthy_reward_on_termination": True}


def friction_task(friction):
    return Task(0, 0, 0, friction, {"friction": friction})


def native_ants(frictions, threads=1, **options):
    pool = NativeFrictionPool(WorldConfig(env=FRICTION_ANT, num_envs=len(frictions), **options), threads)
    for i, friction in enumerate(frictions):
        pool.enter(np.array([i]), friction_task(friction))
    return pool


def random_actions(steps, num_envs, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, num_envs, 8)).astype(np.float32)


def gymnasium_xml():
    """The XML that gymnasium's Ant is read from."""
    return (Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml").read_text()


def xml_with(friction, folder):
    path = Path(folder) / f"ant_{friction}.xml"
    before = 'friction="1 0.5 0.5"'
    assert gymnasium_xml().count(before) == 1
    path.write_text(gymnasium_xml().replace(before, f'friction="{friction!r} 0.5 0.5"'))
    return path


def numbers(model):
    """Every array and number of a compiled model by name."""
    fields = ((name, getattr(model, name)) for name in dir(model) if not name.startswith("_"))
    return {name: value for name, value in fields if isinstance(value, (np.ndarray, int, float))}


# The law


def test_frictions_are_log_uniform():
    law = FrictionLaw(FrictionConfig())
    ends = np.log10(0.02), np.log10(2.0)
    for draws in ([law.draw(7, k) for k in range(2500)], [law.draw(seed, 3) for seed in range(2500)]):
        assert 0.02 <= min(draws) < 0.021 and 1.95 < max(draws) <= 2.0
        assert kstest(np.log10(draws), "uniform", args=(ends[0], ends[1] - ends[0])).pvalue > 1e-3
        assert kstest(draws, "uniform", args=(0.02, 1.98)).pvalue < 1e-9


def test_frictions_can_be_uniform_in_another_range():
    law = FrictionLaw(FrictionConfig(low=0.5, high=1.5, law="uniform"))
    draws = [law.draw(7, k) for k in range(2500)]
    assert min(draws) >= 0.5 and max(draws) <= 1.5
    assert kstest(draws, "uniform", args=(0.5, 1.0)).pvalue > 1e-3


def test_frictions_depend_on_seed_and_number_alone():
    forwards, backwards = FrictionLaw(FrictionConfig()), FrictionLaw(FrictionConfig())
    expected = [forwards.draw(1, k) for k in range(20)]
    assert [backwards.draw(1, k) for k in reversed(range(20))] == expected[::-1]
    assert len({*expected, *(forwards.draw(2, k) for k in range(20))}) == 40
    assert forwards.describe(expected[0]) == {"friction": expected[0]} and isinstance(expected[0], float)


@pytest.mark.parametrize("law", ["log_uniform", "uniform"])
def test_a_range_of_one_friction_gives_just_it(law):
    single = FrictionLaw(FrictionConfig(low=0.1, high=0.1, law=law))
    assert {single.draw(seed, k) for seed in range(5) for k in range(5)} == {0.1}


@pytest.mark.parametrize(("law", "middle"), [("log_uniform", 0.2), ("uniform", 1.01)])
@pytest.mark.parametrize("downwards", [False, True])
def test_drift_is_even(law, middle, downwards):
    start, end = (2.0, 0.02) if downwards else (0.02, 2.0)
    way = [FrictionLaw(FrictionConfig(law=law)).between(start, end, share / 100) for share in range(101)]
    assert way[0] == start and way[-1] == pytest.approx(end) and way[50] == pytest.approx(middle)
    steps = np.diff(way) if law == "uniform" else np.diff(np.log(way))
    np.testing.assert_allclose(steps, steps[0])


# The model


def test_all_geoms_get_the_friction_and_nothing_else_changes(tmp_path):
    one_by_one = FrictionGymnasiumPool(WorldConfig(env=FRICTION_ANT, num_envs=2), None)
    together = native_ants([1.0, 1.0])
    for pool in (one_by_one, together):
        pool.enter(np.array([1]), friction_task(0.05))
    ordinary = numbers(mujoco.MjModel.from_xml_string(gymnasium_xml()))
    edited = numbers(mujoco.MjModel.from_xml_path(str(xml_with(0.05, tmp_path))))
    assert edited["geom_friction"].shape == (14, 3) and (edited["geom_friction"] == [0.05, 0.5, 0.5]).all()
    assert edited.keys() == ordinary.keys() and len(edited) > 300
    assert {name for name in edited if not np.array_equal(edited[name], ordinary[name])} == {"geom_friction"}
    for models in ([env.unwrapped.model for env in one_by_one.envs], together.models):
        for model, expected in zip(models, (ordinary, edited), strict=True):
            found = numbers(model)
            assert all(np.array_equal(found[name], value) for name, value in expected.items())
    together.close()


@pytest.mark.parametrize("friction", FRICTIONS)
@pytest.mark.parametrize("pool_type", ["native", "gymnasium"])
def test_a_friction_set_at_run_time_is_bit_for_bit_one_read_from_the_xml(friction, pool_type, tmp_path):
    """The oracle is gymnasium's Ant from an edited XML, with nothing of ours in it; several episodes."""
    plain = gymnasium.make("Ant-v5", xml_file=str(xml_with(friction, tmp_path)), max_episode_steps=-1)
    config = WorldConfig(env=FRICTION_ANT)
    pool = native_ants([1.0]) if pool_type == "native" else FrictionGymnasiumPool(config, None)
    pool.start(99)
    for row in random_actions(20, 1, seed=1):  # a life on other ground leaves no trace
        pool.advance(row)
    pool.enter(np.array([0]), friction_task(friction))
    assert np.array_equal(pool.start(5)[0][0], plain.reset(seed=5)[0])
    endings = 0
    for step, row in enumerate(random_actions(400, 1)):
        outcome = pool.advance(row)
        expected, reward, terminated, _, info = plain.step(row[0])
        assert np.array_equal(outcome.observations[0], expected)
        assert (outcome.rewards[0], outcome.terminated[0]) == (reward, terminated)
        assert all(outcome.infos[key][0] == info[key] for key in outcome.infos)
        if terminated or step % 100 == 99:
            endings += 1
            assert np.array_equal(pool.restart(np.array([0]))[0][0], plain.reset()[0])
    assert endings >= 3
    pool.close()


# The physics, against other people's Ants


class EnvPoolAnts:
    """envpool's C++ Ants from an XML with one friction."""

    def __init__(self, friction, num_envs, folder):
        assets = Path(envpool.make_spec("Ant-v5").config.base_path).resolve() / "mujoco" / "assets_gym"
        assert (assets / "ant.xml").read_text() == gymnasium_xml()
        path = os.path.relpath(xml_with(friction, folder), assets)
        self.pool = envpool.make_gymnasium("Ant-v5", num_envs=num_envs, seed=4, xml_file=path)

    def reset(self, ids=None):
        """Observations of all, or of those that begin anew."""
        return self.pool.reset(None if ids is None else ids.astype(np.int32))[0].copy()

    def step(self, actions):
        """Observations, rewards and ends."""
        observations, rewards, terminated, _, _ = self.pool.step(actions.astype(np.float64))
        return observations.copy(), rewards, terminated.copy()


def put(pool, observations):
    """The native Ants into the states that others' observations show (x and y do not matter)."""
    for i, row in enumerate(observations):
        model, state = pool.models[i], pool.states[i]
        mujoco.mj_resetData(model, state)
        state.qpos[2:], state.qvel[:] = row[:13], row[13:27]
        mujoco.mj_forward(model, state)
        pool._x[i] = state.body("torso").xpos[0]


@pytest.mark.parametrize("friction", FRICTIONS)
def test_native_ants_go_the_way_of_envpools(friction, tmp_path):
    """Two builds of MuJoCo agree to 1e-5 over a step without contact. Contacts multiply a difference about tenfold a
    step, so trajectories can be told apart from chaos for 5 steps only: within 5e-3 (angles and speeds of order 1 to
    10). A friction that is 5 % off is seen in the same steps."""
    apart = {}
    for factor in (1.0, 1.05):
        theirs, ours = EnvPoolAnts(friction, 8, tmp_path), native_ants([friction * factor] * 8)
        ours.start(0)
        put(ours, theirs.reset())
        observed, paid = [], []
        for row in random_actions(5, 8):
            observations, rewards, _ = theirs.step(row)
            outcome = ours.advance(row)
            observed.append(np.abs(outcome.observations - observations)[:, :27].max())
            paid.append(np.abs(outcome.rewards - rewards).max())
        apart[factor] = max(observed), max(paid)
    assert apart[1.0][0] < 5e-3 and apart[1.0][1] < 1e-3
    assert apart[1.05][0] > 5e-2 and apart[1.05][1] > 2e-3


@pytest.mark.parametrize("friction", FRICTIONS)
def test_each_step_of_whole_episodes_is_envpools(friction, tmp_path):
    """From envpool's state at every step: no chaos adds up, so 9 of 10 steps agree to 1e-3 over whole episodes (the
    rest touch ground just then, and a state without the solver's warm start decides differently)."""
    apart = {1.0: [], 1.05: []}
    for factor, differences in apart.items():
        theirs, ours = EnvPoolAnts(friction, 8, tmp_path), native_ants([friction * factor] * 8)
        ours.start(0)
        before = theirs.reset()
        for row in random_actions(200, 8):
            put(ours, before)
            before, _, terminated = theirs.step(row)
            differences.append(np.abs(ours.advance(row).observations - before)[:, :27].max(axis=1))
            if terminated.any():
                before[terminated] = theirs.reset(np.flatnonzero(terminated))
    assert np.quantile(apart[1.0], 0.9) < 1e-3
    assert np.median(apart[1.05]) > 10 * np.median(apart[1.0])


# Many at once


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_subsets_and_changes_make_no_difference_to_gymnasium(threads):
    """Five Ants on five grounds; some steps are of a few Ants only, frictions change at episode ends: bit for bit."""
    frictions = [0.02, 0.1, 0.3, 1.0, 2.0]
    together = native_ants(frictions, threads)
    one_by_one = FrictionGymnasiumPool(WorldConfig(env=FRICTION_ANT, num_envs=5), None)
    for i, friction in enumerate(frictions):
        one_by_one.enter(np.array([i]), friction_task(friction))
    assert np.array_equal(together.start(3)[0], one_by_one.start(3)[0])
    random, endings = np.random.default_rng(0), 0
    for row in random_actions(400, 5, seed=2):
        ids = np.flatnonzero(random.random(5) < 0.7)
        ids = None if ids.size in (0, 5) else ids
        actions = row if ids is None else row[ids]
        ours, theirs = (pool.advance(actions, ids) for pool in (together, one_by_one))
        for name in ("observations", "rewards", "terminated"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.infos.keys() == theirs.infos.keys() and ours.observations.dtype == np.float64
        assert all(np.array_equal(ours.infos[key], theirs.infos[key]) for key in ours.infos)
        fallen = np.flatnonzero(ours.terminated) if ids is None else ids[ours.terminated]
        if fallen.size:
            endings += 1
            task = friction_task(float(random.uniform(0.02, 2.0)))
            for pool in (together, one_by_one):
                pool.enter(fallen, task)
            assert np.array_equal(together.restart(fallen)[0], one_by_one.restart(fallen)[0])
    assert endings >= 5
    together.close()


def test_arrays_handed_out_are_not_written_to_again():
    pool = native_ants([0.3, 0.6], threads=2)
    handed = [pool.start(1)[0]]
    outcome = pool.advance(random_actions(1, 2)[0])
    handed += [outcome.observations, outcome.rewards, outcome.terminated, *outcome.infos.values()]
    kept = [array.copy() for array in handed]
    for row in random_actions(10, 2, seed=1):
        pool.advance(row)
    pool.restart(np.arange(2))
    assert all(np.array_equal(a, b) for a, b in zip(handed, kept, strict=True))
    pool.close()


# As worlds


def frictions_of(world):
    pool = world.pool
    models = pool.models if hasattr(pool, "models") else [env.unwrapped.model for env in pool.envs]
    for model in models:
        assert np.ptp(model.geom_friction[:, 0]) == 0
    return np.array([model.geom_friction[0, 0] for model in models])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stages", [1, 100])
def test_a_world_walks_on_the_ground_its_infos_name(backend, stages):
    """Jumps, and a drift in 100 stages: the friction changes only where an episode begins, in the right model."""
    task = TaskConfig(period=400, stages=stages, seed=9)
    world = make_vec(FRICTION_ANT, 4, 0, backend, threads=1, task=task, max_episode_steps=25)
    law, seen = FrictionLaw(FrictionConfig()), set()
    _, infos = world.reset()
    assert (infos["task"]["friction"] == law.draw(9, 0)).all()
    before = frictions_of(world)
    for row in random_actions(350, 4):
        _, _, terminated, truncated, infos = world.step(row)
        now = frictions_of(world)
        assert np.array_equal(now, infos["task"]["friction"])
        assert not (now != before)[~(terminated | truncated)].any()
        before = now
        seen |= set(now)
    if stages == 1:
        assert seen == {law.draw(9, k) for k in range(4)}
    else:
        assert len(seen) > 30
    world.close()


def test_the_backends_are_the_same_world():
    worlds = [make_vec(FRICTION_ANT, 3, 5, backend, task=TaskConfig(period=120), **DOHARE) for backend in BACKENDS]
    one, two = (world.reset()[0] for world in worlds)
    assert np.array_equal(one, two) and one.dtype == np.float32
    for row in random_actions(150, 3):
        (one, *first, infos), (two, *second, others) = (world.step(row) for world in worlds)
        assert np.array_equal(one, two) and np.array_equal(first, second)
        assert np.array_equal(infos["task"]["friction"], others["task"]["friction"])
    assert infos["task_index"].max() >= 2
    for world in worlds:
        world.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("to_the_end", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_the_reward_is_its_formula(backend, to_the_end, weight):
    """x velocity - 0.5 sum(a^2) - weight * sum(clipped contact forces^2) + 1 while 0.2 <= z <= 1 (and at the end, as
    Dohare et al.'s Ant-v3 paid it)."""
    options = {"contact_cost_weight": weight, "healthy_reward_on_termination": to_the_end}
    world = make_vec(FRICTION_ANT, 4, 5, backend, threads=1, **options)
    world.reset()
    endings = contacts = 0
    for actions in np.sign(random_actions(80, 4)):  # full torque: the Ants fall soon
        observations, rewards, terminated, _, infos = world.step(actions)
        seen = infos.get("final_obs", observations)
        assert np.array_equal(terminated, (seen[:, 0] < 0.2) | (seen[:, 0] > 1.0))
        contact = weight * np.sum(np.square(seen[:, 27:], dtype=np.float64), axis=1)
        paid = ~terminated | to_the_end
        expected = infos["x_velocity"] - 0.5 * np.sum(actions**2, axis=1) - contact + paid
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
        assert np.array_equal(infos["reward_survive"], paid)
        terms = sum(infos[f"reward_{term}"] for term in ("forward", "ctrl", "contact", "survive"))
        np.testing.assert_allclose(rewards, terms, atol=1e-12)
        endings, contacts = endings + terminated.sum(), contacts + (contact > 0).sum()
    assert endings >= 2 and (contacts > 0) == (weight > 0)
    world.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_observation_variants_show_the_same_ant(backend):
    names = {"default-105": 105, "plain-27": 27, "padded-111": 111}
    worlds = {name: make_vec(FRICTION_ANT, 2, 5, backend, threads=1, ant_observation=name) for name in names}
    rows = {name: [world.reset()[0]] for name, world in worlds.items()}
    for row in random_actions(60, 2):
        for name, world in worlds.items():
            rows[name].append(world.step(row)[0])
    for name, size in names.items():
        assert worlds[name].single_observation_space.shape == (size,)
        assert all(row.shape == (2, size) and row.dtype == np.float32 for row in rows[name])
        assert np.array_equal(np.array(rows[name])[..., :27], np.array(rows["default-105"])[..., :27])
        worlds[name].close()
    assert not np.array(rows["padded-111"])[..., 27:].any()
    assert np.array(rows["default-105"])[..., 27:].any()
