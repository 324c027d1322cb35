"""Answers to flags and values that we do not have: what other projects call ours (CleanRL, Stable-Baselines3 and its
zoo, Dopamine), with the difference in units where there is one. Data and words alone; imports no torch."""

from collections.abc import Mapping

from agents.interventions import ALSO_CALLED, COMBINATIONS, NAMES, parameters_of
from agents.kinds import KINDS
from agents.spelling import did_you_mean, folded, nearest

VALUE, PPO, EVALUATE = "value", "ppo", "evaluate.py"
"""Whom an answer is for, where it is not for all alike: agents with a replay, those that learn from rollouts."""

MINIBATCH = "--num-minibatches (a minibatch is rollout_steps * num_envs / num_minibatches)"
RATE = "--replay-ratio (gradient steps per step: 1 over the steps between two updates)"
PERIOD = "--target-period (counts GRADIENT steps: theirs, in steps, times --replay-ratio)"
VIDEO = "no video while training; evaluate.py RUN --video game.mp4 makes one"
LOGS = "--log-every (steps between lines of the log)"
SAVES = "--checkpoint-every and --keep-checkpoints"
TRANSFORM = "--reward-transform (none, clip, scale or center)"
NAME = "--name (of the run's directory) or --runs-dir (where those go)"
LAYERS = "--width (units in each dense hidden layer) and --depth (how many of them)"
NOT_OFFERED = "the optimizer is Adam, with --learning-rate, --adam.betas and --adam.eps"
REPEATS = "one seed on one CPU with one number of threads repeats to the bit"
GAMES = "--episodes (games to play)"
LISTED = "--interventions"

