"""What there is for jobs: processors and memory, as far as the limits around this process leave them.

A control group's limit (cgroups(7), both versions) holds for all that is below it, so what counts is the
smallest from this process's own group up to the root of the tree that it sees. That of a service (CPUQuota=,
MemoryMax=) and that of a container are found alike.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpus() -> float:
    """Return how many processors' time this process and its children may use; one at least."""
    quotas = (_quota(group) for group in _around("cpu"))
    return max(1.0, min([float(len(os.sched_getaffinity(0))), *quotas]))


def memory_bytes() -> float:
    """Return how much memory this process and its children may have together."""
    limits = (_limit_bytes(group) for group in _around("memory"))
    return min([float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), *limits])


def _around(controller: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return around(
            controller, Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
        )
    return []


def around(controller: str, cgroup: str, mountinfo: str) -> list[Path]:
    """Return the folders of the groups that a process is in, its own first.

    Args:
        controller: such as "cpu"; only version 1 has a tree for each.
        cgroup: the process's /proc/PID/cgroup.
        mountinfo: its /proc/PID/mountinfo (proc(5)).
    """
    paths = {names: path for _, names, path in (line.split(":", 2) for line in cgroup.splitlines())}
    found: list[Path] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        top, point = left.split()[3:5]
        kind, options = right.split()[0], right.split()[-1].split(",")
        path = paths.get("") if kind == "cgroup2" else None
        if kind == "cgroup" and controller in options:
            path = next((path for names, path in paths.items() if controller in names.split(",")), None)
        if path is not None:
            seen = (
                Path(path).is_relative_to(top) and ".." not in path
            )  # else it is outside what is shown to us
            below = Path(path).relative_to(top) if seen else Path()
            found += _upwards(Path(point) / below, Path(point))
    return found


def _upwards(group: Path, root: Path) -> Iterator[Path]:
    return (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota(group: Path) -> float:
    """Return how many processors' time a group may use."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = map(float, (group / "cpu.max").read_text().split())
        return quota / period
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (float((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf


def _limit_bytes(group: Path) -> float:
    """Return how much memory a group may have."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            return float((group / name).read_text())
    return math.inf
