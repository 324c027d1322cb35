"""Settings to JSON and back, run names, and the published numbers of the presets."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import LearningRate
from agents.schedule import Over
from agents.value_config import Epsilon
from envs.config import WorldConfig
from envs.families import family_of
from experiments.cli import parse_train
from experiments.config import TrainConfig, from_dict, load_config, to_dict
from experiments.naming import digest, preset_in_words
from experiments.presets import PRESETS, preset_config

ALL = [(algorithm, name) for algorithm, presets in PRESETS.items() for name in presets]


def settings(algorithm: str, name: str):
    worlds = {"dopamine": "ALE/Pong-v5", "cleanrl_atari": "ALE/Pong-v5", "classic": "CartPole-v1"}
    worlds |= {"lyle23": "ImageMDP-v0", "image": "ImageMDP-v0"}
    env = worlds.get(name, "FrictionAnt-v0" if "friction" in name else "Ant-v5")
    return preset_config(algorithm, name, family_of(env).name, env)


@pytest.mark.parametrize(("algorithm", "name"), ALL)
def test_settings_survive_json(algorithm: str, name: str) -> None:
    config = settings(algorithm, name).settled  # as runs are recorded: an Ant's backend by its name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"algorithm": "sac"}, "algorithm"),
        ({"agent": {"gama": 0.9}}, "agent.gama"),
        ({"agent": {"gamma": "high"}}, "agent.gamma"),
        ({"agent": {"gamma": 1.5}}, "gamma = 1.5"),
        ({"agent": {"adam": {"eps": 0}}}, "adam.eps"),
        ({"world": []}, "world"),
        ({"agent": {"adam": {"betas": [0.9]}}}, "agent.adam.betas"),
        ({"agent": {"adam": {"betas": ["a", 1]}}}, "agent.adam.betas"),
        ({"run": {"runs_dir": 3}}, "run.runs_dir"),
        ({"run": {"device": "tpu"}}, "run.device"),
    ],
)
def test_a_wrong_file_is_refused_by_field(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        from_dict({"algorithm": "dqn", **change})


def test_a_json_list_is_refused() -> None:
    with pytest.raises(ValueError, match="settings"):
        from_dict([])


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_config(path)


def test_config_flag_replays_a_file_and_other_flags_still_count(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    original = parse_train(["c51", "--env", "ALE/Pong-v5", "--gamma", "0.9", "--adam.betas", "0.5", "0.6"])
    path.write_text(json.dumps(to_dict(original)))
    assert parse_train(["--config", str(path)]) == original
    named = replace(original, run=replace(original.run, name="mine"))
    path.write_text(json.dumps(to_dict(named)))
    assert parse_train(["--config", str(path)]) == original  # the name belongs to the run it came from
    changed = parse_train(["c51", "--config", str(path), "--seed", "7"])
    assert changed == replace(original, run=replace(original.run, seed=7))


def test_the_name_carries_every_setting_that_shapes_the_result() -> None:
    base = ["dqn", "--env", "ALE/Pong-v5"]
    names = {
        parse_train([*base, *more]).run_name
        for more in ([], ["--seed", "2"], ["--gamma", "0.9"], ["--adam.eps", "1e-3"], ["--sticky-actions", "0.1"])
    }
    assert len(names) == 5
    told = ("s1", "s2", "gamma=0.9_s1", "adam.eps=0.001_s1", "sticky-actions=0.1_s1")  # what is not the preset's
    assert {name.rpartition("_")[0] for name in names} == {f"dqn_Pong-v5_{words}" for words in told}
    one, two = (parse_train([*base, "--seed", seed]).run_name for seed in "12")
    assert one.split("_")[-1] == two.split("_")[-1]  # seeds of one setting share the hash
    assert parse_train([*base, "--runs-dir", "elsewhere"]).run_name == parse_train(base).run_name


def test_a_config_from_before_there_was_padding_is_valid() -> None:
    older = to_dict(settings("dqn", "dopamine"))
    del older["agent"]["network"]["padding"]
    assert from_dict(older).agent.network.padding == "valid"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("dqn --env ALE/Pong-v5", "dqn_Pong-v5_s1"),
        ("dqn --env ALE/Pong-v5 --preset dopamine --probes all --log-every 7 --seed 3", "dqn_Pong-v5_s3"),
        ("dqn --env ALE/Pong-v5 --steps 5 --threads 2 --device cpu", "dqn_Pong-v5_s1"),
        (
            "dqn --env ALE/Pong-v5 --learning-rate 1e-3 --loss hl_gauss --interventions redo layer_norm --redo.tau .03",
            "dqn_Pong-v5_hl_gauss_learning-rate=0.001_redo.tau=0.03+layer_norm_s1",
        ),
        ("dqn --env CartPole-v1 --no-double --adam.betas 0.9 0.99", "dqn_CartPole-v1_adam.betas=0.9,0.99_no-double_s1"),
        ("ppo --env Ant-v5 --preset dohare24_ant", "ppo_Ant-v5_dohare24_ant_s1"),
        ("ppo --env CartPole-v1 --value-loss hl_gauss --width 8", "ppo_CartPole-v1_value-loss=hl_gauss_width=8_s1"),
        (
            "ppo --env CartPole-v1 --interventions cbp weight_decay --cbp.utility adaptable_contribution",
            "ppo_CartPole-v1_cbp.replacement-rate=0.0001,utility=adaptable_contribution+weight_decay.rate=0.01_s1",
        ),
        ("dqn --env CartPole-v1 --task.change rewards", "dqn_CartPole-v1_task.change=rewards_s1"),
        ("dqn --env ImageMDP-v0 --task.period 9", "dqn_ImageMDP-v0_task.period=9_s1"),
        ("dqn --env ALE/Pong-v5,ALE/Breakout-v5 --task.period 9", "dqn_Pong-v5,Breakout-v5_task.period=9_s1"),
    ],
)
def test_names_say_what_differs_from_the_preset(line: str, name: str) -> None:
    made = parse_train(line.split()).run_name
    assert made.rpartition("_")[0] == name
    assert re.fullmatch(r"[A-Za-z0-9._=+,-]+_[0-9a-f]{6}", made)


def test_names_with_much_to_say_count_the_rest() -> None:
    settings = "--width 7 --depth 3 --gamma 0.5 --batch-size 9 --buffer-size 99 --learning-starts 9 --replay-ratio 2"
    more = "--target-period 9 --n-step 2 --epsilon.end 0.5"
    more += " --interventions layer_norm redo cbp l2 l2_init parseval weight_clip"
    name = parse_train(f"dqn --env CartPole-v1 {settings} {more} dropout".split()).run_name
    assert "_width=7_depth=3_gamma=0.5_" in name
    assert "_layer_norm+redo+cbp+l2+l2_init+parseval+weight_clip+dropout_s1_" in name  # their strengths do not fit
    assert len(name) < 230 and len(re.findall(r"\dmore", name)) == 1
    many = "activation adam_betas cbp dropout infer l2 l2_init layer_norm optimizer_reset parseval pfo popart redo"
    name = parse_train(f"ppo --env CartPole-v1 --interventions {many} weight_clip".split()).run_name
    assert re.search(r"_activation\+adam_betas\+.*\+\dmore_s1_", name)


def test_interventions_with_much_to_say_keep_their_names_and_strengths() -> None:
    """However many parameters the first one has."""
    redo = "--redo.tau .33 --redo.when every 7 gradient steps --redo.samples 99"
    line = f"dqn --env CartPole-v1 --interventions redo l2 layer_norm {redo} --l2.rate .5 --l2.include none"
    name = parse_train(line.split()).run_name
    assert "_redo.tau=0.33,when=every_7_gradient_steps,samples=99+l2.rate=0.5,include=none+layer_norm_" in name
    name = parse_train([*line.split(), "--redo.moments", "mean", "--redo.only", "encoder"]).run_name
    assert "_redo.tau=0.33+l2.rate=0.5+layer_norm_" in name


def test_a_number_in_a_name_is_the_number_itself() -> None:
    """And in the line about the preset: rounded, it would pass for the preset's own."""
    config = parse_train(["dqn", "--env", "CartPole-v1", "--learning-rate", "0.0010000001"])
    assert "_learning-rate=0.0010000001_" in config.run_name
    assert preset_in_words(config) == "preset classic, but learning-rate 0.0010000001"


