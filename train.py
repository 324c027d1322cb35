"""Train DQN, C51 or PPO: `python train.py dqn --env ALE/Pong-v5 --steps 1000000 --seed 1`."""

import sys

from experiments.cli import fail, parse_train
from experiments.command import as_command
from experiments.places import PlaceError, quoted
from experiments.store import Unsound


def main() -> int:
    """Parse, check, train, say where to look."""
    config = parse_train(sys.argv[1:])
    from experiments.earlier import earlier_run
    from experiments.setup import build, check

    try:
        if earlier := earlier_run(config):
            config = earlier.config
            if earlier.finished:
                print(earlier.finished)
                return 0
            earlier.take_up(print)
        check(config, anew=earlier is None)
        world, agent = build(config, earlier.threads if earlier else 0)
    except ValueError as error:
        fail(str(error))
    from experiments.progress import RunConsole
    from experiments.train import train
    from experiments.wandb_log import WandbError

    try:
        result = train(config, world, agent, RunConsole(), earlier)
    except (PlaceError, Unsound, WandbError) as error:
        fail(str(error))
    result.leave_no_process()
    print(f"curves:    tensorboard --logdir {quoted(result.directory.parent)}")
    print(f"evaluate:  python evaluate.py {quoted(result.directory)}")
    if result.ending != "finished":
        print(f"go on:     python train.py --resume {quoted(result.directory)}")
    print(f"again:     python train.py --config {quoted(result.directory / 'config.json')}")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(as_command(main))
