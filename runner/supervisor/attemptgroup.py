"""The control group (cgroup v2) of one attempt, as its shim uses it; standard library only.

The worker and all that it starts are in it; the shim and the keeper are not. It bounds memory and processes,
is killed as one, and tells afterwards how much memory was used, and whether the kernel killed for it.

Limits: files that training reads are counted too, but the kernel takes their memory back before it kills.
Snapshots lie in memory that the worker was the first to touch, so they are counted: what they take comes on
top of the limit, at most a second after they were made. A process of the same user that wants to leave its
group can (`isolation.write` prevents it); it stays the shim's descendant, and is killed as such.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from typing import Any

_PAGE = 4096


class Group:
    """An attempt's group; without a path everything does nothing, and nothing is known."""

    def __init__(self, about: dict[str, Any] | None) -> None:
        """Take what launch.json says: `path`, `memory_bytes`, `pids` and `cpu_weight`."""
        about = about or {}
        self.path: str | None = about.get("path")
        self.memory_bytes: int | None = about.get("memory_bytes")
        self.pids: int | None = about.get("pids")
        self.cpu_weight: int | None = about.get("cpu_weight")
        self.peak_bytes: int | None = None
        self.oom_kills: int | None = None

    def make(self) -> None:
        """Make it, with its limits.

        Raises:
            OSError: it cannot be made; it has no path then.
        """
        if self.path is None:
            return
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError:
            self.path = None
            raise
        self.limit(0)

    def limit(self, snapshots_bytes: int) -> None:
        """Put its limits in force; again where they changed, or a daemon that died had to lift them."""
        memory = self.memory_bytes
        allowed = None if memory is None else (memory + snapshots_bytes) // _PAGE * _PAGE
        self._set("memory.max", allowed)
        self._set("memory.swap.max", None if memory is None else 0)
        self._set("memory.oom.group", 1)
        self._set("pids.max", self.pids)
        self._set("cpu.weight", self.cpu_weight or 100)

    def enter(self) -> None:
        """Put this process into it.

        Raises:
            OSError: it is gone, or full.
        """
        if self.path is not None:
            _write(f"{self.path}/cgroup.procs", "0")

    def take_in(self, pid: int) -> None:
        """Put a process into it that was there before it, as a spare's worker is; others are in already.

        Raises:
            OSError: the kernel refuses; one that has ended needs no group.
        """
        if self.path is not None:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{self.path}/cgroup.procs", str(pid))

    def kill(self) -> list[int]:
        """SIGKILL all that is in it, at one blow (Linux 5.14); return who that was."""
        if self.path is None:
            return []
        found = [int(pid) for pid in _read(f"{self.path}/cgroup.procs").split()]
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")
        return found

    def account(self) -> None:
        """Note what it tells about memory."""
        if self.path is None:
            return
        peak = _read(f"{self.path}/memory.peak").strip()  # Linux 5.19
        self.peak_bytes = int(peak) if peak else None
        events = dict(line.split() for line in _read(f"{self.path}/memory.events").splitlines())
        self.oom_kills = int(events["oom_kill"]) if "oom_kill" in events else None

    def remove(self) -> bool:
        """Remove it, with what its processes made in it; tell whether it is gone."""
        if self.path is None:
            return True
        for folder, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not os.path.exists(self.path)

    def _set(self, name: str, value: int | None) -> None:
        """Write a limit where it is another one now, and where the kernel has such a limit here."""
        path, wanted = f"{self.path}/{name}", "max" if value is None else str(value)
        present = _read(path).strip()
        if present and present != wanted:
            with contextlib.suppress(OSError):
                _write(path, wanted)


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as file:
        return file.read()
    return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