def test_the_preset_is_kept_and_does_not_shape_the_hash(tmp_path: Path) -> None:
    usual = parse_train(["ppo", "--env", "Ant-v5"])
    assert usual.run.preset == "cleanrl_continuous"  # auto has a name
    assert digest(usual) == digest(replace(usual, run=replace(usual.run, preset="")))
    older = to_dict(usual)
    del older["run"]["preset"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(older))
    loaded = parse_train(["--config", str(path), "--width", "8"])
    assert loaded.run.preset == ""
    assert loaded.run_name.startswith("ppo_Ant-v5_width=8_s1_")  # beside the usual one's
    path.write_text(json.dumps(to_dict(parse_train(["ppo", "--env", "Ant-v5", "--preset", "dohare24_ant"]))))
    assert parse_train(["--config", str(path), "--seed", "4"]).run.preset == "dohare24_ant"


def test_an_ant_is_recorded_with_its_backend_and_an_older_run_keeps_envpool(tmp_path: Path) -> None:
    """ "auto" was envpool until there was another backend for it."""
    usual = parse_train(["ppo", "--env", "Ant-v5"])
    assert to_dict(usual)["world"]["backend"] == "native" and "native" not in usual.run_name
    assert TrainConfig(agent=usual.agent, world=WorldConfig(env="Ant-v5")).settled.world.backend == "native"
    older = to_dict(usual)
    older["world"]["backend"] = "auto"
    (tmp_path / "config.json").write_text(json.dumps(older))
    loaded = parse_train(["--config", str(tmp_path / "config.json")])
    assert loaded.world.backend == "envpool" and "_backend=envpool_" in loaded.run_name
    older["world"] |= {"env": "Hopper-v5", "ant_observation": "default-105"}
    assert from_dict(older).world.backend == "auto"


