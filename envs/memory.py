"""How much memory there is."""

from pathlib import Path


def available_memory() -> int:
    """Bytes of main memory that a new process may still take, the control group's limit (v2) included. Cached file
    pages that the kernel would give back count as available."""
    import psutil

    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        return min(available, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return available
