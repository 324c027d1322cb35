"""Flags: what the words after them mean, what is said where they are wrong, and what a help shows."""

import dataclasses
import inspect
import itertools
import os
import re
import resource
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from agents.described import fields_in_source, texts_of
from agents.interventions import NAMES, intervention_class, parameters_of
from agents.kinds import KINDS
from agents.spelling import nearest, whole_number
from agents.value_config import DQNConfig
from experiments.cli import parse_evaluate, parse_train
from experiments.config import TrainConfig, from_dict
from experiments.flags import flags_of
from experiments.foreign_flags import FOREIGN, FOREIGN_TO_EVALUATE
from experiments.setup import check

ROOT = Path(__file__).parents[2]
CARTPOLE = ("dqn", "--env", "CartPole-v1")
ANT = ("ppo", "--env", "Ant-v5")


def refusal(capsys: pytest.CaptureFixture, *arguments: str, parse=parse_train) -> str:
    """The one sentence that answers a wrong command line."""
    with pytest.raises(SystemExit) as stopped:
        parse(list(arguments))
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said.strip()


def help_of(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse_train([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def shown(text: str) -> set[str]:
    """The flags that a help lists."""
    return {name for line in re.findall(r"^  (-.*?)(?:  |$)", text, re.M) for name in re.findall(r"--[\w.-]+", line)}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000000", 1_000_000),
        ("1_000_000", 1_000_000),
        ("1e6", 1_000_000),
        ("2.5e5", 250_000),
        ("5E+3", 5_000),
        ("100.0", 100),
        ("-1", -1),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("1.5", None),
        ("1e-3", None),
        ("nan", None),
        ("inf", None),
        ("1e999999999", None),
        ("9" * 5_000, None),
        ("1,000", None),
        ("1k", None),
        ("", None),
    ],
)
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def test_every_whole_number_may_be_written_as_1e3() -> None:
    """The flags that decide the preset, those of interventions and evaluate.py's among them."""
    line = "ppo --env ALE/Pong-v5 --steps 2.5e5 --seed 1e3 --task.change reset --task.period 1e4 --interventions redo"
    config = parse_train([*line.split(), "--redo.when", "every-1e2-gradient-steps", "--num-envs", "1e1"])
    assert (config.run.steps, config.run.seed, config.world.task.period, config.world.num_envs) == (
        250_000,
        1_000,
        10_000,
        10,
    )
    assert config.interventions[0].when == "every 100 gradient steps" and type(config.run.steps) is int
    assert parse_train(["dqn", "--env", "ALE/Pong-v5", "--epsilon.over", "2.5e5"]).agent.epsilon.over == "250000"
    assert parse_evaluate(["runs/x", "--episodes", "1e2"]).episodes == 100


def test_the_spellings_of_truth_lists_and_negative_numbers() -> None:
    def of(*words: str) -> TrainConfig:
        return parse_train([*CARTPOLE, *words])

    assert of().agent.double  # the classic preset's
    for words in (
        ["--no-double"],
        ["--double", "false"],
        ["--double=False"],
        ["--no_double"],
        ["--double", "--no-double"],
    ):
        assert not of(*words).agent.double
    assert of("--no-double", "--double", "True").agent.double
    assert of("--v-min", "-10.5", "--v-max=-2").agent.support.v_min == -10.5
    assert of("--learning_rate", "1e-3").agent.learning_rate.start == 1e-3
    for words in (["--probes", "units,ranks"], ["--probes", "units", "ranks"], ["--probes=units,ranks"]):
        assert of(*words).run.probes == ("units", "ranks")
    for words in (["--adam.betas", ".5", ".6"], ["--adam.betas", ".5,.6"], ["--adam.betas=.5,.6"]):
        assert of(*words).agent.adam.betas == (0.5, 0.6)
    for words in (["redo,layer_norm"], ["redo", "layer_norm"], ["redo", "--interventions=layer-norm"]):
        assert [one.name for one in of("--interventions", *words).interventions] == ["redo", "layer_norm"]
    assert of("--task.seed", "none", "--task.change", "reset").world.task.seed is None
    assert of("--interventions", "l2", "--l2.include", "none").interventions[0].include == ()
    given = of("--interventions", "cbp", "l2", "--cbp.no-correct-utility", "--l2.include", "bias", "norm").interventions
    assert not given[0].correct_utility and given[1].include == ("bias", "norm")


def test_a_flag_given_twice_counts_as_it_was_said_last_and_that_is_told(capsys: pytest.CaptureFixture) -> None:
    assert parse_train([*CARTPOLE, "--seed", "1", "--seed", "2"]).run.seed == 2
    assert capsys.readouterr().err == "note: --seed is given twice; the last one counts: 2\n"
    parse_train([*CARTPOLE, "--seed", "1", "--seed", "1"])
    assert capsys.readouterr().err == ""


WRONG = {
    "--lr 1": "did you mean --learning-rate?",
    "--lerning-rate 1": "did you mean --learning-rate?",
    "--Learning-Rate 1": "did you mean --learning-rate?",
    "--learn 1": "--learning-rate",
    "-seed 1": "did you mean --seed?",
    "\N{EM DASH}seed 1": "did you mean --seed?",
    "--adam-eps 1": "did you mean --adam.eps?",
    "--total_timesteps 5": "did you mean --steps?",
    "--env-id x": "did you mean --env?",
    "--target-network-frequency 500": "counts GRADIENT steps",
    "--train-frequency 4": "--replay-ratio",
    "--start-e 1": "did you mean --epsilon.start?",
    "--end-e .1": "did you mean --epsilon.end?",
    "--epsilon .1": "did you mean --epsilon.start (with --epsilon.over constant: all along)",
    "--anneal-lr": "did you mean --learning-rate.over (run: ",
    "--learning-rate.ovr run": "did you mean --learning-rate.over",
    "--epsilon.over soon": "--epsilon.over = 'soon': must be constant, run, task, a share of either (0.1-of-run, ",
    "--learning-rate.over 0": "--learning-rate.over = '0': must be constant, run, task",
    "--exploration-fraction .1": "--epsilon.over (0.1-of-run: a tenth of the run; a number: steps)",
    "--n-steps 3": "--n-step (",
    "--ent-coeff 1": "of ppo it is --ent-coef",
    "--clip-range 1": "of ppo it is --clip-coef",
    "--rollout-steps 5": "no flag of dqn, but of ppo",
    "--redo": "did you mean --interventions redo?",
    "--layernorm": "did you mean --interventions layer_norm?",
    "--use-layer-norm": "did you mean --interventions layer_norm?",
    "--enable-redo": "did you mean --interventions redo?",
    "--redo-tau .1": "did you mean --interventions redo --redo.tau?",
    "--cbp_replacement_rate .1": "did you mean --interventions cbp --cbp.replacement-rate?",
    "--shrink-perturb-shrink .4": "did you mean --interventions shrink_perturb --shrink-perturb.shrink?",
    "--redo-check-interval 9": "--redo.when every N gradient steps",
    "--interventions redo --redo.period 9": "--redo.when every N gradient steps",
    "--interventions reset --reset.every-steps 9": "--reset.when every N steps",
    "--dormant-threshold .1": "--redo.tau",
    "--sticky-action-prob .1": "--sticky-actions",
    "--interventions regenerative": "did you mean 'l2_init'?",
    "--no-cuda": "--device cpu",
    "--probe units": "did you mean --probes",
    "--nothing-like-it": "--help lists all",
    "--loss c51": "train.py c51",
    "--loss hlgauss": "did you mean 'hl_gauss'?",
    "--loss HUBER": "did you mean 'huber'?",
    "--interventions layernorm": "did you mean 'layer_norm'?",
    "--interventions LayerNorm": "did you mean 'layer_norm'?",
    "--interventions re-do": "did you mean 'redo'?",
    "--interventions redo regenerative_regularization": "did you mean 'l2_init'?",
    "--interventions redo --redo.taau 1": "did you mean --redo.tau?",
    "--interventions redo --redo.tau high": "--redo.tau = 'high': must be a number",
    "--preset clasic": "did you mean 'classic'?",
    "--steps 1.5": "--steps = '1.5': must be a whole number",
    "--steps 1e-3": "--steps = '1e-3': must be a whole number",
    "--gamma": "--gamma: must be followed by a number",
    "--env": "--env: must be followed by",
    "--name -x": "--name=-x",
    "--name --seed 1": "--name: must be followed by a word",
    "--probes": "--probes: must be followed by names",
    "--interventions l2 --l2.include": "must be followed by some of norm, bias, log_std, or none",
    "--interventions redo none": "none alone",
    "--ppo": "the agent is the first word",
    "--seed 1 2": "'2': belongs to no flag after --seed",
    "--double=maybe": "must be true or false",
    "--no-double=1": "says no already",
    "--adam.betas .9": "must be 2 numbers",
    "--hl-gauss-sigma x": "--hl-gauss-sigma = 'x': must be a number",
}


def test_c51_has_one_loss_and_says_whose_the_others_are(capsys: pytest.CaptureFixture) -> None:
    assert "train.py dqn --loss" in refusal(capsys, "c51", *CARTPOLE[1:], "--loss", "mse")


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_answered_in_one_sentence(words: str, capsys: pytest.CaptureFixture) -> None:
    assert WRONG[words] in refusal(capsys, *CARTPOLE, *words.split())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("rainbow --env CartPole-v1", "did you mean c51"),
        ("DQN --env CartPole-v1", "did you mean 'dqn'?"),
        ("dqn CartPole-v1", "did you mean --env CartPole-v1?"),
        ("--env CartPole-v1 dqn", "first: train.py dqn"),
        ("--seed 1", "algorithm: name one of dqn, c51, ppo"),
        ("ppo --env Ant-v5 --batch-size 64", "--num-minibatches"),
        ("ppo --env Ant-v5 --num-steps 64", "--rollout-steps"),
        ("ppo --env Ant-v5 --loss mse", "--value-loss"),
        ("ppo --env Ant-v5 --buffer-size 64", "of dqn and c51"),
        ("dqn --env Pong-v5", "'ALE/Pong-v5'"),
        ("dqn --env pong --sticky-actions .25", "env = 'pong': unknown world"),
        ("dqn --env CartPole-v1 --probes none units", "probes = 'none units': must be none alone"),
        ("c51 --env CartPole-v1 --hl-gauss-sigma 2", "hl_gauss_sigma = 2.0: must be 0.75 in C51"),
    ],
)
def test_a_wrong_line_is_answered_in_one_sentence(line: str, answer: str, capsys: pytest.CaptureFixture) -> None:
    said = ""
    try:
        check(parse_train(line.split()))
    except ValueError as error:  # train.py prints it
        said = str(error)
    except SystemExit:
        said = capsys.readouterr().err
    assert answer in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("a b", "run: name one"),
        ("--probe units a", "words after --probe are probes"),
        ("a --policy deterministic", "did you mean 'greedy'?"),
        ("a --deterministic", "--policy greedy"),
        ("a --n-eval-episodes 3", "did you mean --episodes"),
        ("a --probe dormant", "probe = 'dormant'"),
        ("a --probe", "--probe: must be followed by names"),
        ("a --probe dormant", "did you mean 'units'"),
        ("a --episodes 1.5", "--episodes = '1.5'"),
    ],
)
def test_evaluate_answers_in_one_sentence(words: str, answer: str, capsys: pytest.CaptureFixture) -> None:
    assert answer in refusal(capsys, *words.split(), parse=parse_evaluate)


