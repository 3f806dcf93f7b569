"""Whether running attempts are well: progress, wall time, memory."""

from __future__ import annotations

import time

from runner.core.events import Limit, Sight
from runner.core.hang import teaches
from runner.core.job import Job, State
from runner.storage.layout import Home
from runner.supervisor import process
from runner.supervisor.attempts import Attempts, Live
from runner.supervisor.book import Book, moment
from runner.supervisor.traces import read_identity, snapshots_bytes
from runner.supervisor.watch import Watch

#: How often an attempt's memory and wall time are looked at; its signs of life whenever `check` is called.
LOOK_S = 1.0
#: A gap between two looks beyond this was not ours to see: the machine slept, or we did.
_GAP_MAX_S = 10.0


class Vitals:
    """Looks at each live attempt."""

    def __init__(self, home: Home, attempts: Attempts, book: Book) -> None:
        self._home = home
        self._attempts = attempts
        self._book = book

    def leave(self) -> None:
        """Leave what was learned of attempts that live on to whoever adopts them."""
        for name, attempt in self._attempts.live.items():
            if attempt.watch is not None and name in self._book.jobs:
                self._book.learn(name, attempt.watch.pulse.pace)

    def check(self, job: Job) -> Limit | None:
        """Look at the job's attempt; return the limit it went over, if any."""
        attempt = self._attempts.live[job.name]
        if attempt.shim is None or job.state is not State.RUNNING:
            return None  # its checkpoints are being fetched, it waits to be started, or ends already
        now = time.monotonic()
        if attempt.watch is None:
            attempt.watch = Watch(self._home.job(job.name), attempt.number, now)
        if attempt.worker is None:
            identity = read_identity(attempt.paths, "worker")
            attempt.worker = identity.pid if identity is not None else None
        attempt.watch.look(job, now, attempt.worker)
        # Once the worker has been reaped, its shim clears up after it: that may take long, and is no hang.
        if (hang := attempt.watch.hangs(job)) and (attempt.worker is None or _is_there(attempt.worker)):
            return hang
        since_s, attempt.looked_at = now - (attempt.looked_at or now), attempt.looked_at or now
        if 0.0 < since_s < LOOK_S:
            return None
        attempt.looked_at = now
        self._attempts.hold_memory(attempt)
        if teaches(job.pace, attempt.watch.pulse.pace):
            self._book.learn(job.name, attempt.watch.pulse.pace)  # a killed supervisor leaves nothing else
        limit = self._over_wall(job, attempt, since_s) or self._over_memory(job, attempt)
        if limit is None:
            self._attempts.spares.tend(job, lambda: used_bytes(attempt))
        return limit

    def _over_wall(self, job: Job, attempt: Live, since_s: float) -> Limit | None:
        allowed_s = job.spec.limits.wall_s
        if allowed_s is None:
            return None
        if attempt.wall_s < 0:
            attempt.wall_s = job.ran_s + _ran_s(job, attempt)
        attempt.wall_s += min(since_s, _GAP_MAX_S)
        if attempt.wall_s <= allowed_s:
            return None
        return Limit(Sight.WALL_OVER, f"ran for {attempt.wall_s:.0f} s (limits.wall = {allowed_s:.0f} s)")

    def _over_memory(self, job: Job, attempt: Live) -> Limit | None:
        allowed = job.spec.limits.memory_bytes
        if allowed is None or (used := used_bytes(attempt)) <= allowed:
            return None
        used -= snapshots_bytes(attempt.paths)
        if used <= allowed:
            return None
        return Limit(
            Sight.MEMORY_OVER, f"uses {used >> 20} MiB of memory (limits.memory = {allowed >> 20} MiB)"
        )


def _ran_s(job: Job, attempt: Live) -> float:
    """Return how long the attempt has run, which another supervisor may have started.

    Two bounds: a spare's shim is older than the attempt, and an attempt may have been begun long before it
    could be started.
    """
    if attempt.shim is None or job.current is None:
        return 0.0
    return max(0.0, min(process.age_s(attempt.shim), job.current.age_s(moment())))


def _is_there(pid: int) -> bool:
    """Tell whether there is such a process, be it a zombie."""
    return process.identify(pid) is not None


def used_bytes(attempt: Live) -> int:
    """Return the attempt's memory, its snapshots included."""
    if attempt.shim is None:
        return 0
    keeper = read_identity(attempt.paths, "keeper")
    return tree_rss_bytes(attempt.shim.pid, but=keeper.pid if keeper is not None else None)


def tree_rss_bytes(shim_pid: int, but: int | None = None) -> int:
    """Sum the resident memory of everything below the shim; pages shared within the tree count twice.

    Args:
        shim_pid: of the shim.
        but: a process that does not count: the keeper, which is ours, and shares the worker's snapshots.
    """
    import psutil  # only where a job has a memory limit

    total = 0
    try:
        for member in psutil.Process(shim_pid).children(recursive=True):
            try:
                total += member.memory_info().rss if member.pid != but else 0
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total
