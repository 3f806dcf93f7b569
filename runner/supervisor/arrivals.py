"""The folders in `jobs/` that nobody has taken up yet, found by their names, in the order in which they came.

Ten thousand that are known cost nothing while `jobs/` itself stays as it was. What came last is given out
first, so that a backlog keeps no new submission waiting; its place in the queue is that of its arrival.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.storage.layout import SUBMITTED_MARK, Home, is_folder, printable_name

#: A folder dropped in by hand is taken up when nothing in it changed for this long.
QUIET_S = 1.0
#: Entries looked at to tell whether a folder is quiet; beyond them it is taken for quiet.
_ENTRIES_MAX = 5000
#: What changed within the grain of a file system's clock may change again and show the same time.
_GRAIN_S = 2.0
#: Not everything shows in the time of `jobs/`: the target of a link, a change made on another machine.
_ANYWAY_S = 60.0


@dataclass(frozen=True)
class Arrival:
    """A folder in `jobs/`, and its place in the queue."""

    folder: str
    order: int


class Arrivals:
    """Finds what is new in `jobs/`, and gives it out piece by piece."""

    def __init__(self, home: Home, is_known: Callable[[str], bool], next_order: Callable[[], int]) -> None:
        """Begin.

        Args:
            home: of the jobs.
            is_known: tells whether a name (as printed) needs no taking up.
            next_order: returns a place in the queue behind all others.
        """
        self._home = home
        self._is_known = is_known
        self._next_order = next_order
        self._batches: list[deque[Arrival]] = []  # of one look each, the newest last
        self._pending: set[str] = set()
        self._again: list[Arrival] = []
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = -_ANYWAY_S

    def find(self) -> None:
        """Look for new folders, unless `jobs/` is as it was; what was put back is given out again."""
        self._add(self._again)
        self._again = []
        stamp, now_s = _stamp(self._home.jobs), time.monotonic()
        if stamp is not None and stamp == self._stamp and now_s < self._looked_s + _ANYWAY_S:
            return
        self._stamp, self._looked_s = stamp, now_s
        fresh = [folder for folder in self._home.submitted() if self._is_new(folder)]
        self._pending.update(fresh)
        self._add([Arrival(folder, self._next_order()) for folder in fresh])

    def take(self) -> Arrival | None:
        """Return the next folder, to be taken up or put back; None where there is none."""
        while self._batches:
            batch = self._batches[-1]
            arrival = batch.popleft()
            if not batch:
                self._batches.pop()
            self._pending.discard(arrival.folder)
            if self._is_new(arrival.folder) and is_folder(self._home.jobs / arrival.folder):
                return arrival
        return None

    @property
    def any_left(self) -> bool:
        """Tell whether `take` may have something to give."""
        return bool(self._batches)

    def put_back(self, arrival: Arrival) -> None:
        """Have a folder given out again after the next `find`."""
        self._pending.add(arrival.folder)
        self._again.append(arrival)

    def _is_new(self, folder: str) -> bool:
        stands_for_itself = "%" not in folder  # where it is known: what was encoded has one
        if folder in self._pending or (stands_for_itself and self._is_known(folder)):
            return False
        return not self._is_known(printable_name(folder))

    def _add(self, arrivals: list[Arrival]) -> None:
        if arrivals:
            self._batches.append(deque(arrivals))


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """Return what changes with every entry that comes or goes; None where that cannot be relied on."""
    try:
        about = folder.stat()
    except OSError:
        return None
    if abs(time.time() - about.st_mtime) < _GRAIN_S:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns


def is_quiet(folder: Path, now_s: float) -> bool:
    """Tell whether `folder` is whole: submitted, or unchanged for a second (`now_s` since the epoch)."""
    with contextlib.suppress(OSError):  # a folder that we may not search is taken up, to say so
        if (folder / SUBMITTED_MARK).exists():
            return True
    for number, changed_s in enumerate(_changes(folder)):
        if now_s - QUIET_S < changed_s <= now_s + 60:
            return False
        if number >= _ENTRIES_MAX:
            break
    return True


def _changes(folder: Path) -> Iterator[float]:
    stack = [folder]
    while stack:
        current = stack.pop()
        try:
            yield current.lstat().st_ctime
            entries = list(os.scandir(current))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                stack.append(Path(entry.path))
            else:
                try:
                    yield entry.stat(follow_symlinks=False).st_ctime
                except OSError:
                    continue