@pytest.mark.parametrize(
    ("name", "group"), [("dormant", "units"), ("Dead-Units", "units"), ("srank", "ranks"), ("hessian", "sharpness")]
)
def test_probes_are_known_by_what_they_measure(name: str, group: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{group}'"):
        check(parse_train([*CARTPOLE, "--probes", name]))


CLEANRL = {  # dqn_atari.py, c51_atari.py; ppo_atari.py, ppo_continuous_action.py, as of their 2025 main branch
    "dqn": "exp_name torch_deterministic cuda track wandb_project_name wandb_entity capture_video save_model"
    " upload_model hf_entity env_id total_timesteps num_envs target_network_frequency"
    " exploration_fraction train_frequency",
    "ppo": "exp_name torch_deterministic cuda track wandb_project_name wandb_entity capture_video env_id"
    " total_timesteps num_steps anneal_lr target_kl batch_size minibatch_size num_iterations",
}
CLEANRL["c51"] = CLEANRL["dqn"] + " n_atoms"
SB3_WITHOUT_MEANING_HERE = {"self", "_init_setup_model", "policy_kwargs", "device", "seed"}


@pytest.mark.parametrize("agent", ["dqn", "c51", "ppo"])
def test_the_flags_of_other_projects_are_answered_with_ours(agent: str, capsys: pytest.CaptureFixture) -> None:
    import stable_baselines3

    theirs = inspect.signature(getattr(stable_baselines3, "PPO" if agent == "ppo" else "DQN").__init__).parameters
    ours = {flag.name for flag in flags_of(TrainConfig(agent=KINDS[agent].settings()))}
    foreign = [*CLEANRL[agent].split(), *(set(theirs) - SB3_WITHOUT_MEANING_HERE)]
    for name in foreign:
        flag = "--" + name.replace("_", "-")
        if flag not in ours:
            said = refusal(capsys, agent, "--env", "CartPole-v1", flag, "1")
            assert said.startswith(f"error: {flag}: no flag of {agent}; "), said


def test_answers_name_flags_that_there_are() -> None:
    all_flags = {flag.name for kind in KINDS.values() for flag in flags_of(TrainConfig(agent=kind.settings()))}
    deciding = {"--env", "--config", "--resume", "--help", "--interventions", "--preset", "--device", "--video"}
    of_interventions = {f"--{name}.{field.name}".replace("_", "-") for name in NAMES for field in parameters_of(name)}
    for table, extra in ((FOREIGN, of_interventions), (FOREIGN_TO_EVALUATE, set())):
        for answer in table.values():
            for text in [answer] if isinstance(answer, str) else answer.values():
                known = all_flags | deciding | extra
                if table is FOREIGN_TO_EVALUATE:
                    from experiments.evaluate_config import EvaluateConfig

                    known = {flag.name for flag in flags_of(EvaluateConfig)}
                assert set(re.findall(r"--[a-z][\w.-]*", text)) <= known, text


def test_a_wrong_field_of_a_file_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"agent\.learning_rat = 1: .*; did you mean 'learning_rate' or"):
        from_dict({"algorithm": "dqn", "agent": {"learning_rat": 1}})


