"""How many CPU cores this process may keep busy."""

import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Those it may run on (its affinity), or as many as the quotas of its control groups pay for; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, *(int(quota) for quota in _quotas()), allowed))


def _quotas() -> list[float]:
    """CPU seconds a second that the control group of this process and those above it grant; none where unlimited."""
    found = []
    try:
        lines = [line.split(":", 2) for line in OWN_GROUP.read_text().splitlines()]
    except OSError:  # not on Linux
        return []
    for _, controllers, place in lines:
        second = not controllers  # version 2 has one line, without names of controllers
        if not second and "cpu" not in controllers.split(","):
            continue
        root = GROUPS if second else GROUPS / "cpu"
        group = root / place.lstrip("/")
        # Within a container the place may be the host's: what is not there is passed over, up to the root.
        for folder in (group, *group.parents):
            found += [_quota(folder, second)] if folder.is_relative_to(root) else []
    return [quota for quota in found if quota is not None]


def _quota(folder: Path, second: bool) -> float | None:
    try:
        if second:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return None
