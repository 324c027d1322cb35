"""Play with saved weights: `python evaluate.py runs/NAME --episodes 10 --video game.mp4`."""

import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from experiments.cli import fail, parse_evaluate
from experiments.evaluate_config import EvaluateConfig


def measure(settings: EvaluateConfig) -> int:
    """Probe saved checkpoints, print a table."""
    from experiments.offline_probes import probe_checkpoints, table

    try:
        result = probe_checkpoints(settings)
    except ValueError as error:
        fail(str(error))
    print(json.dumps(result) if settings.json else "\n".join([f"on {result['placement']}", *table(result)]))
    return 0


def main() -> int:
    """Parse, play, print."""
    settings = parse_evaluate(sys.argv[1:])
    if settings.probe:
        return measure(settings)
    from experiments.evaluate import evaluate

    try:
        result = evaluate(settings)
    except ValueError as error:
        fail(str(error))
    if settings.json:
        print(json.dumps(result))
        return 0
    print(f"{result['env']}  {result['checkpoint']} (step {result['step']:,}), {result['policy']} actions")
    print(f"on {result['placement']}")
    if result["task"] is not None:
        words = ", ".join(f"{name} {value}" for name, value in result["task_parameters"].items())
        print(f"task {result['task']}: {words}")
    for number, (value, length) in enumerate(zip(result["returns"], result["lengths"], strict=True), start=1):
        print(f"  game {number:3d}: return {value:10.2f}  {length:6d} steps")
    print(
        f"mean {result['mean']:.2f}  iqm {result['iqm']:.2f}  std {result['std']:.2f}  over {result['episodes']} games"
    )
    if settings.video:
        print(f"video: {settings.video}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