def test_nearest() -> None:
    assert nearest("layernorm", ["layer_norm", "batch_norm"]) == ["layer_norm"]
    assert nearest("learn", ["learning_rate", "learning_starts", "gamma"]) == ["learning_rate", "learning_starts"]
    assert nearest("qqqq", ["layer_norm"]) == []
    assert nearest("", ["a"]) == []


FOREIGN_IN = {
    (
        "dqn",
        "CartPole-v1",
    ): "--sticky-actions --noop-max --ant-observation --contact-cost-weight --friction.low --dataset"
    " --image.variant --full-action-space --fire-reset --healthy-reward-on-termination",
    ("ppo", "Ant-v5"): "--sticky-actions --friction.law --dataset --image.redraw --life-loss-discount",
    ("ppo", "FrictionAnt-v0"): "--sticky-actions --dataset --image.redraw --life-loss-discount",
    ("dqn", "ImageMDP-v0"): "--sticky-actions --friction.law --ant-observation --life-loss-discount",
    ("ppo", "ALE/Pong-v5"): "--friction.law --ant-observation --dataset --normalize-observations",
    (
        "c51",
        "ALE/Pong-v5,ALE/Breakout-v5",
    ): "--friction.law --ant-observation --dataset --hl-gauss-sigma --support-ends",
}
OTHERWISE = {  # a value that is not the default, for flags that have to take one
    "--sticky-actions": ["0.1"], "--noop-max": ["3"], "--contact-cost-weight": ["1"], "--friction.low": ["0.1"],
    "--ant-observation": ["plain-27"], "--dataset": ["mnist"], "--image.variant": ["bandit"], "--image.redraw": ["0.5"],
    "--friction.law": ["uniform"], "--fire-reset": ["false"], "--hl-gauss-sigma": ["2"],
    "--support-ends": ["edges"],
}  # fmt: skip


