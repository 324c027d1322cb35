"""From a study's runs to verdicts on its claims, on a screen and in a document."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claims import Checked, checked, claimed, in_words
from experiments.results.rows import ENOUGH
from experiments.results.tables import in_markdown
from experiments.supervised import sweeping as supervised
from experiments.supervised.sweeping import is_supervised
from experiments.sweep.cells import cells_of
from experiments.sweep.study import Study


def made(study: Study, runs_dir: Path, workers: int, console: Any | None) -> tuple[dict[str, list], int]:
    """(the trials of each arm, an exit code) once the study's runs are made; without a `console` none are."""
    if is_supervised(study):
        return _supervised(study, runs_dir, workers, console)
    from experiments.sweep.tuning import planned_as_tuned

    plan, code = planned_as_tuned(study, runs_dir), 0
    if console is not None:
        from experiments.sweep.sweeping import sweep

        swept = sweep(study, runs_dir, workers, console=console, plan=plan)
        plan, code = swept.plan, swept.exit_code
        for trial, why in swept.failed:
            console.print(f"failed: {trial.config.run.name}: {why}", markup=False, highlight=False, soft_wrap=True)
    arms: dict[str, list] = {cell.arm: [] for cell in cells_of(study)}
    for trial in plan.trials:
        if trial.kind == "arm":
            arms[trial.arm].append(trial)
    return arms, code


def _supervised(study: Study, runs_dir: Path, workers: int, console: Any | None) -> tuple[dict[str, list], int]:
    trials, failed = supervised.planned(study, runs_dir), []
    if console is not None:

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        trials, failed = supervised.made(study, runs_dir, workers, command, say)
    arms: dict[str, list] = {}
    for trial in trials:
        arms.setdefault(trial.arm, []).append(trial)
    return arms, 1 if failed else 0


def checks_of(study: Study, trials: dict[str, list]) -> list[Checked]:
    """Every claim of the study, checked."""
    return [checked(claim, trials) for claim in study.claims]


def on_screen(checks: Sequence[Checked]) -> list[str]:
    """A claim in two lines."""
    lines = []
    for one in checks:
        lines += [f"{one.verdict + ':':16} {one.claim.says}", f"{'':16} {claimed(one.claim)}; found {in_words(one)}"]
    return lines


def in_a_document(found: Sequence[tuple[Study, Sequence[Checked]]], command: str, before: str = "") -> str:
    """All claims in Markdown, studies by name. Of other studies stays what the document said `before`."""
    head = (
        "# Claims\n\nWritten by `python -m experiments.reproduce`. Each claim stood in its study's file "
        "(experiments/studies), with arm, measure and margin, before its runs were made. Reproduced: the 95 % "
        "bootstrap interval of the difference over equal seeds lies above the margin. Not reproduced: it lies below. "
        f"Undecided: it holds the margin, or there are fewer than {ENOUGH} seeds."
    )
    sections = {part.partition("\n")[0].strip(): part.strip() for part in before.split("\n## ")[1:]}
    for study, checks in found:
        said = f"{study.question} (Size {study.size}; it is said to take {study.takes}. Written by `{command}`.)"
        rows = [[one.claim.says, f"`{claimed(one.claim)}`", in_words(one), one.verdict] for one in checks]
        table = in_markdown([["claim", "as a formula", "found [95 %]", "verdict"], *rows]) if rows else "No claims."
        sections[study.name] = "\n\n".join([study.name, said, table.strip()])
    return "\n\n".join([head, *(f"## {sections[name]}" for name in sorted(sections))]) + "\n"
