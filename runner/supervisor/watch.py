"""What is to be seen of one attempt from outside: its progress, its heartbeat, and whether it can run.

Cheap, as there is a look four times a second: the progress is read only when it has changed, and /proc only
when an attempt is idle. No wall-clock time takes part: that of the file serves to notice a change alone.
"""

from __future__ import annotations

import math
from typing import Any

from runner.core.events import Limit, Sight
from runner.core.hang import Ability, Look, Pulse, closely, hangs, lengthened, observe
from runner.core.job import Job
from runner.errors import UnreadableRecordError
from runner.storage import disk, records
from runner.storage.layout import JobPaths
from runner.supervisor import process

#: Idle for so long, or for this part of its limit, an attempt is looked at: is it stopped? And from that part
#: on: is it frozen, does it wait for a processor? To know that takes a second and more; limits may be of two.
_IDLE_S, _IDLE_PART = 2.0, 0.25
#: It starves where it waits for a processor for most of the time, and far longer than it has one.
_STARVED_SHARE, _STARVED_RATIO, _ACCOUNT_S = 0.5, 4.0, 1.0
#: A thread that has work to do keeps a processor for longer than that when it gets one.
_TURN_S = 0.0005
#: With less room than that, a worker cannot tell how far it is.
_DISK_BYTES_MIN = 1 << 20
#: Phase of a loop of the script's own, of which nothing is known.
_OWN_LOOP = "own"


class Watch:
    """Looks at one attempt."""

    def __init__(self, paths: JobPaths, attempt: int, now: float) -> None:
        self._paths = paths
        self._attempt = attempt
        self._file = paths.progress
        self._stamp: tuple[int, int, int] | None = None
        self._accounts: dict[str, process.Processing] = {}
        self._accounts_at: float | None = None
        self._starves = Ability.RUNS
        self.progress: dict[str, Any] = {}
        self.pulse = Pulse(now)

    def look(self, job: Job, now: float, worker: int | None) -> None:
        """Take a look.

        Args:
            job: its record.
            now: monotonic, in seconds.
            worker: the pid of its worker; None while that is not known.
        """
        self._read()
        progress, stamp = self.progress, self._stamp
        mark = progress.get("work") or [progress.get(key) for key in ("step", "phase", "time")]
        self.pulse = observe(
            self.pulse,
            Look(
                now,
                mark=f"{progress.get('pid')} {mark}" if progress else "",
                phase=str(progress.get("phase") or ""),
                beat=f"{stamp}" if progress.get("heartbeat_s") else None,
                idle_s=_seconds(progress.get("idle_s")),
                ability=self._ability(job, now, worker),
            ),
        )

    def hangs(self, job: Job) -> Limit | None:
        """Return by what the attempt hangs, where silence means anything.

        A command that never reported may just not know how, and a loop of a script's own says nothing; for
        these limits.hang has to be set.
        """
        progress, limits = self.progress, job.spec.limits
        reports = progress.get("phase") != _OWN_LOOP and (job.spec.command is None or bool(progress))
        if not reports and limits.hang_s is None:
            return None
        reason = hangs(self.pulse, limits, job.pace)
        if reason and disk.trouble(self._paths.dir, _DISK_BYTES_MIN):
            self.pulse = Pulse(self.pulse.seen_at, self.pulse.mark, self.pulse.phase, pace=self.pulse.pace)
            return None  # it could not tell of any work, and has as long again
        return Limit(Sight.HUNG, reason, lengthened(self.pulse, limits, job.pace)) if reason else None

    def _read(self) -> None:
        """Read the attempt's progress where it has changed; one left by an earlier attempt counts as none."""
        try:
            about = self._file.stat()
            stamp = about.st_mtime_ns, about.st_ino, about.st_size
            if stamp == self._stamp:
                return
            self._stamp = stamp
            progress = records.load_json(self._file)
        except (OSError, UnreadableRecordError):
            progress = {}
        self.progress = progress if progress.get("attempt") == self._attempt else {}

    def _ability(self, job: Job, now: float, worker: int | None) -> Ability:
        part = closely(self.pulse, job.spec.limits, job.pace)
        idle_s = self.pulse.idle_s + self.pulse.starved_s
        if worker is None or (idle_s < _IDLE_S and part < _IDLE_PART):
            self._accounts_at, self._accounts, self._starves = None, {}, Ability.RUNS
            return Ability.RUNS
        reporter = self.progress.get("pid")
        members = {worker, reporter} if type(reporter) is int and reporter > 0 else {worker}
        if any(process.is_stopped(pid) for pid in members):
            return Ability.HELD
        if part < _IDLE_PART:
            return Ability.RUNS
        if any(process.is_frozen(pid) for pid in members):
            return Ability.HELD
        return self._starved(now, members)

    def _starved(self, now: float, members: set[int]) -> Ability:
        """Tell, once a second, whether the processes wait for a processor: others may have them all."""
        if self._accounts_at is not None and now - self._accounts_at < _ACCOUNT_S:
            return self._starves
        passed_s = now - self._accounts_at if self._accounts_at is not None else math.inf
        before, self._accounts = self._accounts, {}
        for pid in members:
            self._accounts.update(process.processing(pid))
        self._accounts_at = now
        both = before.keys() & self._accounts.keys()
        starved = any(starves(before[thread], self._accounts[thread], passed_s) for thread in both)
        self._starves = Ability.STARVED if starved else Ability.RUNS
        return self._starves


def starves(before: process.Processing, after: process.Processing, passed_s: float) -> bool:
    """Tell whether a thread waits for a processor far longer than it has one, and would make use of it.

    One that only looks now and then whether there is something to do waits as well, where the machine is
    busy; but it gives a processor back at once.
    """
    ran_s, waited_s = after.ran_s - before.ran_s, after.waited_s - before.waited_s
    turns = after.turns - before.turns
    if before.ready and after.ready:
        waited_s = max(waited_s, passed_s - ran_s)  # a wait that is not over
    used = ran_s >= _TURN_S * turns
    return used and waited_s > max(_STARVED_SHARE * passed_s, _STARVED_RATIO * ran_s)


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0