@pytest.mark.parametrize("where", FOREIGN_IN)
def test_a_help_shows_no_flag_of_another_world_and_what_it_hides_is_refused_by_name(where, capsys) -> None:
    agent, env = where
    text = help_of(capsys, agent, "--env", env)
    hidden = set(FOREIGN_IN[where].split())
    assert not hidden & shown(text)
    assert {"--interventions", "--preset", "--config", "--help", "--env", "--steps"} <= shown(text)
    everything = {flag.name for flag in flags_of(TrainConfig(agent=KINDS[agent].settings()))}
    for flag in sorted(everything - shown(text)):
        field = flag.removeprefix("--").replace("-", "_")
        words = OTHERWISE.get(flag, ["true"] if flag in hidden else [])
        if flag not in hidden:
            continue  # of a kind with one that is tried
        try:
            check(parse_train([agent, "--env", env, flag, *words]))
        except ValueError as error:
            said = str(error)
        except SystemExit:
            said = capsys.readouterr().err
        else:
            said = ""
        assert field.partition(".")[0] in said and "no such flag" not in said, (flag, said)


def test_without_a_world_a_help_shows_every_flag(capsys) -> None:
    for agent, kind in KINDS.items():
        everything = {flag.name for flag in flags_of(TrainConfig(agent=kind.settings()))}
        assert everything - shown(help_of(capsys, agent)) <= {"--hl-gauss-sigma", "--support-ends"}


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_help_is_wrapped_once_to_the_width_there_is(columns: int, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    width = min(columns, 120)
    for line in (["dqn", "--env", "ImageMDP-v0", "--interventions", *NAMES], ["ppo"]):
        lines = help_of(capsys, *line).splitlines()[3:]
        for this, following in itertools.pairwise(lines):
            assert len(this) <= width or this.lstrip().startswith("--"), this
            indent = len(this) - len(this.lstrip())
            if indent == len(following) - len(following.lstrip()) == 28:  # both lines of one text
                first = following.split()[0]
                assert len(this) + 1 + len(first) > width, (this, following)


def test_narrowed_choices_are_those_that_the_world_has(capsys) -> None:
    text = help_of(capsys, *CARTPOLE)
    assert "--backend {auto,gymnasium}" in text
    assert "--task.change {auto,actions,observations,rewards,reset}" in text
    assert "--task.change {auto,friction}" in help_of(capsys, "ppo", "--env", "FrictionAnt-v0")


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_interventions_are_read_in_their_files_as_the_classes_have_them(name: str) -> None:
    kind = intervention_class(name)
    hints, texts = typing.get_type_hints(kind), texts_of(kind)
    fields = [(field.name, hints[field.name], field.default, texts[field.name]) for field in dataclasses.fields(kind)]
    assert [tuple(field) for field in fields_in_source(f"agents.interventions.{name}", name)] == fields
    assert all(field[-1] for field in fields)


def test_every_field_has_a_text() -> None:
    from experiments.evaluate_config import EvaluateConfig

    for settings in (*(TrainConfig(agent=kind.settings()) for kind in KINDS.values()), EvaluateConfig):
        for flag in flags_of(settings):
            assert texts_of(flag.owner).get(flag.path[-1]), flag.name
    assert texts_of(DQNConfig)["loss"].startswith("huber, mse: regression;")


@pytest.mark.parametrize(
    "arguments",
    [
        [*CARTPOLE, "--lr", "1"],
        [*CARTPOLE, "--seed", "x"],
        [*CARTPOLE, "--interventions", "redo", "--redo.taau", "1"],
        [*CARTPOLE, "--interventions", "redo", "--redo.tau", "high"],
        ["c51", "--env", "ALE/Pong-v5", "--help"],
        ["ppo", "--env", "Ant-v5", "--interventions", "cbp", "redo", "--help"],
        [],
    ],
)
def test_wrong_flags_and_help_take_less_than_a_second_of_processor_time(arguments: list[str]) -> None:
    code = "import sys; from experiments.cli import parse_train\ntry: parse_train(sys.argv[1:])\n"
    code += "finally: assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Traceback" not in result.stderr, result.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_time_needs_no_quotes() -> None:
    """As few of the words after its flag as make one are taken, hyphens or not."""
    line = "dqn --env CartPole-v1 --interventions redo reset"
    for redo, reset in (
        (["every", "40", "gradient", "steps"], ["at", "task", "changes"]),
        (["every-40-gradient-steps"], ["at-task-changes"]),
        (["every 40 gradient steps"], ["at task changes"]),
    ):
        config = parse_train([*line.split(), "--redo.when", *redo, "--reset.when", *reset, "--steps", "3000"])
        assert [one.when for one in config.interventions] == ["every 40 gradient steps", "at task changes"]
        assert config.run.steps == 3000
    given = parse_train([*line.split(), "--redo.when=every-40-gradient-steps"])
    assert given.interventions[0].when == "every 40 gradient steps"


def test_what_is_no_time_is_answered_in_one_sentence(capsys: pytest.CaptureFixture) -> None:
    """It names the flag, what stood there and what may."""
    for words, said in (
        ("every 10 furlongs", " = 'every 10 furlongs': must be every N gradient steps, every N steps, at step N"),
        ("1000", " = '1000': must be every N gradient steps"),
        ("", ": must be followed by every N gradient steps"),
    ):
        with pytest.raises(SystemExit) as left:
            parse_train(["dqn", "--env", "CartPole-v1", "--interventions", "redo", "--redo.when", *words.split()])
        told = capsys.readouterr().err
        assert left.value.code == 2 and told.count("\n") == 1
        assert told.startswith(f"error: --redo.when{said}")
