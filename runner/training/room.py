"""How much memory there is for snapshots: what the machine has left, and what the limits around us leave."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
#: Of what is free, snapshots may take this part.
SHARE = 0.5


def free_bytes() -> int:
    """Return what a process may still take, as far as it can be known."""
    found = [_machine_bytes(), *_cgroup_bytes()]
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
            found.append(int((group / limit).read_text()) - int((group / usage).read_text()))
    return found
