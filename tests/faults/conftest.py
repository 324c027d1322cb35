"""What was done to checkpoints, counted: `make faults` prints the table."""

from collections import Counter

import pytest

COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture
def count():
    """Call with (what was done, what came of it)."""
    return lambda done, outcome: COUNTS.update([(done, outcome)])


def pytest_terminal_summary(terminalreporter, config):
    if not COUNTS or config.option.markexpr != "faults or not faults":
        return
    terminalreporter.section("faults")
    for (done, outcome), times in sorted(COUNTS.items()):
        terminalreporter.write_line(f"{times:6d}  {done}: {outcome}")