def test_a_preset_that_there_is_not_is_refused_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wrong = to_dict(parse_train(["dqn", "--env", "CartPole-v1"]))
    wrong["run"]["preset"] = "image"  # PPO's
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(SystemExit, match="2"):
        parse_train(["--config", str(tmp_path / "config.json")])
    assert "run.preset = 'image': must be one of dopamine, lyle23, classic" in capsys.readouterr().err


def test_dopamine_numbers() -> None:
    dqn, c51 = settings("dqn", "dopamine"), settings("c51", "dopamine")
    for config in (dqn, c51):
        agent = config.agent
        assert (agent.learning_starts, agent.replay_ratio, agent.buffer_size) == (20_000, 0.25, 1_000_000)
        assert agent.target_period * 4 == 8_000  # gradient steps at one update in 4 steps
        assert (agent.epsilon, agent.batch_size) == (Epsilon(1.0, 0.01, Over(250_000)), 32)
        assert config.world.sticky_actions == 0.25
        assert agent.network.padding == "same"
    assert settings("ppo", "cleanrl_atari").agent.network.padding == "valid"
    assert (dqn.agent.learning_rate, dqn.agent.adam.eps) == (LearningRate(6.25e-5), 1.5e-4)
    assert (c51.agent.learning_rate, c51.agent.adam.eps) == (LearningRate(2.5e-4), 3.125e-4)
    support = c51.agent.support
    assert (support.v_min, support.v_max, support.num_atoms) == (-10.0, 10.0, 51)


