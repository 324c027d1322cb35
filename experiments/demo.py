"""`make demo`: the question in small, in about three minutes on two cores. What keeps DQN learning?"""

import sys
from pathlib import Path

from experiments.command import as_command

SEEDS, STEPS, PERIOD = 5, 6_400, 1_600
WORLD = (
    f"dqn --env ImageMDP-v0 --image.variant random_label --image.num-images 20 --task.period {PERIOD} --steps {STEPS}"
    " --width 64 --num-atoms 111 --learning-rate 1e-3 --learning-starts 200 --replay-ratio 0.5 --target-period 50"
    f" --buffer-size {2 * PERIOD} --replay.on-task-change clear --probes none --threads 1"
)
ARMS = {
    "squared error": "--loss mse",
    "HL-Gauss": "--loss hl_gauss",
    "HL-Gauss, LayerNorm, weight decay": "--loss hl_gauss --interventions ln_wd --weight-decay.rate 1",
}
RUNS = Path("runs/demo")
FULL = "python -m experiments.reproduce regression_or_categorical"


def main() -> int:
    """Train 15 agents, compare them, say what it means and where to look."""
    tasks = STEPS // PERIOD
    print(f"Which agent keeps learning? All labels of 20 images are drawn anew every {PERIOD} steps, {tasks} tasks;")
    print("a return is the number of right actions of 100, and 91 the best that is possible (epsilon .1).")
    print(f"{len(ARMS)} agents x {SEEDS} seeds, in processes of one thread each; Ctrl-C stops, make demo goes on:")
    from experiments.demo_runs import made

    code = made(ARMS, WORLD, SEEDS, RUNS)
    if code:
        return code
    from experiments.results.settings import CompareConfig
    from experiments.results.written import compared

    out = RUNS / "comparison"
    lines = compared(CompareConfig((str(RUNS),), out=out), f"python compare.py {RUNS} --out {out}")
    print("\n" + "\n".join(line for line in lines if not line.startswith("warning: the runs were made by code")))
    print(f"\nFive seeds decide nothing. Ten, tuned, with the margins fixed beforehand: .venv/bin/{FULL}")
    print(f"curves:    .venv/bin/tensorboard --logdir {RUNS}   then open http://localhost:6006")
    print("your own:  .venv/bin/python train.py ppo --env ALE/Breakout-v5 --steps 1000000")
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
