"""How benchmarks take turns, and the ratios that come of it, on times made up by hand."""

import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.learners import Elsewhere
from benchmarks.throughput import arguments_of, parts_line, rows, speeds_line
from benchmarks.turns import Spent, ratio, speed, take_turns

PRINTS = "import time\nfor step in range(10**6):\n    print('SPS: 1', flush=True)\n    time.sleep(0.02)"


def spent(*seconds: float) -> list[Spent]:
    return [Spent(each, each / 2) for each in seconds]


def test_everybody_has_a_turn_and_the_first_one_changes() -> None:
    order, said = [], []
    windows = {name: lambda name=name: order.append(name) or Spent(0.5, 0.25) for name in "abc"}
    found = take_turns(windows, 4, said.append)
    assert "".join(order) == "abcbcacababc"
    assert found == {name: [Spent(0.5, 0.25)] * 4 for name in "abc"}
    assert said[0] == "turn 1/4: a 2, b 2, c 2" and len(said) == 4


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn() -> None:
    """3 / 1, 8 / 4 and 20 / 2, though the medians of each alone would give 8 / 2."""
    ours, theirs = spent(1, 4, 2), spent(3, 8, 20)
    assert ratio(ours, theirs) == ratio(ours, theirs, "wall") == 3
    assert speed(ours) == 0.5


def test_the_lines_of_both_tables() -> None:
    found = {"fp32": spent(0.01, 0.01), "SB3": spent(0.02, 0.02)}
    assert speeds_line("row", found).split() == ["row", "100", "-", "50", "-", "-", "2.00x", "(2.00)", "-", "-", "-"]
    costs = {"update": 4e-3, "act": 3e-3, "world": 1e-3, "in turn": 9e-3}
    found |= {f"fp32 {part}": spent(cost, cost) for part, cost in costs.items()}
    # by processor time, half of the above: 5,000 microseconds by 2,000 + 1,500 + 500, and by 4,500
    numbers = ["2,000", "1,500", "500", "4,000", "4,500", "5,000", "1.25x", "1.11x"]
    assert parts_line("row", "fp32", found).split() == ["row", "fp32", *numbers]


def test_a_process_stands_still_between_its_turns(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTS]
    process = Elsewhere(command, tmp_path, "^SPS", 4)
    try:
        assert process.run(10) == 12  # three lines
        assert process.watched.status() == "stopped"
        found = process.window(4, 20)
        assert found.wall >= 0.02 / 4 and process.watched.status() == "stopped"
    finally:
        process.close()
    assert process.process.returncode == -9


def test_a_process_that_ends_says_what_it_said_last(tmp_path: Path) -> None:
    process = Elsewhere([sys.executable, "-c", "raise SystemExit('no such game')"], tmp_path, "^SPS", 4)
    with pytest.raises(RuntimeError, match="no such game"):
        process.window(4, 4)
    process.close()


def test_what_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for flag in ("--cleanrl", "--against"):
        with pytest.raises(SystemExit):
            arguments_of([flag, str(tmp_path)])
        assert f"{flag}: {tmp_path} holds no" in capsys.readouterr().err


def test_rows_are_settings_that_both_can_follow() -> None:
    """Their units are whole rollouts, or the steps of whole gradient steps."""
    for row in rows().values():
        config = row.config()
        agent, num_envs = config.agent, config.world.num_envs
        rollout = getattr(agent, "rollout_steps", 0) * num_envs
        assert row.unit == (rollout or 1 / agent.replay_ratio), row.title
        assert (config.run.threads, config.run.device) == (1, "cpu")
        assert shlex.split(row.script)[:1] in ([], *[[f"{name}.py"] for name in SCRIPTS])


SCRIPTS = ("dqn_atari", "c51_atari", "ppo_atari_envpool", "ppo_continuous_action")
