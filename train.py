"""Train DQN, C51 or PPO: `python train.py dqn --env ALE/Pong-v5 --steps 1000000 --seed 1`."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down many times over

from experiments.cli import fail, parse_train
from experiments.command import as_command
from experiments.places import PlaceError, quoted


def main() -> int:
    """Parse, check, train, say where to look."""
    config = parse_train(sys.argv[1:])
    from experiments.setup import build, check

    try:
        check(config)
        world, agent = build(config)
    except ValueError as error:
        fail(str(error))
    from experiments.progress import RunConsole
    from experiments.train import train
    from experiments.wandb_log import WandbError

    try:
        result = train(config, world, agent, RunConsole())
    except (PlaceError, WandbError) as error:
        fail(str(error))
    print(f"curves:    tensorboard --logdir {quoted(result.directory.parent)}")
    print(f"evaluate:  python evaluate.py {quoted(result.directory)}")
    print(f"again:     python train.py --config {quoted(result.directory / 'config.json')}")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(as_command(main))
