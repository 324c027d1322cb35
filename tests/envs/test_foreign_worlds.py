"""Worlds that other people made: what they may do, what they are told, and what reaches the agent."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box

from envs import WorldConfig, describe, make_vec
from envs.errors import WorldError
from envs.families import canonical, family_of, usual_family
from envs.forms import observation_form
from tests import odd_worlds

ROOT = Path(__file__).parents[2]


def world_of(name, num_envs=2, **options):
    return make_vec(f"tests.odd_worlds:{name}-v0", num_envs, 0, **options)


def play(world, steps=12):
    """Every observation, and the infos of every step."""
    observations, infos = world.reset()
    told = [(observations, infos)]
    for _ in range(steps):
        actions = np.zeros(world.action_space.shape, world.action_space.dtype)
        observations, _, _, _, infos = world.step(actions)
        told.append((observations, infos))
    world.close()
    return told


INFOS = [name for name in odd_worlds.KINDS if name.startswith("Lives")]
INFOS += ["Plain", "SometimesTold", "ToldWords", "NoInfo", "ArrayInfo", "ListInfo", "OurNames"]


@pytest.mark.parametrize("name", INFOS)
def test_infos_are_not_trusted(name):
    for observations, infos in play(world_of(name)):
        assert observations.shape == (2, 3) and observations.dtype == np.float32
        assert set(infos) <= {"lives", "life_lost", "final_obs", "_final_obs", "episode", "_episode"}
        if "episode" in infos:
            assert infos["episode"]["l"].tolist() == [10, 10]


def test_lives_count_where_they_are_known():
    told = play(world_of("LivesLost", 1), 10)
    assert [infos["lives"].item() for _, infos in told] == [3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 3]
    assert [infos["life_lost"].item() for _, infos in told] == [i in (4, 8) for i in range(11)]
    told = play(world_of("LivesLater", 1), 12)
    assert "lives" not in told[0][1], "nothing was said at the first reset"
    assert [infos["lives"].item() for _, infos in told[1:]] == [3] * 9 + [-1] + [3, 3]
    assert not any(infos["life_lost"].any() for _, infos in told[1:])
    told = play(world_of("LivesSometimes", 1), 9)  # says 2 at step 4 and 1 at step 8, and nothing else
    assert [infos["lives"].item() for _, infos in told[4:]] == [2, 2, 2, 2, 1, 1]
    assert [infos["life_lost"].item() for _, infos in told[4:]] == [False] * 4 + [True, False]


@pytest.mark.parametrize("name", ["LivesWord", "LivesNothing", "LivesArray", "LivesTruth", "LivesFraction"])
def test_lives_that_are_no_count_are_no_lives(name):
    assert not any("lives" in infos for _, infos in play(world_of(name)))


TAKEN = {  # shape and type as agents see them, and the second observation (every world's t is 1 then)
    "NoDimension": ((1,), np.float32, [1.0]),
    "Integers": ((4,), np.float32, [1.0] * 4),
    "Matrix": ((2, 3), np.float32, [[1.0] * 3] * 2),
    "Lists": ((3,), np.float32, [0.0, 0.5, 1.0]),
    "Doubles": ((3,), np.float32, [0.0] * 3),
    "Counted": ((5,), np.float32, [0.0, 1.0, 0.0, 0.0, 0.0]),
    "Bits": ((4,), np.float32, [1.0] * 4),
    "Counts": ((5,), np.float32, [0.0, 1.0, 0.0, 0.0, 1.0]),
    "Pair": ((5,), np.float32, [0.0, 1.0, 0.0, 1.0, 2.0]),
    "Goals": ((4,), np.float32, [1.0, 2.0, 3.0, 4.0]),
    "NoChannels": ((1, 84, 84), np.uint8, None),
    "ChannelsLast": ((3, 84, 84), np.uint8, None),
}


@pytest.mark.parametrize("name", TAKEN)
def test_observations_become_arrays(name):
    shape, dtype, expected = TAKEN[name]
    world = world_of(name)
    info = describe(WorldConfig(env=f"tests.odd_worlds:{name}-v0"))
    assert (info.observation_shape, info.observation_dtype) == (shape, np.dtype(dtype).name)
    assert world.single_observation_space.shape == shape and world.single_observation_space.dtype == dtype
    told = play(world)
    assert all(observations in world.observation_space for observations, _ in told)
    if expected is not None:
        assert told[1][0].tolist() == [expected] * 2
    silent = name in ("Integers", "Matrix", "Lists", "Doubles")
    assert bool(world.notes) != silent, "what is changed is said"


IMAGES = {
    (84, 84, 3): (3, 84, 84),
    (96, 96, 1): (1, 96, 96),
    (210, 160, 3): (3, 210, 160),
    (3, 84, 84): (3, 84, 84),
    (4, 84, 84): (4, 84, 84),
    (84, 84): (1, 84, 84),
    (4, 84, 84, 3): (12, 84, 84),
    (4, 84, 84, 1): (4, 84, 84),
    (2, 3, 64, 48): (6, 64, 48),
    (16, 8, 8): (16, 8, 8),
    (3, 3, 3): (3, 3, 3),
    (4, 84, 4): (4, 84, 4),
    (84, 3, 84): (84, 3, 84),
}


@pytest.mark.parametrize("shape", IMAGES)
def test_the_channels_of_images_come_first(shape):
    form = observation_form("X-v0", Box(0, 255, shape, np.uint8))
    assert form.space == Box(0, 255, IMAGES[shape], np.uint8)
    clear = len(shape) == 3 and shape[0] < min(shape[1:])
    assert bool(form.note) != clear
    assert ("no axis is plainly" in form.note) == (shape in [(16, 8, 8), (3, 3, 3), (4, 84, 4), (84, 3, 84)])
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = form.read(image)
    assert seen.shape == IMAGES[shape]
    if shape == (84, 84, 3):
        assert all(seen[c, y, x] == image[y, x, c] for c, y, x in [(0, 0, 0), (2, 5, 80), (1, 83, 2)])
    if shape == (4, 84, 84, 3):
        assert all(seen[3 * f + c, 7, 9] == image[f, 7, 9, c] for f in range(4) for c in range(3))


def test_numbers_of_other_types_and_bounds_are_no_pixels():
    for space, note in [
        (Box(0.0, 1.0, (84, 84, 3), np.float32), "21,168 separate numbers"),
        (Box(0, 65_535, (64, 64), np.uint16), "4,096 separate numbers"),
        (Box(0, 2, (8, 8), np.uint8), ""),
    ]:
        form = observation_form("X-v0", space)
        assert form.space.dtype == np.float32 and form.space.shape == space.shape
        assert note in form.note and bool(note) == bool(form.note)
    assert observation_form("X-v0", Box(0, 255, (128,), np.uint8)).space == Box(0, 255, (128,), np.uint8)
    assert observation_form("X-v0", Box(0, 1, (128,), np.uint8)).space == Box(0, 1, (128,), np.float32)


REFUSED = {
    "Words": "observations must be numbers, vectors or images.*TransformObservation.*Text",
    "Chain": "observations must be numbers.*Sequence",
    "Web": "observations must be numbers.*Graph",
    "PictureAndMore": "not images beside others.*FilterObservation",
    "Empty": "observations must hold a number at least",
    "NoParts": r"observations must hold a number at least, not Dict\(\)",
    "Endless": "at most 100,000 inputs when flattened, not 1,000,000,000",
    "NoSpace": r"observation_space must be a space of gymnasium's, not 'Box\(3,\)'",
    "ActsManyCounts": "actions must be Discrete or a Box of numbers.*TransformAction.*MultiDiscrete",
    "ActsManyBits": "actions must be Discrete or a Box.*MultiBinary",
    "ActsBoth": "actions must be Discrete or a Box.*Tuple",
    "ActsEmpty": "actions must be Discrete or a Box",
    "ActsNone": "actions must be Discrete or a Box.*not None",
    "RaisesAtBirth": "cannot be built here .ZeroDivisionError: division by zero .odd_worlds.py, line",
    "Needs": "cannot be built here .TypeError.*'size'.*kwargs=",
    "RaisesForSpace": "cannot be built here .*not yet known",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_act_in_is_refused_before_it_is_played(name):
    with pytest.raises(ValueError, match=f"^env = 'tests.odd_worlds:{name}-v0': .*{REFUSED[name]}"):
        describe(WorldConfig(env=f"tests.odd_worlds:{name}-v0"))
    with pytest.raises(ValueError, match=REFUSED[name]):
        world_of(name)


def test_a_render_mode_that_a_constructor_asks_for_is_given():
    world = world_of("NeedsRenderMode")
    assert world.envs[0].unwrapped.render_mode is None
    assert make_vec("tests.odd_worlds:NeedsRenderMode-v0", 1, 0, render_mode="rgb_array").render_mode == "rgb_array"


def test_environments_must_be_alike():
    odd_worlds.Alike.built = 0
    with pytest.raises(ValueError, match=r"all environments must be alike: 1's observations are Box.*\(4,\).*\(3,\)"):
        world_of("Unlike", 3)


PROMISED = r"where an array of shape \(3,\) \(float32\) was promised"
AT_RESET = {
    "ScalarObservation": rf"the single value 0.0 \(float32\), {PROMISED}",
    "Longer": rf"an array of shape \(4,\) \(float32\), {PROMISED}",
    "Turned": rf"an array of shape \(3, 1\) \(float32\), {PROMISED}",
    "NoObservation": f"None, {PROMISED}",
    "Name": f"'cart', {PROMISED}",
    "DictObservation": f"a dict of 1, {PROMISED}",
    "Ragged": f"a list of 3, {PROMISED}",
    "Objects": rf"an array of shape \(3,\) \(object\), {PROMISED}",
    "FloatImage": r"shape \(8,\) \(float32\), where an array of shape \(8,\) \(uint8\) was promised",
    "WrappedBytes": r"shape \(8,\) \(int64\) with values beyond that type, where .* \(uint8\) was promised",
    "BeyondCount": r"the single value 3 \(int\), where an integer from 0 to 2 was promised",
    "MissingGoal": "a dict of 0, where a dict with place was promised",
    "OldReset": r"an array of shape \(3,\) \(float32\), where \(observation, info\) was expected .*old Gym API",
    "SeedlessReset": "raised TypeError: .*seed.* must take seed and options",
    "RaisesAtReset": "raised KeyError: 'no such level' .odd_worlds.py, line",
}


@pytest.mark.parametrize("name", AT_RESET)
def test_what_breaks_a_promise_at_reset_is_named(name):
    with pytest.raises(WorldError, match=AT_RESET[name]) as caught:
        world_of(name).reset()
    sentence = str(caught.value)
    assert sentence.startswith(f"env = 'tests.odd_worlds:{name}-v0': environment 0 ") and "\n" not in sentence
    assert "at its first reset" in sentence


AT_STEP = {  # what is said, and the step at which it happens in the first of two environments
    "ArrayReward": (r"as reward an array of shape \(1,\) \(float32\), where a single number was expected", 1),
    "NoReward": ("as reward None", 1),
    "WordReward": ("as reward '1.0'", 1),
    "ComplexReward": ("as reward the single value 1j", 1),
    "EndlessReward": ("as reward the single value 1000", 1),
    "NoEnd": ("as terminated None, where True or False was expected", 1),
    "ArrayEnd": (r"as terminated an array of shape \(1,\) \(bool\)", 1),
    "Grows": (rf"an array of shape \(4,\) \(float32\), {PROMISED}", 9),
    "OldStep": ("a tuple of 4, where .observation, reward, .*old Gym API gave four", 1),
    "NothingStep": ("None, where .observation, reward", 1),
    "RaisesAtStep": (r"raised RuntimeError: simulator lost \[connection\] \(odd_worlds.py, line", 13),
    "RaisesMute": (r"raised Mute: \(its message raises LookupError\)", 13),
    "RaisesColours": (r"raised RuntimeError: \\x1b\[31mred\\x00 next", 13),
    "Exits": ("raised SystemExit: 3", 13),
    "Panics": ("raised Panic: thread panicked", 13),
}


@pytest.mark.parametrize("name", AT_STEP)
def test_what_breaks_a_promise_at_a_step_is_named(name):
    words, step = AT_STEP[name]
    world = world_of(name)
    with pytest.raises(WorldError, match=words) as caught:
        play(world)
    sentence = str(caught.value)
    assert sentence.startswith(f"env = 'tests.odd_worlds:{name}-v0': environment 0 ") and "\n" not in sentence
    assert f"at step {step}" in sentence
    raised = caught.value.__cause__
    assert (raised is None) == ("raised" not in sentence and name != "Grows")


def test_an_old_world_behind_a_time_limit_is_told_so_too():
    import gymnasium

    if "OldLimited-v0" not in gymnasium.registry:
        gymnasium.register("OldLimited-v0", entry_point=odd_worlds.KINDS["OldStep"], max_episode_steps=5)
    world = make_vec("OldLimited-v0", 1, 0)
    world.reset()
    with pytest.raises(WorldError, match="OldLimited-v0.*at step 1.*the old Gym API had four"):
        world.step(np.zeros(1, int))


@pytest.mark.parametrize("name", ["IntReward", "NumpyReward", "SingleReward", "IntEnd", "NumpyEnd"])
def test_numbers_of_any_type_are_numbers(name):
    world = world_of(name)
    world.reset()
    _, rewards, terminated, _, _ = world.step(np.zeros(2, int))
    assert rewards.tolist() == [1.0, 1.0] and rewards.dtype == np.float64
    assert terminated.tolist() == [False, False] and terminated.dtype == bool


def test_what_lies_outside_its_bounds_is_said_once(capsys):
    told = play(world_of("Outside"), 30)
    assert told[4][0].tolist() == [[7.0] * 3] * 2, "and taken as it is"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "'tests.odd_worlds:Outside-v0': an observation at step 7 holds 7 outside its bounds [-1, 1]" in lines[0]


def test_arrays_that_a_world_writes_to_again_are_copied():
    told = play(world_of("Reuses"), 8)
    np.testing.assert_allclose([observations[0, 0] for observations, _ in told], np.arange(9) / 10, rtol=1e-6)


@pytest.mark.parametrize("name", ["WandersAtReset", "WandersAtStep", "WandersAtBirth"])
def test_the_working_directory_stays(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    describe(WorldConfig(env=f"tests.odd_worlds:{name}-v0"))
    play(world_of(name), 3)
    assert Path.cwd() == tmp_path


def test_actions_are_copied_too():
    world = world_of("WritesIntoActions")
    world.reset()
    actions = np.full((2, 2), 0.5, np.float32)
    world.step(actions)
    assert (actions == 0.5).all()


ACTIONS = {  # bounds as agents see them, an action of an agent, and the sum of what the world is given
    "FromFive": (None, 2, 7.0),
    "Far": ((100.0, 200.0), [150.5], 150.5),
    "Whole": ((0.0, 10.0), [2.6, 99.0], 13.0),
    "Bytes": ((0.0, 255.0), [-3.0], 0.0),
    "Square": ((-1.0, 1.0), [0.25, 0.5, -1.0, 1.0], 0.75),
    "Unbounded": ((-np.inf, np.inf), [1e6, 1.0], 1e6 + 1.0),
    "Fixed": (None, [2.0, 0.5], 2.5),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_reach_the_world_in_its_own_terms(name):
    bounds, action, expected = ACTIONS[name]
    world = world_of(f"Acts{name}", 1)
    space = world.single_action_space
    if bounds is not None:
        assert space.dtype == np.float32 and (space.low == bounds[0]).all() and (space.high == bounds[1]).all()
    world.reset()
    assert world.step(np.array([action]))[1].item() == expected


def test_an_action_at_its_float32_bound_lies_within_the_worlds():
    world = world_of("ActsNumber", 1)  # -.1 and .1 in float64, which float32 rounds outwards
    assert world.single_action_space.shape == (1,)
    world.reset()
    assert world.step(world.single_action_space.high[None])[1].item() == pytest.approx(0.1)
    assert world.step(world.single_action_space.low[None])[1].item() == pytest.approx(-0.1)


def test_closing_closes_all_and_tells_the_first_error():
    world = world_of("RaisesAtClose", 2)
    world.reset()
    closed = []
    world.envs[1].unwrapped.close = lambda: closed.append(1)
    with pytest.raises(WorldError, match="environment 0 raised OSError: port is gone .* when it was closed"):
        world.close()
    assert closed == [1]
    world.close()  # a second time does nothing


def test_drawing_is_checked():
    world = world_of("Drawn", 1, render_mode="rgb_array")
    world.reset()
    assert world.render()[0].shape == (16, 16, 3)
    world.envs[0].unwrapped.drawn = 5
    with pytest.raises(WorldError, match="environment 0 raised RuntimeError: window lost .* when it was to be drawn"):
        world.render()
    world.close()
    with pytest.raises(ValueError, match="render_mode.*a world that takes no render_mode cannot be drawn"):
        world_of("Plain", 1, render_mode="rgb_array")


def test_a_keyboard_interrupt_keeps_its_way():
    world = world_of("Plain", 1)
    world.reset()

    def interrupted(action):
        raise KeyboardInterrupt

    world.envs[0].step = interrupted
    with pytest.raises(KeyboardInterrupt):
        world.step(np.zeros(1, int))


def test_an_error_of_our_own_is_not_the_worlds():
    world = world_of("Plain", 1)
    world.reset()
    with pytest.raises(TypeError, match="iterat"):  # a WorldError is a RuntimeError
        world.step(None)


@pytest.mark.parametrize("backend", ["envpool", "ale", "gymnasium"])
def test_a_backend_that_fails_names_its_world(backend, monkeypatch):
    world = make_vec("ALE/Pong-v5", 2, 0, backend, threads=1)
    world.reset()

    def fails(*arguments, **options):
        raise RuntimeError("emulator lost")

    target = world.pool._native if backend != "gymnasium" else world.envs[0]
    monkeypatch.setattr(target, {"envpool": "_recv"}.get(backend, "step"), fails)
    with pytest.raises(WorldError, match="Pong-v5'.* raised RuntimeError: emulator lost .*at .*step"):
        world.step(np.zeros(2, int))


MODULES = {
    "no_such_module:X-v0": "'no_such_module' is not a module that can be imported from .*PYTHONPATH",
    "tests.no_such:X-v0": "'tests.no_such' is not a module",
    "tests.odd_worlds:Plane-v0": "the module 'tests.odd_worlds' registers no world 'Plane-v0'; did you mean 'Plain-v0'",
    "a:b:C-v0": "must be a Gymnasium id such as .*MODULE:ID",
    ":C-v0": "must be a Gymnasium id",
    "tests.odd_worlds:": "must be a Gymnasium id",
    "CartPole": "did you mean 'CartPole-v1'",
    "cartpole-v1": "did you mean 'CartPole-v1'",
    "Ant": "did you mean 'Ant-v5'",
    "Ant-v3": "must be 'Ant-v5', since v2 and v3 needed mujoco-py",
    "HalfCheetah-v2": "must be 'HalfCheetah-v5'",
    "gymnasium.envs.mujoco:Hopper-v3": "must be 'Hopper-v5'",
    "Pusher-v4": "cannot be built here.*'Pusher-v5' can",
    "PongDeterministic-v4": "did you mean 'ALE/Pong-v5' .*sticky",
    "Breakout-ramNoFrameskip-v0": "did you mean 'ALE/Breakout-v5'",
    "ale_py:SpaceInvaders-v4": "did you mean 'ALE/SpaceInvaders-v5'",
}


@pytest.mark.parametrize("env", MODULES)
def test_ids_that_name_no_world_are_refused(env):
    with pytest.raises(ValueError, match=f"^env = .*{MODULES[env]}"):
        describe(WorldConfig(env=env))


def test_modules_of_known_families_go_without_saying():
    assert canonical("ale_py:ALE/Pong-v5,ale_py:ALE/Breakout-v5") == "ALE/Pong-v5,ALE/Breakout-v5"
    assert WorldConfig(env="ale_py:ALE/Pong-v5", sticky_actions=0.25) == WorldConfig(
        env="ALE/Pong-v5", sticky_actions=0.25
    )
    assert WorldConfig(env="gymnasium.envs.mujoco:Ant-v5", ant_observation="plain-27").env == "Ant-v5"
    assert WorldConfig(env="envs:FrictionAnt-v0").change == "friction"
    # A module of one's own may have an Ant-v5 of its own.
    assert WorldConfig(env="mine.ants:Ant-v5").env == "mine.ants:Ant-v5"
    assert family_of("mine.ants:Ant-v5").name == family_of("mine:ALE/Pong-v5").name == "gymnasium"
    assert [usual_family(env).name for env in ("Ant-v5", "Ant-v4", "CartPole-v1", "mine:Ant-v4")] == [
        "mujoco",
        "mujoco",
        "gymnasium",
        "gymnasium",
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package", "could not be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "could not be imported: ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("import sys; sys.exit(4)", "could not be imported: SystemExit: 4"),
        ("def (", "could not be imported: SyntaxError"),
        ("", "the module 'broken' registers no world 'X-v0'"),
    ],
)
def test_a_module_of_the_working_directory_is_found_and_its_errors_are_told(source, words, tmp_path):
    (tmp_path / "broken.py").write_text(source)
    flags = ["dqn", "--env", "broken:X-v0", "--steps", "10", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: env = 'broken:X-v0': ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()
