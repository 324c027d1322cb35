"""Run directories of known content, as train.py writes them."""

import json
from pathlib import Path
from typing import Any

PERIOD = 100
"""Steps of a task; ten games of ten steps."""
COMMIT = "a" * 40


def a_run(
    folder: Path,
    name: str,
    by_task: list[float],
    seed: int = 1,
    agent: str = "dqn",
    settings: dict[str, Any] | None = None,
    world: dict[str, Any] | None = None,
    interventions: list[dict[str, Any]] | None = None,
    run: dict[str, Any] | None = None,
    finished: bool = True,
    commit: str = COMMIT,
    probes: dict[str, float] | None = None,
    changes: bool = True,
) -> Path:
    """A run whose games all bring `by_task` in each task, one game in ten steps; in the first half of a task half as
    much."""
    path = folder / name
    (path / "checkpoints").mkdir(parents=True)
    steps = len(by_task) * PERIOD
    world = {"env": "ImageMDP-v0", "task": {"period": PERIOD if changes and len(by_task) > 1 else 0}} | (world or {})
    config = {
        "algorithm": agent,
        "agent": {"learning_starts": 10, "buffer_size": 50, **(settings or {})} if agent != "ppo" else settings or {},
        "world": world,
        "run": {"steps": steps, "seed": seed, **(run or {})},
        "interventions": interventions or [],
    }
    write(path / "config.json", config)
    write(path / "manifest.json", {"git_commit": commit, "command": ["train.py", agent, "--seed", str(seed)]})
    games, tasks, lines = [], [], []
    for task, value in enumerate(by_task):
        for game in range(1, 11):
            step, brought = task * PERIOD + 10 * game, value if game > 5 else value / 2
            games.append({"step": step, "environment": 0, "task": task, "return": brought, "length": 10})
            lines.append({"step": step, "charts/episodic_return": brought, "charts/episodes": 1, "targets/mean": value})
        first, last = task * PERIOD, (task + 1) * PERIOD
        tasks.append(
            {"task": task, "parameters": {"labels": f"{seed}{task}"}, "first_step": first, "last_step": last}
            | {"episodes": 10, "mean_return": 0.75 * value, "last_tenth_return": value, "steps_to_level": 60.0}
        )
    lines[-1] |= probes or {}
    write_lines(path / "episodes.jsonl", games)
    write_lines(path / "metrics.jsonl", lines)
    if changes and len(by_task) > 1:
        write_lines(path / "tasks.jsonl", tasks)
    if finished:
        (path / "checkpoints" / "final.pt").touch()
    return path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cut(path: Path, steps: int, torn: bool = True) -> None:
    """Leave of a run what a kill -9 at `steps` leaves: no final weights, logs up to there, the last line torn."""
    (path / "checkpoints" / "final.pt").unlink(missing_ok=True)
    for name in ("metrics.jsonl", "episodes.jsonl", "tasks.jsonl"):
        file = path / name
        if file.exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            write_lines(file, [line for line in lines if line.get("step", line.get("last_step")) <= steps])
            if torn:
                with file.open("a") as opened:
                    opened.write('{"step": 9999, "cha')
