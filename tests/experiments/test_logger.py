"""What a run logs: one value for a tag and step, every game, in files that a killed run leaves readable."""

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from experiments.logger import Logger, read_metrics
from experiments.records import EpisodeFile, RecentReturns, lines_of
from experiments.run import Episode, TaskChange, Tick, Update
from experiments.task_report import TaskReport
from plasticity_probes.probe import Findings
from tests.experiments.test_run import SMALL, one_thread, run  # noqa: F401

PROBES = ["--probe.every", "120", "--probe.samples", "32", "--probe.heavy-samples", "6", "--probes", "all"]
APART = ["--env", "CartPole-v1", "--task.change", "rewards", "--task.period", "200"]
TOGETHER = ["--env", "ImageMDP-v0", "--image.num-images", "30", "--max-episode-steps", "25", "--task.period", "200"]
"""All environments' games end, and tasks change, in the same ticks."""


def twice(keys: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    return {key: count for key, count in Counter(keys).items() if count > 1}


def in_events(path: Path) -> list[tuple[str, int]]:
    """(tag, step) of everything in the one event file at `path`, scalars, pictures, histograms and texts."""
    (file,) = path.rglob("events.out.tfevents*")
    events = LegacyEventFileLoader(str(file)).Load()
    return [(value.tag, event.step) for event in events for value in event.summary.value]


@pytest.mark.parametrize(
    ("env", "steps", "num_envs"), [(APART, 600, 1), (APART, 590, 3), (TOGETHER, 600, 1), (TOGETHER, 590, 8)]
)
@pytest.mark.parametrize("algorithm", ["dqn", "c51", "ppo"])
def test_a_tag_has_one_value_at_a_step(
    algorithm: str, env: list[str], steps: int, num_envs: int, tmp_path: Path
) -> None:
    own = ["--rollout-steps", "20", "--num-minibatches", "2"] if algorithm == "ppo" else []
    flags = [*env[2:], *SMALL[algorithm], *own, *PROBES, "--num-envs", str(num_envs), "--log-every", "100"]
    path, code, printed = run(tmp_path, algorithm, env[1], steps, *flags)
    assert code == 0 and "failed" not in printed
    lines = [record for _, record in lines_of(path / "metrics.jsonl")]
    told = [record["step"] for record in lines]
    assert told == sorted(set(told))  # a line a step, in order
    last = -(-steps // num_envs) * num_envs
    assert told[-1] == last and {"charts/SPS", "tasks/index"} <= set(lines[-1])
    logged = in_events(path)
    assert twice(logged) == {}
    scalars = {(tag, record["step"]) for record in lines for tag in record if tag != "step"}
    assert scalars <= set(logged)
    tasks = [record for _, record in lines_of(path / "tasks.jsonl")]
    assert tasks[-1]["last_step"] == last
    assert ("tasks/mean_return" in lines[-1]) == (tasks[-1]["episodes"] > 0)
    assert lines[-1]["tasks/index"] == tasks[-1]["task"]  # not a task that would begin after the last step
    assert f"step {last:,}: task" not in printed


@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_game_is_kept_and_the_log_has_means(num_envs: int, tmp_path: Path) -> None:
    flags = [*TOGETHER[2:], *SMALL["dqn"], "--num-envs", str(num_envs)]
    path, _, _ = run(tmp_path, "dqn", "ImageMDP-v0", 600, *flags)
    games = [record for _, record in lines_of(path / "episodes.jsonl")]
    ticks = 600 // num_envs // 25
    assert [game["environment"] for game in games] == list(range(num_envs)) * ticks
    assert [game["step"] for game in games] == [25 * num_envs * (i // num_envs + 1) for i in range(len(games))]
    assert {game["length"] for game in games} == {25}
    assert {tuple(game) for game in games} == {("step", "environment", "task", "return", "length")}
    metrics = read_metrics(path / "metrics.jsonl")
    assert metrics["charts/episodes"] == ([25 * num_envs * (i + 1) for i in range(ticks)], [num_envs] * ticks)
    by_step = itertools.groupby(games, key=lambda game: game["step"])
    means = [sum(game["return"] for game in ended) / num_envs for _, ended in by_step]
    assert metrics["charts/episodic_return"][1] == pytest.approx(means)
    summaries = [record for _, record in lines_of(path / "tasks.jsonl")]
    assert [game["task"] for game in games] == [s["task"] for s in summaries for _ in range(s["episodes"])]


def test_what_two_looks_find_at_a_step_is_written_once(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 100, None, dict)
    logger.notice(Tick(10, ()))
    logger.findings(10, Findings({"probes/a": torch.tensor(1.0), "probes/b": torch.tensor(2.0)}))
    logger.findings(10, Findings({"probes/a": torch.tensor(3.0)}))
    logger.notice(Tick(20, (Episode(0, 5.0, 7),)))
    logger.findings(20, Findings({"probes/a": torch.tensor(4.0)}))
    logger.notice(Update(20, {"losses/x": torch.tensor(8.0)}))
    logger.notice(Tick(30, ()))
    logger.flush(30)
    logger.flush(30)
    logger.close()
    lines = [record for _, record in lines_of(tmp_path / "metrics.jsonl")]
    assert lines[0] == {"step": 10, "probes/a": 3.0, "probes/b": 2.0}
    games = {"charts/episodic_return": 5.0, "charts/episodic_length": 7.0, "charts/episodes": 1}
    assert lines[1] == {"step": 20, **games, "probes/a": 4.0}
    assert len(lines) == 3 and (lines[2]["losses/x"], lines[2]["charts/recent_return"]) == (8.0, 5.0)


def test_what_is_learned_at_a_tick_is_in_its_line(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 10, None, lambda: {"charts/epsilon": 0.5})
    for step in (10, 20):
        logger.notice(Tick(step, ()))
        logger.notice(Update(step, {"losses/x": torch.tensor(float(step))}))
        logger.notice(Update(step, {"losses/x": torch.tensor(step + 2.0)}))
    logger.flush(20)
    logger.close()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["losses/x"] == ([10, 20], [11.0, 21.0])
    assert metrics["charts/epsilon"] == ([10, 20], [0.5, 0.5])


def test_lines_wait_for_probes_only_so_long(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 10**9, None, dict)
    logger.findings(1, Findings({"probes/a": torch.tensor(1.0)}))
    for step in range(1, 5_000):
        logger.notice(Tick(step, (Episode(0, 1.0, 1),)))
        assert len(logger.lines) < 200
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) > 4_000
    logger.close()


@pytest.mark.long
def test_a_million_games_take_no_memory(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 10**9, None, dict)
    report = TaskReport(0.9, logger.episodes.path, tmp_path / "tasks.jsonl")
    report.notice(TaskChange(0, 0, {}))
    episodes = tuple(Episode(i, float(i), 1) for i in range(1_000))
    for step in range(1, 1_001):
        if step == 901:  # at 131 bytes a game the last 100,000 would be 13 MB
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
        logger.notice(Tick(step, episodes))
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    summary = report.finish(1_000)
    logger.close()
    assert kept < 200_000
    assert (summary.episodes, summary.mean_return) == (1_000_000, 499.5)
    assert (summary.last_tenth_return, len(report.first), len(report.last)) == (499.5, 1, 0)


def test_many_tasks_are_all_in_the_file_and_the_table_shows_both_ends(tmp_path: Path) -> None:
    from experiments.task_report import table

    file = EpisodeFile(tmp_path)
    report = TaskReport(0.9, tmp_path / "episodes.jsonl", tmp_path / "tasks.jsonl")
    report.notice(TaskChange(0, 0, {}))
    for task in range(1_000):
        file.write(task * 10 + 5, [Episode(0, float(task), 5, task), Episode(1, float(task), 5, task + 1)])
        report.notice(TaskChange(task * 10 + 10, task + 1, {}))
    file.close()
    written = [record for _, record in lines_of(tmp_path / "tasks.jsonl")]
    assert [record["mean_return"] for record in written] == [0.0, *(task - 0.5 for task in range(1, 1_000))]
    assert [record["episodes"] for record in written] == [1, *[2] * 999]
    rows = table(report)
    assert len(rows) == 1 + 50 + 1 + 50
    assert "900 more" in rows[51] and rows[-1].split()[0] == "999"


def test_a_torn_last_line_is_left_out_and_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "a": 2.0}) + "\n"
    for cut in range(1, len(whole) - 2):
        path.write_text(whole + whole[:cut])
        assert read_metrics(path) == {"a": ([1], [2.0])}
    path.write_bytes(whole.encode() + bytes(100))  # what a file system may leave after a power cut
    assert read_metrics(path) == {"a": ([1], [2.0])}
    path.write_text(whole + whole[:9] + "\n" + whole)
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not a JSON object"):
        read_metrics(path)


def test_a_game_is_on_disk_when_its_tick_is_noted(tmp_path: Path) -> None:
    logger = Logger(tmp_path, 100, None, dict)
    logger.notice(Tick(3, (Episode(1, float("inf"), 3, 2), Episode(2, 0.5, 3, 2))))
    games = [record for _, record in lines_of(tmp_path / "episodes.jsonl")]
    assert games[0] == {"step": 3, "environment": 1, "task": 2, "return": None, "length": 3}
    assert games[1]["return"] == 0.5
    logger.close()


def test_recent_returns_are_of_the_present_task() -> None:
    recent = RecentReturns()
    assert recent.mean() is None
    recent.add([Episode(0, float(value), 1) for value in range(200)])
    assert recent.mean() == 149.5  # of 100 .. 199
    recent.add([Episode(0, 7.0, 1, task=1)])  # entered by one environment before the others
    assert recent.mean() == 149.5
    recent.enter(1)
    assert recent.mean() == 7.0
    recent.add([Episode(1, 3.0, 1, task=0)])  # too late
    assert recent.mean() == 7.0
    recent.enter(5)
    assert recent.mean() is None and recent.by_task == {}


def test_recent_returns_of_a_game_that_outlasts_many_tasks() -> None:
    recent = RecentReturns()
    recent.add([Episode(0, 1.0, 1, task=0)])
    for task in range(1, 10_000):
        recent.add([Episode(0, float(task), 1, task=task)])
    assert len(recent.by_task) <= 9 and recent.mean() == 1.0
    recent.enter(9_999)
    assert recent.mean() == 9_999.0
