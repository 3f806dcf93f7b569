"""Whether running attempts are well: progress, wall time, memory."""

from __future__ import annotations

import time
from typing import Any

from runner.core.events import Limit, Sight
from runner.core.hang import Pulse, hangs, observe
from runner.core.job import Job, State, seconds_between
from runner.errors import UnreadableRecordError
from runner.storage import records
from runner.storage.layout import Home
from runner.supervisor import process
from runner.supervisor.attempts import Attempts, Live, read_identity, snapshots_bytes

#: How often one attempt is looked at.
LOOK_S = 1.0
#: A gap between two looks beyond this was not ours to see: the machine slept, or we did.
_GAP_MAX_S = 10.0
#: Phases (see ARCHITECTURE.md) in which limits.hang holds; before them it is limits.startup.
_AFTER = "after"
_OWN_LOOP = "own"
_AFTER_FIRST_STEP = {"train", "validate", "callbacks", "save", _AFTER, _OWN_LOOP}


class Vitals:
    """Looks at each live attempt about once a second."""

    def __init__(self, home: Home, attempts: Attempts) -> None:
        self._home = home
        self._attempts = attempts

    def check(self, job: Job) -> Limit | None:
        """Look at the job's attempt if it is time; return the limit it went over, if any."""
        attempt = self._attempts.live[job.name]
        if attempt.shim is None:
            return None  # its checkpoints are being fetched, or it waits to be started
        now = time.monotonic()
        first = attempt.pulse.seen_at == 0.0
        if first:
            attempt.pulse = Pulse(now)
        since_s = now - attempt.pulse.seen_at
        if job.state is not State.RUNNING or (since_s < LOOK_S and not first):
            return None
        self._observe(job, attempt, now, since_s)
        self._attempts.hold_memory(attempt)
        reason = self._hangs(job, attempt)
        if reason:
            return Limit(Sight.HUNG, reason)
        return self._over_wall(job, attempt, since_s) or self._over_memory(job, attempt)

    def _observe(self, job: Job, attempt: Live, now: float, since_s: float) -> None:
        worker = attempt.worker = attempt.worker or read_identity(attempt.paths, "worker")
        runnable = since_s < _GAP_MAX_S and not (worker and process.is_stopped(worker.pid))
        progress = self._progress(job, attempt)
        # What changes progress.json changes it because the training gets on, not because time passes.
        mark = f"{progress.get('step')} {progress.get('time')}"
        stepped = progress.get("phase") in _AFTER_FIRST_STEP
        attempt.pulse = observe(attempt.pulse, now, mark, stepped=stepped, runnable=runnable)

    def _progress(self, job: Job, attempt: Live) -> dict[str, Any]:
        """Read the attempt's progress, where it is another; one left by an earlier attempt counts as none."""
        path = self._home.job(job.name).progress
        try:
            about = path.stat()
            stamp = about.st_ino, about.st_mtime_ns, about.st_size
            if stamp != attempt.progress_stamp:
                attempt.progress, attempt.progress_stamp = records.load_json(path), stamp
        except (OSError, UnreadableRecordError):
            attempt.progress, attempt.progress_stamp = {}, None
        return attempt.progress if attempt.progress.get("attempt") == job.attempt else {}

    def _hangs(self, job: Job, attempt: Live) -> str | None:
        """Say that the attempt hangs, where silence means anything.

        A command that never reported may just not know how, and a loop of a script's own says nothing; for
        these limits.hang has to be set.
        """
        progress, limits = self._progress(job, attempt), job.spec.limits
        phase = progress.get("phase")
        reports = phase != _OWN_LOOP and (job.spec.command is None or bool(progress))
        if not reports and limits.hang_s is None:
            return None
        return hangs(attempt.pulse, limits, after=phase == _AFTER)

    def _over_wall(self, job: Job, attempt: Live, since_s: float) -> Limit | None:
        allowed_s = job.spec.limits.wall_s
        if allowed_s is None:
            return None
        if attempt.wall_s < 0:
            asked_at = job.asked_at or ""
            earlier = [a for a in job.attempts if a.ended_at and a.started_at >= asked_at]
            attempt.wall_s = sum(seconds_between(a.started_at, a.ended_at or "") for a in earlier)
        attempt.wall_s += min(since_s, _GAP_MAX_S)
        if attempt.wall_s <= allowed_s:
            return None
        return Limit(Sight.WALL_OVER, f"ran for {attempt.wall_s:.0f} s (limits.wall = {allowed_s:.0f} s)")

    def _over_memory(self, job: Job, attempt: Live) -> Limit | None:
        allowed = job.spec.limits.memory_bytes
        if allowed is None or attempt.shim is None:
            return None
        keeper = read_identity(attempt.paths, "keeper")
        used = tree_rss_bytes(attempt.shim.pid, but=keeper.pid if keeper is not None else None)
        used -= snapshots_bytes(attempt.paths) if used > allowed else 0
        if used <= allowed:
            return None
        return Limit(
            Sight.MEMORY_OVER, f"uses {used >> 20} MiB of memory (limits.memory = {allowed >> 20} MiB)"
        )


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
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0
    return total