FOREIGN: dict[str, str | Mapping[str, str]] = {
    "total-timesteps timesteps n-timesteps num-timesteps max-steps total-steps max-timesteps training-steps": "--steps",
    "frames num-frames total-frames num-iterations iterations": "--steps (an Atari step is four frames)",
    "num-steps n-steps rollout-length horizon unroll-length": {
        PPO: "--rollout-steps (steps in each environment between updates; --steps is the length of the run)",
        VALUE: "--steps (length of the run) or --n-step (rewards summed before bootstrapping)",
    },
    "multi-step n-step-returns update-horizon": {VALUE: "--n-step (rewards summed before bootstrapping)"},
    "lr policy-lr q-lr step-size alpha adam-lr": "--learning-rate",
    "anneal-lr lr-schedule learning-rate-schedule lr-decay anneal anneal-steps": (
        "--learning-rate.over (run: it falls to --learning-rate.end over the whole run; constant: it does not)"
    ),
    "anneal-per-task": (
        "--learning-rate.over or --epsilon.over (task, 0.1-of-task or 8000-steps-of-task: anew in every task)"
    ),
    "env-id env-name environment gym-id game task-id domain envs-id": "--env",
    "algo algorithm agent algorithm-name dqn c51 ppo": f"the agent is the first word: train.py {' or '.join(KINDS)}",
    "n-envs num-env envs nenvs n-env num-environments num-actors num-workers parallel-envs": "--num-envs",
    "env-kwargs env-args": "a world's options are flags of their own, see --help with --env",
    "ent-coeff entropy-coef entropy-coeff ent-weight entropy-weight entropy-bonus entropy": {PPO: "--ent-coef"},
    "vf-coeff value-coef value-coeff value-loss-coef vf-weight critic-coef": {
        PPO: "--vf-coef (of the whole squared error, not of half of it)"
    },
    "n-epochs epochs num-epochs ppo-epochs k-epochs": {PPO: "--update-epochs"},
    "batch-size minibatch-size mini-batch-size batch n-minibatches nminibatches": {
        PPO: MINIBATCH,
        VALUE: "--batch-size",
    },
    "clip-range clip-eps clip-param clip-ratio clip epsilon-clip": {PPO: "--clip-coef"},
    "clip-range-vf clip-value-loss clip-vf": {PPO: "--clip-vloss (by --clip-coef)"},
    "gae lam lambda gae-lamda": {PPO: "--gae-lambda"},
    "normalize-advantage norm-advantage advantage-normalization": {PPO: "--norm-adv (minibatch, rollout or off)"},
    "target-kl kl kl-target": {PPO: "not offered: no epoch is cut by the KL divergence (losses/approx_kl shows it)"},
    "loss": {
        PPO: "--value-loss (mse or hl_gauss)",
        VALUE: "C51's is the cross-entropy to its projected target; the others are dqn's: train.py dqn --loss ...",
    },
    "value-loss critic-loss": {VALUE: "--loss"},
    "use-sde sde-sample-freq": {PPO: "not offered"},
    "exploration-fraction eps-fraction epsilon-decay eps-decay exploration-decay": {
        VALUE: "--epsilon.over (0.1-of-run: a tenth of the run; a number: steps)"
    },
    "epsilon-decay-period exploration-steps": {VALUE: "--epsilon.over (steps)"},
    "exploration-final-eps final-epsilon eps-end epsilon-train min-epsilon end-epsilon end-e": {VALUE: "--epsilon.end"},
    "exploration-initial-eps initial-epsilon eps-start start-epsilon start-e": {VALUE: "--epsilon.start"},
    "epsilon eps exploration": {
        VALUE: "--epsilon.start (with --epsilon.over constant: all along), --epsilon.end or --epsilon.over;"
        " --adam.eps is Adam's"
    },
    "target-network-frequency target-update-interval target-update-freq target-update-frequency target-update-period"
    " target-freq target-frequency target-update": {VALUE: PERIOD},
    "train-frequency train-freq update-period update-frequency update-every gradient-steps utd utd-ratio"
    " replay-frequency policy-frequency": {VALUE: RATE},
    "target-network-update-rate polyak target-tau": {VALUE: "--tau"},
    "min-replay-history warmup warmup-steps start-steps learning-start min-buffer-size": {VALUE: "--learning-starts"},
    "capacity buffer-capacity replay-size replay-capacity memory-size replay-buffer-size memory buffer": {
        VALUE: "--buffer-size"
    },
    "optimize-memory-usage": {VALUE: "the replay keeps each frame once anyway"},
    "replay-buffer-class replay-buffer-kwargs rollout-buffer-class rollout-buffer-kwargs prioritized"
    " prioritized-replay per dueling noisy": "not offered: memory is a uniform replay or one rollout",
    "double-q double-dqn ddqn": {VALUE: "--double"},
    "n-atoms atoms num-atom": "--num-atoms",
    "vmin vmax v-range": "--v-min and --v-max",
    "sigma hl-sigma": "--hl-gauss-sigma",
    "discount discount-factor discount-rate gam": "--gamma",
    "max-gradient-norm grad-clip clip-grad gradient-clip grad-norm clip-grad-norm gradient-clipping": "--max-grad-norm",
    "optimizer optim optimizer-class optimizer-kwargs momentum": NOT_OFFERED,
    "eps-adam adam-eps optimizer-eps": "--adam.eps",
    "betas beta1 beta2 adam-beta1 adam-betas": "--adam.betas (two numbers)",
    "hidden-size hidden-dim hidden-sizes hidden-layers num-layers layers net-arch n-layers hidden-units": LAYERS,
    "policy-kwargs": LAYERS,
    "policy network arch cnn encoder architecture": "--torso (auto, nature_cnn, small_cnn or mlp)",
    "nonlinearity activation-fn act": "--activation",
    "init ortho-init weight-init initialization": "--initializer",
    "seeds random-seed": "--seed, one a run",
    "cuda gpu use-gpu use-cuda": "--device cuda",
    "no-cuda no-gpu cpu": "--device cpu",
    "torch-deterministic deterministic-torch cudnn-deterministic": REPEATS,
    "n-cpu num-threads torch-threads n-threads num-cpus cores": "--threads",
    "fp16 bf16 amp mixed-precision dtype autocast": "--precision bf16",
    "compile torch-compile": "--execution compile",
    "cudagraphs cuda-graphs": "--execution graph",
    "capture-video render record-video save-video video render-mode record": VIDEO,
    "track use-wandb wandb-mode": "--wandb",
    "wandb-project-name project": "--wandb-project",
    "wandb-entity entity": "set the environment variable WANDB_ENTITY",
    "exp-name run-name experiment-name experiment exp run-id tag": NAME,
    "log-dir logdir tensorboard-log log-folder output-dir save-dir out outdir results-dir logs": NAME,
    "log-interval log-freq log-frequency eval-freq print-freq verbose stats-window-size": LOGS,
    "save-model save-freq checkpoint-freq checkpoint-frequency checkpoint-interval save-interval save-every": SAVES,
    "upload-model hf-entity hub-model-id": "not offered",
    "progress progress-bar quiet": "progress is shown anyway",
    "resume load load-checkpoint checkpoint trained-agent continue": (
        "--resume runs/NAME (to go on with a run) or --config runs/NAME/config.json (to train anew with its settings)"
    ),
    "config-file conf yaml hyperparams hyperparameters": "--config FILE, or single flags",
    "version": "versions and commit of every run stand in its manifest.json",
    "frame-stack framestack frame-skip frameskip num-stack": "four frames are skipped and four stacked in Atari",
    "repeat-action-probability sticky sticky-prob sticky-action-prob sticky-action-probability": (
        "--sticky-actions (Atari)"
    ),
    "terminal-on-life-loss episodic-life episode-life end-of-life": "--life-loss-discount",
    "noops noop noop-reset": "--noop-max (Atari)",
    "full-actions": "--full-action-space (Atari)",
    "normalize norm-obs normalize-obs normalize-observation obs-norm": {
        PPO: "--normalize-observations",
        VALUE: "not offered for dqn and c51",
    },
    "norm-reward normalize-reward clip-reward clip-rewards reward-clip reward-clipping reward-scale": TRANSFORM,
    "max-episode-length time-limit-steps max-ep-len episode-length": "--max-episode-steps",
    "task-period period change-every task-length switch-every": "--task.period (steps of a task)",
    "change task-change": "--task.change",
    "num-tasks n-tasks tasks": "--task.count",
    "intervention remedies method methods": "--interventions NAME ...",
    "dormant-threshold dormancy-threshold redo-threshold": f"{LISTED} redo --redo.tau",
    "redo-check-interval redo-interval redo-frequency redo-freq redo-period": f"{LISTED} redo --redo.when every N"
    " gradient steps",
    "reset-interval reset-freq reset-frequency reset-every reset-every-steps reset-every-gradient-steps"
    " reset-at-task-change": f"{LISTED} reset --reset.when every N steps (or every N gradient steps, at task changes)",
    "optimizer-reset-at": f"{LISTED} optimizer_reset --optimizer-reset.when at target syncs (or at task changes)",
    "plasticity-injection-at-step plasticity-injection-at-gradient-step plasticity-injection-at-task-change": (
        f"{LISTED} plasticity_injection --plasticity-injection.when at step N (or at gradient step N, at task changes)"
    ),
    "redo-bs redo-batch-size": f"{LISTED} redo --redo.samples",
    "replacement-rate": f"{LISTED} cbp --cbp.replacement-rate",
    "maturity-threshold": f"{LISTED} cbp --cbp.maturity (GRADIENT steps)",
    "probe measure measures": "--probes NAME ...",
    "probe-freq probe-every probe-interval": "--probe.every",
    "num-samples probe-samples": "--probe.samples",
}
"""By names with blanks between them, the flag of ours and what differs, or who is answered with what."""

