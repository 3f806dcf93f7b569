"""The processes that have come of this one, as proc(5) shows them; standard library only, for the shim."""

from __future__ import annotations

import contextlib
import os


def descendants() -> list[int]:
    """List all living descendants of this process, nearest first."""
    found: list[int] = []
    layer = children_of(os.getpid())
    while layer:
        found += layer
        layer = [child for parent in layer for child in children_of(parent)]
    return [pid for pid in found if state_and_parent(pid)[0] not in "ZX"]


def children_of(parent: int) -> list[int]:
    """List the children of a process; by a look at all of them where the kernel keeps no lists (proc(5))."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        threads = os.listdir(f"/proc/{parent}/task")
    except OSError:
        if os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
            return []  # it has ended
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in pids if state_and_parent(pid)[1] == parent]
    for thread in threads:
        if int(thread) != parent:
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as file:
                children += [int(pid) for pid in file.read().split()]
    return children


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return a process's state and parent; ("X", 0) once it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
        fields = file.read().rsplit(")", 1)[1].split()
        return fields[0], int(fields[1])
    return "X", 0


def place_of(pid: int) -> str:
    """Say in which state a process is, and where in the kernel a thread of it cannot be ended."""
    state, place, name = state_and_parent(pid)[0], "", ""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", errors="replace") as file:
                about = file.read()
            name = name or about[about.index("(") + 1 : about.rindex(")")]
            if about[about.rindex(")") :].split()[1] == "D" and not place:
                with open(f"/proc/{pid}/task/{thread}/wchan") as file:
                    state, place = "D (uninterruptible sleep)", f" in {file.read()}"
    return f"pid {pid} ({name}) in state {state}{place}"


def identity(pid: int) -> dict[str, object]:
    """Return boot id, pid and start time of a process (see supervisor.process.Identity)."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:  # a process's name may be any bytes
        start = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"boot": file.read().strip(), "pid": pid, "start": start}


class OomKills:
    """What the kernel has killed for memory anywhere in the machine, of late (proc(5), vmstat)."""

    #: Of late is the time since the look before the last one; so long is between two looks that count. Memory
    #: of a large process takes a while to be given back, and only then is its end seen.
    LOOK_S = 10.0

    def __init__(self, path: str = "/proc/vmstat") -> None:
        self._path = path
        self._before = self._last = self._count()
        self._due = 0.0

    def look(self, now: float) -> None:
        """Note how many there are by now, a moment of a monotonic clock; to be called again and again."""
        if now >= self._due:
            self._before, self._last, self._due = self._last, self._count(), now + self.LOOK_S

    def any_lately(self) -> bool:
        """Tell whether there was one."""
        return self._count() > self._before

    def _count(self) -> int:
        with contextlib.suppress(OSError), open(self._path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0
