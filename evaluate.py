"""Play with saved weights: `python evaluate.py runs/NAME --episodes 10 --video game.mp4`."""

import json
import sys

from experiments.cli import fail, parse_evaluate
from experiments.command import as_command
from experiments.evaluate_check import check_evaluation
from experiments.evaluate_config import EvaluateConfig


def played(settings: EvaluateConfig) -> tuple[dict, list[str]]:
    """Play games: the result, and it in words."""
    from experiments.evaluate import WorldError, evaluate, result_in_words

    try:
        result = evaluate(settings)
    except WorldError as error:
        raise SystemExit(f"error: {error}") from None  # exit code 1
    return result, result_in_words(result, settings.video)


def measured(settings: EvaluateConfig) -> tuple[dict, list[str]]:
    """Probe saved checkpoints: the result, and a table of it."""
    from experiments.offline_probes import probe_checkpoints, table

    result = probe_checkpoints(settings)
    return result, [f"on {result['placement']}", *table(result)]


def listed(settings: EvaluateConfig) -> tuple[list[dict], list[str]]:
    """The runs of a directory, and a table of them."""
    from experiments.listing import as_json, listing, table

    runs = listing(settings.run)
    return as_json(runs), table(runs)


def main() -> int:
    """Parse, check, play, probe or list, print."""
    settings = parse_evaluate(sys.argv[1:])
    answer = listed if settings.list else measured if settings.probe else played
    try:
        if not settings.list:
            check_evaluation(settings)  # without torch, whose import takes longer than an answer should
        result, lines = answer(settings)
    except ValueError as error:
        fail(str(error))
    print(json.dumps(result) if settings.json else "\n".join(lines))
    if "unclosed" in result:
        raise SystemExit(f"error: {result['unclosed']}")
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