def test_dohare24_numbers() -> None:
    config = settings("ppo", "dohare24_ant")
    agent, network = config.agent, config.agent.network
    assert (config.world.num_envs, agent.rollout_steps, agent.update_epochs) == (1, 2048, 10)
    assert agent.rollout_steps // agent.num_minibatches == 128
    assert agent.learning_rate == LearningRate(1e-4, over="constant")
    assert (agent.adam.eps, agent.adam.betas) == (1e-8, (0.9, 0.999))
    assert (agent.gamma, agent.gae_lambda, agent.clip_coef, agent.vf_coef) == (0.99, 0.95, 0.2, 1.0)
    assert (agent.ent_coef, agent.max_grad_norm, agent.clip_vloss, agent.norm_adv) == (0.0, 0.0, False, "rollout")
    assert (agent.time_limit, agent.clip_actions, agent.normalize_observations) == ("terminal", False, False)
    assert (network.width, network.depth, network.activation) == (256, 2, "relu")
    assert (network.initializer, agent.shared_torso) == ("lecun_uniform", False)
    world = config.world
    assert (world.ant_observation, world.contact_cost_weight) == ("padded-111", 0.0)
    assert world.healthy_reward_on_termination


def test_cleanrl_atari_numbers() -> None:
    config = settings("ppo", "cleanrl_atari")
    agent = config.agent
    assert (config.world.num_envs, agent.rollout_steps, agent.num_minibatches, agent.update_epochs) == (8, 128, 4, 4)
    assert (agent.learning_rate, agent.adam.eps) == (LearningRate(2.5e-4, 0.0, "run"), 1e-5)
    assert (agent.clip_coef, agent.ent_coef, agent.max_grad_norm) == (0.1, 0.01, 0.5)
    assert (agent.life_loss_discount, agent.clip_vloss) == (True, True)
    assert agent.vf_coef == 0.25  # .5 on half a squared error there, here the square has no half


def test_settings_of_a_changing_world_survive_json() -> None:
    flags = ["--task.period", "500", "--task.seed", "7", "--task.order", "cycle", "--task.count", "3"]
    images = ["--image.variant", "bandit", "--image.num-images", "50", "--dataset", "mnist"]
    probes = ["--probes", "ranks", "ntk", "--probe.every", "77", "--replay.on-task-change", "clear"]
    config = parse_train(["dqn", "--env", "ImageMDP-v0", *flags, *images, *probes])
    assert config.world.task.seed == 7 and config.run.probes == ("ranks", "ntk")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    unseeded = parse_train(["dqn", "--env", "ImageMDP-v0"])
    assert from_dict(json.loads(json.dumps(to_dict(unseeded)))).world.task.seed is None
    for field, value in (("seed", "x"), ("period", 1.5), ("at", "later")):
        with pytest.raises(ValueError, match=f"world.task.{field}"):
            from_dict({"algorithm": "dqn", "world": {"env": "ImageMDP-v0", "task": {field: value}}})


def test_probes_do_not_change_a_runs_name_and_tasks_do() -> None:
    plain = parse_train(["dqn", "--env", "ImageMDP-v0"]).run_name
    assert parse_train(["dqn", "--env", "ImageMDP-v0", "--probes", "all", "--probe.every", "9"]).run_name == plain
    assert parse_train(["dqn", "--env", "ImageMDP-v0", "--task.period", "9"]).run_name != plain


def test_the_published_protocol_of_friction() -> None:
    full, small = settings("ppo", "dohare24_friction_ant"), settings("ppo", "dohare24_friction_ant_scaled_down")
    assert full.world.task.period == 2_000_000 and full.world.num_envs == 1
    assert (full.world.friction.low, full.world.friction.high, full.world.friction.law) == (0.02, 2.0, "log_uniform")
    ant = (full.world.ant_observation, full.world.contact_cost_weight, full.world.healthy_reward_on_termination)
    assert ant == ("padded-111", 0.0, True)
    assert not full.agent.learning_rate.moves and full.agent.time_limit == "terminal"
    assert small.world.task.period == 300_000 and small.world.num_envs == 8


@pytest.mark.parametrize(
    ("steps", "every"),
    [(1, 1), (30, 1), (6_000, 300), (100_000, 5_000), (200_000, 10_000), (1_000_000, 10_000), (20_000_000, 200_000)],
)
def test_probes_come_at_a_hundredth_of_the_run_and_not_too_rarely_in_a_short_one(steps: int, every: int) -> None:
    assert parse_train(["dqn", "--env", "CartPole-v1", "--steps", str(steps)]).probe_every == every
    assert parse_train(["dqn", "--env", "CartPole-v1", "--steps", str(steps), "--probe.every", "70"]).probe_every == 70
