"""Atari: each backend against an emulator driven by hand, and the three against each other."""

import ale_py
import ale_py.roms
import cv2
import numpy as np
import pytest

from envs import make_vec

BACKENDS = ["envpool", "ale", "gymnasium"]


class ByHand:
    """One game on the bare emulator, written from the definition of the preprocessing: slow and obvious."""

    def __init__(self, rom):
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(rom))
        self.actions = self.ale.getMinimalActionSet()

    def shrink(self, screen):
        return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)

    def reset(self):
        self.ale.reset_game()
        if ale_py.Action.FIRE in self.actions:
            self.ale.act(ale_py.Action.FIRE)
        self.stack = [self.shrink(self.ale.getScreenGrayscale())] * 4
        return np.stack(self.stack)

    def step(self, action):
        """The observation (with a newest frame only where the game goes on), the reward, and whether it is over."""
        reward, screens = 0, []
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        self.stack = [*self.stack[1:], self.shrink(np.maximum(screens[-1], screens[-2] if screens[1:] else 0))]
        return np.stack(self.stack), reward, self.ale.game_over()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("env", "rom", "steps"), [("Breakout", "breakout", 220), ("Pong", "pong", 40)])
def test_every_backend_equals_the_emulator_driven_by_hand(backend, env, rom, steps):
    world = make_vec(f"ALE/{env}-v5", 2, 0, backend, threads=1, noop_max=0)
    games = [ByHand(rom) for _ in range(2)]
    observations, _ = world.reset()
    assert np.array_equal(observations, np.stack([game.reset() for game in games]))
    rng = np.random.default_rng(3)
    over = 0
    for _ in range(steps):
        actions = rng.integers(world.single_action_space.n, size=2)
        observations, rewards, terminated, truncated, infos = world.step(actions)
        for i, game in enumerate(games):
            expected, reward, ended = game.step(actions[i])
            assert rewards[i] == reward and terminated[i] == ended and not truncated[i]
            assert infos["lives"][i] == game.ale.lives() or ended
            if ended:
                over += 1
                # The newest frame of a game that is over is each backend's own (envs/families/atari.py says why).
                assert np.array_equal(infos["final_obs"][i, :3], expected[:3])
                expected = game.reset()
            assert np.array_equal(observations[i], expected)
    assert over >= 1 or rom == "pong"
    world.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [2, 6])
def test_final_observation_at_the_time_limit_is_exact(backend, limit):
    world = make_vec("ALE/Pong-v5", 1, 0, backend, threads=1, noop_max=0, max_episode_steps=limit)
    game = ByHand("pong")
    world.reset()
    game.reset()
    rng = np.random.default_rng(0)
    for step in range(1, 3 * limit + 1):
        action = rng.integers(6, size=1)
        observations, _, _, truncated, infos = world.step(action)
        expected, *_ = game.step(action[0])
        assert truncated[0] == (step % limit == 0)
        if truncated[0]:
            assert np.array_equal(infos["final_obs"][0], expected)
            expected = game.reset()
        assert np.array_equal(observations[0], expected)
    world.close()


def test_only_the_newest_frame_of_a_finished_game_differs_between_backends():
    worlds = {name: make_vec("ALE/SpaceInvaders-v5", 1, 0, name, threads=1, noop_max=0) for name in BACKENDS}
    for world in worlds.values():
        world.reset()
    rng = np.random.default_rng(0)
    finals = []
    while not finals:
        action = rng.integers(6, size=1)
        infos = {name: world.step(action)[4] for name, world in worlds.items()}
        if "final_obs" in infos["ale"]:
            finals.append({name: info["final_obs"][0] for name, info in infos.items()})
    for final in finals:
        assert np.array_equal(final["ale"], final["gymnasium"])
        assert np.array_equal(final["envpool"][:3], final["ale"][:3])
    assert any((final["envpool"][3] != final["ale"][3]).any() for final in finals), "the docstring can drop this now"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rom", ["boxing", "asterix"])
def test_the_law_of_idle_frames(backend, rom):
    """With noop_max = 4. Boxing has FIRE, Asterix has not; both screens change with every frame from the start."""
    game = ByHand(rom)
    fire = ale_py.Action.FIRE in game.actions
    first_fire = backend == "ale"
    screens = {}
    for idle in range(6):
        game.ale.reset_game()
        presses = [ale_py.Action.NOOP] * idle
        if fire:
            presses = [ale_py.Action.FIRE, *presses] if first_fire else [*presses, ale_py.Action.FIRE]
        for press in presses:
            game.ale.act(press)
        screens.setdefault(game.shrink(game.ale.getScreenGrayscale()).tobytes(), idle)
    assert len(screens) == 6, "equal screens: the idle frames cannot be counted"
    world = make_vec(f"ALE/{rom.capitalize()}-v5", 1, 0, backend, threads=1, noop_max=4)
    drawn = {screens[frame.tobytes()] for _ in range(24) for frame in world.reset()[0][:, 3]}
    expected = {0, 1, 2, 3} if fire else ({0, 1, 2, 3, 4} if first_fire else {1, 2, 3, 4})
    assert drawn == expected
    world.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sticky_actions_and_the_full_action_space(backend):
    """With probability 1 every frame repeats the last action, so no choice of the agent ever reaches the game."""
    runs = []
    for choice in (2, 3):
        world = make_vec("ALE/Breakout-v5", 1, 0, backend, threads=1, sticky_actions=1.0, noop_max=0)
        world.reset()
        runs.append([world.step(np.array([choice]))[0] for _ in range(12)])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    full = make_vec("ALE/Breakout-v5", 1, 0, backend, threads=1, full_action_space=True, noop_max=0)
    game = ByHand("breakout")
    game.actions = game.ale.getLegalActionSet()
    assert full.single_action_space.n == len(game.actions) == 18
    assert np.array_equal(full.reset()[0][0], game.reset())
    for action in np.random.default_rng(0).integers(18, size=15):
        assert np.array_equal(full.step(np.array([action]))[0][0], game.step(action)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_fire_breakout_does_not_begin(backend):
    world = make_vec("ALE/Breakout-v5", 1, 0, backend, threads=1, fire_reset=False, noop_max=1)
    world.reset()
    lost = [world.step(np.array([0]))[4]["life_lost"][0] for _ in range(60)]
    assert not any(lost), "the ball is never served"


def test_sticky_frames_of_the_gymnasium_backend_follow_ales_law():
    """Actions 2 and 3 are asked for in turn. Frame k of a step still shows the other one with probability
    x / 2 ** (k + 1),
    where x says that the other one was in force before: not so only if the step before never got through, which was
    in the other one's force then, so x = 1 - x / 2 ** 4 = 16 / 17."""
    world = make_vec("ALE/Boxing-v5", 1, 3, "gymnasium", sticky_actions=0.5, noop_max=0)
    core = world.envs[0].unwrapped
    frames, plain = [], core.step
    core.step = lambda action: frames.append(action) or plain(action)
    world.reset()
    frames.clear()
    for step in range(1000):
        world.step(np.array([2 + step % 2]))
    old = (np.array(frames).reshape(1000, 4) != 2 + np.arange(1000)[:, None] % 2).mean(axis=0)
    np.testing.assert_allclose(old, [8 / 17, 4 / 17, 2 / 17, 1 / 17], atol=0.05)  # three standard deviations
