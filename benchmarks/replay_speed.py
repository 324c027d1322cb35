"""How long a world takes to go on where it was interrupted: the steps a second of backends that cannot say where they
stand, and of those the seconds to replay a whole segment of the usual length.

The table of speeds in envs/families (one thread) comes from here; a segment lasts `REPLAY_SECONDS` at that speed.

    OMP_NUM_THREADS=1 python -m benchmarks.replay_speed [--seconds N]
"""

import argparse
import time

from envs import WorldConfig, make_vec_from_config

ROWS = (
    ("ALE/Breakout-v5", 1, "envpool"),
    ("ALE/Breakout-v5", 8, "envpool"),
    ("ALE/Breakout-v5", 8, "ale"),
    ("Ant-v5", 1, "envpool"),
    ("Ant-v5", 8, "envpool"),
    ("Humanoid-v5", 8, "envpool"),
    ("CartPole-v1", 1, "gymnasium"),
    ("Acrobot-v1", 1, "gymnasium"),
    ("Ant-v4", 1, "gymnasium"),
)


def steps_a_second(config: WorldConfig, seconds: float) -> float:
    """With random actions and one thread."""
    world = make_vec_from_config(config, 0, threads=1)
    world.reset()
    chosen, made = [world.action_space.sample() for _ in range(64)], 0
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for actions in chosen:
            world.step(actions)
        made += len(chosen) * config.num_envs
    world.close()
    return made / passed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row")
    seconds = parser.parse_args().seconds
    print(f"{'world':18} {'envs':>4} {'backend':10} {'steps/s':>9} {'segment':>9} {'replayed in':>11}")
    for env, num_envs, backend in ROWS:
        config = WorldConfig(env=env, num_envs=num_envs, backend=backend)
        speed = steps_a_second(config, seconds)
        replay = f"{config.segment / speed:.0f} s"
        print(f"{env:18} {num_envs:4} {backend:10} {speed:9,.0f} {config.segment:9,} {replay:>11}", flush=True)


if __name__ == "__main__":
    main()
