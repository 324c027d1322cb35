"""`make demo`: train PPO on Hopper-v5 for about three minutes on two cores, play a few games, say where to look."""

import sys

from experiments.cli import parse_train
from experiments.evaluate_config import EvaluateConfig

STEPS = 150_000
FLAGS = "--num-envs 8 --rollout-steps 256 --num-minibatches 8"  # as many steps a rollout, in fewer, larger pieces


def main() -> int:
    """Train, evaluate, point."""
    config = parse_train(["ppo", "--env", "Hopper-v5", "--steps", str(STEPS), *FLAGS.split()])
    print(f"PPO learns to hop: Hopper-v5 in MuJoCo, {STEPS:,} steps (a policy that knows nothing gets about 20)")
    from experiments.evaluate import evaluate
    from experiments.progress import RunConsole
    from experiments.setup import build
    from experiments.train import train

    trained = train(config, *build(config), RunConsole())
    if trained.exit_code:
        return trained.exit_code
    directory = trained.directory
    result = evaluate(EvaluateConfig(directory, episodes=5))
    print(f"5 games with the trained policy: mean return {result['mean']:.0f}, {max(result['lengths'])} steps at most")
    print(f"curves:    .venv/bin/tensorboard --logdir {directory.parent}   then open http://localhost:6006")
    print(f"numbers:   {directory / 'metrics.jsonl'}")
    print(f"games:     .venv/bin/python evaluate.py {directory} --episodes 10")
    print("your own:  .venv/bin/python train.py ppo --env ALE/Breakout-v5 --steps 1000000")
    return 0


if __name__ == "__main__":
    sys.exit(main())
