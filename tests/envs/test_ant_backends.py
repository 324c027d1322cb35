"""Ant: final observations against plain environments, the reward's formula, the variants, envpool against gymnasium."""

import gymnasium
import numpy as np
import pytest

from envs import make_vec

BACKENDS = ["envpool", "gymnasium"]
OF_ANT = ["native", *BACKENDS]


def random_actions(steps, num_envs=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(steps, num_envs, 8))


@pytest.mark.parametrize(("backend", "threads"), [("gymnasium", 1), ("native", 1), ("native", 2)])
def test_backends_that_are_gymnasiums_ant_to_the_bit(backend, threads):
    """Over episodes that fall, that are cut, and that begin again: each Ant with its own seed's stream."""
    world = make_vec("Ant-v5", 2, 11, backend, threads=threads, max_episode_steps=30)
    plain = [gymnasium.make("Ant-v5", max_episode_steps=30) for _ in range(2)]
    observations, _ = world.reset()
    assert np.array_equal(observations, np.float32([env.reset(seed=11 + i)[0] for i, env in enumerate(plain)]))
    endings = 0
    for actions in random_actions(120, 2):
        observations, rewards, terminated, truncated, infos = world.step(actions)
        for i, env in enumerate(plain):
            expected, reward, ended, late, _ = env.step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, ended, late and not ended)
            if ended or late:
                endings += 1
                assert np.array_equal(infos["final_obs"][i], expected.astype(np.float32))
                expected, _ = env.reset()
            assert np.array_equal(observations[i], expected.astype(np.float32))
    assert endings >= 6
    world.close()


def test_a_seed_begins_the_native_ants_anew_as_it_does_gymnasiums():
    worlds = [make_vec("Ant-v5", 2, 3, backend) for backend in ("native", "gymnasium")]
    for seed in (None, 40, None, 40):
        one, two = (world.reset(seed=seed)[0] for world in worlds)
        assert np.array_equal(one, two)
        for actions in random_actions(10, 2, seed=1).astype(np.float32):
            (one, *ends, _), (two, *others, _) = (world.step(actions) for world in worlds)
            assert np.array_equal(one, two) and np.array_equal(ends, others)


def test_envpool_backend_equals_a_plain_pool_without_its_made_up_rows():
    import envpool

    world = make_vec("Ant-v5", 1, 11, "envpool")
    plain = envpool.make_gymnasium("Ant-v5", num_envs=1, seed=11)
    world.reset()
    plain.reset()
    endings = 0
    for actions in random_actions(300):
        observations, rewards, terminated, truncated, infos = world.step(actions)
        expected, reward, ended, late, _ = plain.step(actions)
        assert (rewards[0], terminated[0], truncated[0]) == (reward[0], ended[0], late[0])
        if ended[0] or late[0]:
            endings += 1
            assert np.array_equal(infos["final_obs"], expected.astype(np.float32))
            expected = plain.step(actions)[0]  # the made-up row: its action is discarded
        assert np.array_equal(observations, expected.astype(np.float32))
    assert endings >= 3


def test_both_backends_simulate_the_same_physics():
    """A gymnasium Ant put into an envpool Ant's state goes the same way, within what contact solving amplifies."""
    world = make_vec("Ant-v5", 1, 4, "envpool")
    first = world.reset()[0][0].astype(np.float64)
    twin = gymnasium.make("Ant-v5").unwrapped
    twin.reset(seed=0)
    twin.set_state(np.concatenate([[0.0, 0.0], first[:13]]), first[13:27])
    for actions in random_actions(4):
        observations, rewards, *_, infos = world.step(actions)
        expected, reward, *_, info = twin.step(actions[0])
        np.testing.assert_allclose(observations[0], expected, atol=5e-3)
        np.testing.assert_allclose(rewards[0], reward, atol=1e-3)
        np.testing.assert_allclose(infos["reward_ctrl"][0], info["reward_ctrl"], rtol=1e-6)


@pytest.mark.parametrize("backend", OF_ANT)
@pytest.mark.parametrize("to_the_end", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_the_reward_is_its_formula(backend, to_the_end, weight):
    """x velocity - 0.5 sum(a^2) - weight * sum(clipped contact forces^2) + 1 while 0.2 <= z <= 1 (and at the end)."""
    options = {"contact_cost_weight": weight, "healthy_reward_on_termination": to_the_end}
    world = make_vec("Ant-v5", 4, 5, backend, **options)
    world.reset()
    endings = contacts = 0
    for actions in np.sign(random_actions(80, 4)):  # full torque: the Ants fall soon
        observations, rewards, terminated, _, infos = world.step(actions)
        seen = infos.get("final_obs", observations)
        assert np.array_equal(terminated, (seen[:, 0] < 0.2) | (seen[:, 0] > 1.0))
        healthy = ~terminated | to_the_end
        contact = weight * np.sum(np.square(seen[:, 27:], dtype=np.float64), axis=1)
        expected = infos["x_velocity"] - 0.5 * np.sum(actions**2, axis=1) - contact + healthy
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
        terms = sum(infos[f"reward_{term}"] for term in ("forward", "ctrl", "contact", "survive"))
        np.testing.assert_allclose(rewards, terms, atol=1e-5)
        endings, contacts = endings + terminated.sum(), contacts + (contact > 0).sum()
    assert endings >= 2 and (contacts > 0) == (weight > 0)


@pytest.mark.parametrize("backend", OF_ANT)
def test_the_observation_variants_show_the_same_ant(backend):
    names = {"default-105": 105, "plain-27": 27, "padded-111": 111}
    worlds = {name: make_vec("Ant-v5", 2, 5, backend, ant_observation=name) for name in names}
    rows = {name: [world.reset()[0]] for name, world in worlds.items()}
    rewards = {name: [] for name in names}
    for actions in random_actions(80, 2):
        for name, world in worlds.items():
            observations, reward, *_, infos = world.step(actions)
            rows[name] += [observations] + ([infos["final_obs"]] if "final_obs" in infos else [])
            rewards[name].append(reward)
    for name, size in names.items():
        assert worlds[name].single_observation_space.shape == (size,)
        assert all(row.shape == (2, size) and row.dtype == np.float32 for row in rows[name])
        assert np.array_equal(rewards[name], rewards["default-105"]), "contact costs stay, whatever is observed"
        assert all(np.array_equal(a[:, :27], b[:, :27]) for a, b in zip(rows[name], rows["default-105"], strict=True))
    assert not any(row[:, 27:].any() for row in rows["padded-111"])
    assert any(row[:, 27:].any() for row in rows["default-105"])


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Reacher-v5"])
def test_other_robots_look_alike_on_both_backends(env):
    one, two = (make_vec(env, 1, 0, backend) for backend in BACKENDS)
    assert one.single_observation_space == two.single_observation_space
    assert one.single_action_space == two.single_action_space
    actions = np.zeros((1, *one.single_action_space.shape))
    for world in (one, two):
        world.reset()
        assert np.isfinite(world.step(actions)[0]).all()
