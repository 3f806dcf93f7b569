"""All jobs of a home at a glance, looked at again and again at little cost, however many there are.

A record is read again when its file has changed, and only the jobs that are shown are looked at in full. Of
those that have ended a part is looked at each time: what becomes of them by `retry` is seen within `_TURNS`
looks. A job that was removed, or has just come, is seen at once.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.cli import daemon, facts, ls
from runner.cli.options import by_number
from runner.core.job import SETTLED, State
from runner.errors import NoSuchJobError, UnreadableRecordError
from runner.storage import disk, lock, records
from runner.storage.layout import Home, printable_name

#: What ended jobs are divided into, to be looked at one after the other.
_TURNS = 8
#: Who is shown first; ended jobs are the last, the newest of them first.
_ORDER = (State.RUNNING, State.STOPPING, State.BACKOFF, facts.UNREADABLE, State.QUEUED, State.PAUSED)
_RANKS: dict[str, int] = {state: rank for rank, state in enumerate(_ORDER)}
_ENDED_RANK = len(_RANKS)
#: Their facts change only with their records.
_AT_REST = SETTLED | {State.PAUSED}

#: Tells whether a record's file is still the one that was read; None: there is none yet.
_Mark = tuple[int, int, int] | None


@dataclass(frozen=True)
class View:
    """What there is to show: the first jobs of all, and what is to be said of all and of the home."""

    jobs: list[dict[str, Any]]
    more: int
    states: dict[str, int]
    serving: bool  #: a daemon serves the home
    private: bool  #: a supervisor of one job does (`runner run`)
    pid: int | None  #: the daemon's
    disk_free_bytes: int | None


@dataclass(frozen=True)
class _Glance:
    """What is kept of each job."""

    path: str
    mark: _Mark
    state: str
    place: tuple[Any, ...]  #: what to sort by


class Board:
    """The jobs of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._glances: dict[str, _Glance] = {}
        self._kept: dict[str, tuple[_Mark, dict[str, Any]]] = {}
        self._turn = 0

    def look(self, rows_max: int | None = None) -> View:
        """Look at all jobs, and in full at the first `rows_max` of them."""
        self._turn += 1
        self._glances = dict(self._glance_at_all())
        shown = len(self._glances) if rows_max is None else min(rows_max, len(self._glances))
        first = heapq.nsmallest(shown, self._glances, key=lambda name: self._glances[name].place)
        jobs = [job for name in first if (job := self._in_full(name)) is not None]
        self._kept = {name: self._kept[name] for name in first if name in self._kept}
        serving = daemon.is_serving(self._home)
        return View(
            jobs,
            len(self._glances) - shown,
            dict(Counter(glance.state for glance in self._glances.values())),
            serving,
            not serving and lock.is_locked(self._home.lock),
            self._supervisor_pid() if serving else None,
            self._free_bytes(),
        )

    def _glance_at_all(self) -> Iterator[tuple[str, _Glance]]:
        known = set()
        for name in _names(self._home.state):
            glance = self._glances.get(name)
            if glance is None or glance.state not in SETTLED or (hash(name) + self._turn) % _TURNS == 0:
                glance = self._glance(name, glance)
            if glance is not None:
                known.add(name)
                yield name, glance
        for folder in _names(self._home.jobs):
            if folder not in known and self._is_submitted(folder):
                name = printable_name(folder)
                if name not in known:
                    yield name, _Glance("", None, State.QUEUED, (_RANKS[State.QUEUED], by_number(name)))

    def _glance(self, name: str, before: _Glance | None) -> _Glance | None:
        """Look whether the record has changed, and what it says then; None where there is none."""
        path = before.path if before and before.path else str(self._home.job(name).record)
        try:
            found = os.stat(path)  # noqa: PTH116 - a Path costs more than the call, and there are thousands
            mark = found.st_ino, found.st_mtime_ns, found.st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return _Glance(path, None, facts.UNREADABLE, _place(name, facts.UNREADABLE, None))
        if before is not None and before.mark == mark:
            return before
        try:
            record = records.load_json(Path(path))
            state, finished_at = State(record["state"]).value, record.get("finished_at")
            return _Glance(path, mark, state, _place(name, state, finished_at))
        except (OSError, UnreadableRecordError, KeyError, TypeError, ValueError):
            return _Glance(path, mark, facts.UNREADABLE, _place(name, facts.UNREADABLE, None))

    def _is_submitted(self, folder: str) -> bool:
        return not folder.endswith(".tmp") and os.path.isdir(self._home.folder(folder))  # noqa: PTH112 - any bytes

    def _in_full(self, name: str) -> dict[str, Any] | None:
        """Return the job's facts; None where it was removed meanwhile."""
        mark, (kept_mark, kept) = self._glances[name].mark, self._kept.get(name, (None, None))
        if kept is not None and mark is not None and mark == kept_mark:
            return kept
        try:
            job = ls.look(self._home, name)
        except NoSuchJobError:
            return None
        if job["state"] in _AT_REST:
            self._kept[name] = mark, job
        return job

    def _supervisor_pid(self) -> int | None:
        try:
            return int(records.load_json(self._home.supervisor)["identity"]["pid"])
        except (OSError, UnreadableRecordError, KeyError, TypeError, ValueError):
            return None

    def _free_bytes(self) -> int | None:
        try:
            return disk.free_bytes(self._home.state)
        except OSError:
            return None


def _place(name: str, state: str, finished_at: str | None) -> tuple[Any, ...]:
    """Return what a job is sorted by; of those that have ended the newest is first."""
    if state in _RANKS:
        return _RANKS[state], by_number(name)
    ended_s = datetime.fromisoformat(finished_at).timestamp() if finished_at else 0.0
    return _ENDED_RANK, -ended_s, by_number(name)


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208 - see above
    except (FileNotFoundError, NotADirectoryError):
        return []