FOREIGN_TO_EVALUATE: dict[str, str] = {
    "run checkpoint-path model model-path load path trained-agent folder dir file log-dir": "a run directory or a"
    " checkpoint file is a word without a flag: evaluate.py runs/NAME",
    "deterministic greedy": "--policy greedy",
    "stochastic sample sampled": "--policy sampled",
    "n-episodes num-episodes eval-episodes n-eval-episodes games n-games": GAMES,
    "steps n-timesteps total-timesteps": GAMES,
    "render render-mode record capture-video save-video record-video": "--video game.mp4",
    "probes measure": "--probe NAME ...",
    "checkpoints all-checkpoints": "--checkpoint each",
    "n-envs num-env envs": "--num-envs",
    "cuda gpu use-gpu": "--device cuda",
    "env env-id game": "the world is the run's own",
    "format output": "--json",
}

AGENTS_ELSEWHERE = {
    "rainbow": "c51, with --double --n-step 3",
    "categoricaldqn": "c51",
    "distributionaldqn": "c51",
    "doubledqn": "dqn, with --double",
    "ddqn": "dqn, with --double",
    "proximalpolicyoptimization": "ppo",
    "hlgauss": "dqn, with --loss hl_gauss",
    "qlearning": "dqn",
}
VALUES_ELSEWHERE: dict[str, dict[str, str]] = {
    "--loss": {
        "c51": "C51 is an agent of its own: train.py c51",
        "categorical": "C51 is an agent of its own: train.py c51",
        "hlg": "did you mean 'hl_gauss'?",
        "l2": "did you mean 'mse'?",
        "smoothl1": "did you mean 'huber'?",
        "crossentropy": "two_hot and hl_gauss are cross-entropies",
    },
    "--value-loss": {
        "huber": "PPO has none",
        "c51": "C51 is an agent of its own: train.py c51",
        "l2": "did you mean 'mse'?",
    },
    "--torso": {
        "cnn": "did you mean 'nature_cnn' or 'small_cnn'?",
        "cnnpolicy": "did you mean 'nature_cnn'?",
        "mlppolicy": "did you mean 'mlp'?",
        "impala": "it is not offered",
    },
    "--precision": {
        "fp16": "did you mean 'bf16'?",
        "float32": "did you mean 'fp32'?",
        "bfloat16": "did you mean 'bf16'?",
    },
    "--activation": {"swish": "did you mean 'silu'?", "crelu": "did you mean --interventions crelu?"},
    "--norm-adv": {"true": "did you mean 'minibatch'?", "false": "did you mean 'off'?"},
    "--reward-transform": {"normalize": "did you mean 'scale'?", "norm": "did you mean 'scale'?"},
    "--policy": {
        "deterministic": "did you mean 'greedy'?",
        "argmax": "did you mean 'greedy'?",
        "stochastic": "did you mean 'sampled'?",
        "sample": "did you mean 'sampled'?",
    },
    "--backend": {"gym": "did you mean 'gymnasium'?", "alepy": "did you mean 'ale'?"},
}
"""By flag, what other people write after it, with what we answer."""

