"""Train DQN, C51 or PPO: `python train.py dqn --env ALE/Pong-v5 --steps 1000000 --seed 1`."""

import sys

from experiments.cli import fail, parse_train
from experiments.command import as_command
from experiments.places import PlaceError
from experiments.store import Unsound


def main() -> int:
    """Parse, check, train, say where to look."""
    config = parse_train(sys.argv[1:])
    from experiments.seeds import asked_for, record_of, take_up
    from experiments.setup import build, check

    try:
        runs = asked_for(config, print)
        if not runs:
            return 0
        runs = take_up(runs, print)
        for one, earlier in runs:
            check(one, anew=earlier is None, seeds=len(runs))
        seeds = [(one, *build(one, earlier.threads if earlier else 0), earlier) for one, earlier in runs]
    except ValueError as error:
        fail(str(error))
    from experiments.progress import RunConsole
    from experiments.train import Seed, exit_code, train_seeds, what_next
    from experiments.wandb_log import WandbError

    record = record_of(config) if config.run.num_seeds > 1 else None
    new = record is not None and not record.exists()
    try:
        results = train_seeds([Seed(*seed) for seed in seeds], RunConsole(), record if new else None)
    except (PlaceError, Unsound, WandbError) as error:
        fail(str(error))
    for result in results:
        result.leave_no_process()
    print("\n".join(what_next(results, record)))
    return exit_code(results)


if __name__ == "__main__":
    sys.exit(as_command(main))
