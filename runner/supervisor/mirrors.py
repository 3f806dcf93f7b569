"""The processes of the mirrors: one that copies, for the whole home, and one for a fetch before an attempt.

Nothing here waits for them, and what becomes of them changes nothing for those who train. The one that copies
is there while a job with a mirror runs, or lacks something on it; it ends by itself, also after us.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from runner.core.job import ACTIVE, Job, State
from runner.errors import RefusedError
from runner.storage import eventlog, lock, mirrored
from runner.storage.layout import Home
from runner.supervisor import launch, process
from runner.supervisor.book import Book
from runner.supervisor.loop import Loop

log = logging.getLogger(__name__)

#: Between two looks at the mirrors.
_TEND_S = 1.0
#: Before a process that ended unasked is started again: at first, and at most.
_AGAIN_S = 1.0
_AGAIN_S_MAX = 60.0
#: SIGTERM ends it at once: it has no handler.
_END_S = 5.0


class Mirrors:
    """Sees to it that a home's mirrors are looked after."""

    def __init__(self, home: Home, loop: Loop, book: Book, *, wanted: bool = True) -> None:
        self._home = home
        self._loop = loop
        self._book = book
        self._wanted = wanted
        self._copier = -1  # a pidfd
        self._again_s = _AGAIN_S
        self._not_before = 0.0
        self._tended = 0.0
        self._done: dict[str, int] = {}  # name -> revision of the record that has all on its mirror

    def must_fetch(self, job: Job) -> bool:
        """Tell whether the job's checkpoints have to be looked for on its mirror before it may train."""
        url = job.spec.checkpoint.mirror
        return (
            self._wanted and url is not None and mirrored.must_fetch(self._home.job(job.name), url, job.name)
        )

    def tend(self) -> None:
        """Take over what was reported, and start the process that copies where it is missing."""
        now = time.monotonic()
        if not self._wanted or now < self._tended + _TEND_S:
            return
        self._tended = now
        jobs = self._with_mirror()
        for job in jobs:
            self._relay(job)
        if self._copier < 0 and now >= self._not_before and any(map(self._lacks, jobs)):
            self._start()

    def leave(self) -> None:
        """See to it that what is lacking is copied, though we end now."""
        if self._wanted and self._copier < 0 and any(map(self._lacks, self._with_mirror())):
            self._start()

    def end(self) -> None:
        """End the process that copies: the daemon that we become starts its own, of its own version."""
        if self._copier >= 0:
            process.ask(self._copier, signal.SIGTERM)
            process.wait(self._copier, _END_S)
            self._ended()

    def _with_mirror(self) -> list[Job]:
        return [self._book.jobs[name] for name in sorted(self._book.mirrored)]

    def _relay(self, job: Job) -> None:
        facts, read = eventlog.read_from(self._home.job(job.name).mirror_facts, job.mirror_read)
        if read != job.mirror_read:
            self._book.relay(job.name, facts, read)

    def _lacks(self, job: Job) -> bool:
        """Tell whether there is, or may soon be, something to copy, or to remove there."""
        if job.state in ACTIVE:
            return True
        if job.state is State.REJECTED or self._done.get(job.name) == job.revision:
            return False
        paths = self._home.job(job.name)
        status = mirrored.load(paths)
        if mirrored.behind(paths, status) or mirrored.rejected(paths, status):
            return True
        self._done[job.name] = job.revision
        return False

    def _start(self) -> None:
        if lock.is_locked(self._home.mirror_lock):
            return  # that of a supervisor before us, or beside us
        try:
            pid = launch.start_python(self._home, ["-m", "runner.mirror", "--home", str(self._home.root)])
            self._copier = os.pidfd_open(pid)
        except OSError as error:
            log.error("the mirrors' process cannot be started: %s; trying again", error)
            self._not_before = time.monotonic() + _AGAIN_S_MAX
            return
        self._loop.on_readable(self._copier, self._ended)

    def _ended(self) -> None:
        self._loop.forget(self._copier)
        code = reap(self._copier)
        self._copier = -1
        if code in {0, RefusedError.exit_code}:
            self._again_s = _AGAIN_S
        else:
            log.error("the mirrors' process ended (exit code %s); starting it again", code)
            self._again_s = min(2 * self._again_s, _AGAIN_S_MAX)
        self._not_before = time.monotonic() + self._again_s


def start_fetch(home: Home, job: Job) -> int:
    """Start fetching the job's checkpoints, for its newest attempt; return a pidfd.

    Raises:
        StillLockedError: an earlier attempt is not entirely gone.
        OSError: the attempt's folder could not be written, or no process could be made.
    """
    paths = home.job(job.name)
    if lock.is_locked(paths.lock):
        raise launch.StillLockedError(job.name)
    attempt = paths.attempt(job.attempt)
    attempt.dir.mkdir(parents=True, exist_ok=True)
    argv = [
        "-m",
        "runner.mirror",
        "--home",
        str(home.root),
        "--fetch",
        job.name,
        "--attempt",
        str(job.attempt),
    ]
    with attempt.log.open("ab") as out:
        return os.pidfd_open(launch.start_python(home, argv, out, RUNNER_STATE=str(paths.dir)))


def end_fetch(pidfd: int) -> None:
    """Have a fetch end: the next one goes on where it was."""
    process.ask(pidfd, signal.SIGTERM)


def reap(pidfd: int) -> int | None:
    """Return the exit code of a child that has ended, None where it was killed; closes the descriptor."""
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        ended = None
    os.close(pidfd)
    return ended.si_status if ended is not None and ended.si_code == os.CLD_EXITED else None