PROBES_ELSEWHERE = {
    "units": "dormant dormancy dead dead_units dormant_fraction inactive linearised linearized redo_score unit zombie"
    " dormant_units dead_neurons dormant_neurons",
    "ranks": "rank srank stable_rank effective_rank feature_rank erank numerical_rank",
    "weights": "weight weight_norm norms weight_magnitude parameter_norm",
    "preactivations": "preactivation pre_activations",
    "values": "q_values value q targets",
    "adam": "moments optimizer second_moment",
    "gradients": "gradient grad gradient_covariance grad_norm gradient_norm",
    "ntk": "entk kernel empirical_ntk",
    "sharpness": "hessian curvature eigenvalues hessian_rank",
    "trainability": "plasticity refit lyle capacity",
    "churn": "policy_churn policychange",
}
"""By group of probes, what is measured in it or what it is called elsewhere."""


def _answers(table: Mapping[str, str | Mapping[str, str]], program: str) -> dict[str, str]:
    """By folded foreign name, the answer to the user of `program`: dqn, c51, ppo or evaluate.py."""
    on_policy = program in KINDS and KINDS[program].on_policy
    mine, other = (PPO, VALUE) if on_policy else (VALUE, PPO)
    theirs = " and ".join(kind.name for kind in KINDS.values() if kind.on_policy != on_policy)
    found = {}
    for names, answer in table.items():
        text = answer if isinstance(answer, str) else answer.get(mine) or f"of {theirs} it is {answer[other]}"
        found |= {folded(name): text for name in names.split()}
    return found


