"""How much memory there is for snapshots: what the machine has left, and what the limits around us leave."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
#: Of what is free, snapshots may take this part.
SHARE = 0.5


def free_bytes(limit_bytes: int | None = None) -> int:
    """Return what this process may still take, as far as it can be known.

    Args:
        limit_bytes: what it may take in all; None: no limit but the machine's.

    Raises:
        OSError, ValueError: the kernel does not tell.
    """
    found = [_machine_bytes(), *_cgroup_bytes()]
    if limit_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found.append(limit_bytes - pages * resource.getpagesize())
    return min(found)


def _machine_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_bytes() -> list[int]:
    """Return what is left in each control group that this process is in (cgroups(7), both versions)."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += _left(_CGROUPS, path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                root = _CGROUPS / "memory"
                found += _left(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return found


def _left(root: Path, path: str, limit: str, usage: str) -> list[int]:
    found = []
    folder = root / path.lstrip("/")
    for group in [folder, *folder.parents]:
        if not group.is_relative_to(root):
            break
        with contextlib.suppress(OSError, ValueError):
            used = int((group / usage).read_text()) - _cached_bytes(group)
            found.append(int((group / limit).read_text()) - used)
    return found


def _cached_bytes(group: Path) -> int:
    """Return what a group's use has of files that are read no more: the kernel takes it back when asked."""
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    return 0