def _of_an_intervention(word: str) -> str | None:
    """The answer to an intervention's name written as a flag (--use-layer-norm), or to that of its parameter without
    the dot (--redo-tau)."""
    wanted = folded(word)
    switched = [wanted, *(wanted.removeprefix(verb) for verb in ("use", "enable", "with", "apply", "add"))]
    for name in (*NAMES, *COMBINATIONS):
        others = [name, *(ALSO_CALLED.get(name, "").split())]
        if any(folded(other) in switched for other in others):
            return f"{LISTED} {name}"
    for name in NAMES:
        if wanted.startswith(folded(name)):
            for parameter in parameters_of(name):
                if wanted == folded(name + parameter.name):
                    return f"{LISTED} {name} " + f"--{name}.{parameter.name}".replace("_", "-")
    return None


def about_flag(written: str, program: str, visible: list[str], elsewhere: Mapping[str, str]) -> str:
    """The sentence that answers the flag `written`, which `program` (dqn, c51, ppo or evaluate.py) does not have.

    `visible`: its flags that mean something here; `elsewhere`: flags of other agents, with whose they are.
    """
    bare = written.lstrip("-\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}")
    negated = bare.removeprefix("no-").removeprefix("no_")
    same = [flag for flag in visible if folded(flag) == folded(bare)]
    foreign = _answers(FOREIGN_TO_EVALUATE if program == EVALUATE else FOREIGN, program)
    answer = foreign.get(folded(bare)) or foreign.get(folded(negated))
    intervention = None if program == EVALUATE else _of_an_intervention(negated)
    if same:
        return f"{written}: no such flag; did you mean {same[0]}?"
    name = f"--{bare.replace('_', '-')}"
    if answer and not answer.startswith("--"):
        return f"{written}: no flag of {program}; {answer}"
    if answer and name not in answer.split():
        return f"{written}: no flag of {program}; did you mean {answer}?"
    if name in elsewhere:
        return f"{written}: no flag of {program}, but of {elsewhere[name]}"
    if intervention:
        return f"{written}: no such flag; did you mean {intervention}?"
    close = nearest(bare, [flag.removeprefix("--") for flag in visible])
    if "." not in bare:  # a part's own flag stands for those of the part
        close = [name for name in close if "." not in name or name.partition(".")[0] not in close]
    hint = f"; did you mean {' or '.join('--' + name for name in close)}?" if close else ""
    return f"{written}: no such flag{hint or '; --help lists all there are'}"


def about_value(flag: str, word: str) -> str:
    """What follows the refusal of `word` as the value of `flag`: what it is called here, or nothing."""
    answer = VALUES_ELSEWHERE.get(flag, {}).get(folded(word))
    return f"; {answer}" if answer else ""


def about_agent(word: str, known: list[str]) -> str:
    """The same for an agent's name."""
    answer = AGENTS_ELSEWHERE.get(folded(word))
    return f"; did you mean {answer}?" if answer else did_you_mean(word, known)


def about_probe(word: str, known: list[str]) -> str:
    """The same for a probe's."""
    groups = [group for group, names in PROBES_ELSEWHERE.items() if folded(word) in map(folded, names.split())]
    return f"; did you mean {groups[0]!r}, which measures it?" if groups else did_you_mean(word, known)
