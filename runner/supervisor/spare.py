"""Spares: beside an attempt that trains, a shim with a worker that has imported already (`[restart] spare`).

A hot one has run the script as well, up to its `fit` (`training.hot`); from here both look the same.

One for each job, for its next attempt: renewed when it was used, dropped when the job needs it no longer, or
waits, when it does not match what the attempt would be started with, and when memory becomes short. A spare
that fails costs nothing, or where it was not ready yet as long again as it has had: the attempt is started as
without one. It ends with this supervisor.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core.job import Job, State
from runner.core.spec import Spare as Kind
from runner.storage import jsontext, records
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import launch, process
from runner.supervisor.ends import read
from runner.supervisor.loop import Loop

log = logging.getLogger(__name__)

_PROGRAM = Path(__file__).resolve().with_name("spare_shim.py")
_CHANNEL_FD = 5
_RESERVED_FDS = (3, 4)  # for what is handed over
_MESSAGE_BYTES = 65536
_REASON_MAX = 500
#: A first attempt that has trained for so long gets a spare. Later ones get theirs at once: what was killed
#: may be soon again.
SETTLE_S = 1.0
#: One that is not ready is used where it was begun so long ago, and no longer: less is left to it than to a
#: new process, where nothing blocks it.
HEAD_START_S = 2.0
BLOCKED_S = 60.0
#: Before another one, where memory was short, and where it was killed.
SHORT_S = 60.0
KILLED_S = 600.0
_NEVER = math.inf
#: A job that waits for its next attempt lets go of its spare's memory then.
IDLE_S = 5.0
#: For the spares to end, before this program becomes another.
_END_S = 2.0
#: What a spare is thought to need while nobody knows.
THOUGHT_BYTES = 1 << 30
#: Of the environment, what differs for each attempt.
_FOR_EACH = frozenset({"RUNNER_ATTEMPT", "RUNNER_RESUME"})
#: What else a process is started with, and keeps.
_FIXED = ("argv", "cwd", "seed", "threads", "entry", "args", "spare")


@dataclass
class Spare:
    """One that waits."""

    name: str
    pid: int
    pidfd: int
    channel: socket.socket
    match: tuple[Any, ...]  #: what its attempt must be started with
    folder: AttemptPaths
    beside: int  #: the attempt that trains
    begun_s: float  #: monotonic
    ready: bool = False

    def hand_over(
        self, plan: dict[str, Any], attempt: AttemptPaths, lock_fd: int, memory: int | None
    ) -> bool:
        """Make it the attempt's shim; False where it cannot be, and then it never was.

        Args:
            plan: the attempt's launch.json, which is written.
            attempt: its folder.
            lock_fd: the job's lock.
            memory: a descriptor of the memory for snapshots that the attempt before has left.
        """
        if _match(plan) != self.match:
            log.info("%s: the spare is of no use: what the attempt is started with has changed", self.name)
            return False
        age_s = time.monotonic() - self.begun_s
        if self._is_gone() or not (self.ready or HEAD_START_S <= age_s <= BLOCKED_S):
            return False
        fds = [lock_fd] if memory is None else [lock_fd, memory]
        try:
            socket.send_fds(self.channel, [json.dumps({"folder": str(attempt.dir)}).encode()], fds)
        except OSError as error:
            log.warning("%s: the spare cannot be used: %s", self.name, error)
            return False
        return True

    def _is_gone(self) -> bool:
        return process.wait(self.pidfd, 0.0) or process.is_stopped(self.pid)

    def resident_bytes(self) -> int:
        """Return how much memory its worker and its keeper have."""
        about = read(self.folder.shim)
        pages = 0
        for found in map(process.Identity.parse, (about.get("worker"), about.get("keeper"))):
            with contextlib.suppress(OSError, ValueError, IndexError):
                pages += int(Path(f"/proc/{found.pid}/statm").read_text().split()[1]) if found else 0
        return pages * os.sysconf("SC_PAGESIZE")


class Spares:
    """The spares of all jobs."""

    def __init__(self, home: Home, loop: Loop, note: Callable[..., None], *, isolate: bool) -> None:
        """Begin.

        Args:
            home: of the jobs.
            loop: the supervisor's.
            note: records an event of a job: its name, the event, details.
            isolate: every job is kept from the files of others, so that none has a spare.
        """
        self._home = home
        self._loop = loop
        self._note = note
        self._isolate = isolate
        self._waiting: dict[str, Spare] = {}
        self._ending: dict[int, Spare] = {}  # by their pidfds: dismissed, and not seen to have ended
        self._not_before: dict[tuple[str, int], float] = {}

    def tend(self, job: Job, used_bytes: Callable[[], int]) -> None:
        """See that the job whose attempt runs has its spare, where it wants and may have one.

        Args:
            job: its record.
            used_bytes: returns the memory of its attempt, which counts where the job has a limit.
        """
        if job.spec.restart.spare is Kind.NONE or job.spec.command or job.state is not State.RUNNING:
            return
        if self._isolate or job.spec.env_file or job.spec.isolation.write is not None:
            return  # only a process that has just been started has these; settings refuse them by now
        limit, spare = job.spec.limits.memory_bytes, self._waiting.get(job.name)
        if spare is not None:
            if limit is not None and used_bytes() + spare.resident_bytes() > limit:
                self._put_off(job, "both would be above limits.memory")
        elif self._is_due(job):
            if limit is not None and used_bytes() + THOUGHT_BYTES > limit:
                self._put_off(job, "")
            else:
                self._start(job)

    def _put_off(self, job: Job, why: str) -> None:
        self._not_before[job.name, job.attempt] = time.monotonic() + SHORT_S
        self.dismiss(job.name, why)

    def _is_due(self, job: Job) -> bool:
        """Tell whether the attempt has told what it imports, and has then trained for a while."""
        key, now_s = (job.name, job.attempt), time.monotonic()
        if key not in self._not_before:
            if not os.access(self._home.job(job.name).attempt(job.attempt).imported, os.F_OK):
                return False
            settled_s = now_s + (SETTLE_S if job.attempt == 1 else 0.0)
            before = [
                when for (name, _), when in self._not_before.items() if name == job.name and when < _NEVER
            ]
            self._forget_times(job.name)
            # What was short, or killed, is not tried sooner because there is another attempt.
            self._not_before[key] = max([settled_s, *before])
        return now_s >= self._not_before[key]

    def _forget_times(self, name: str) -> None:
        """Forget when the job may have its next spare."""
        self._not_before = {key: when for key, when in self._not_before.items() if key[0] != name}

    def _start(self, job: Job) -> None:
        self._not_before[job.name, job.attempt] = _NEVER
        paths = self._home.job(job.name)
        folder = paths.spare
        try:
            plan = launch.launch_plan(self._home, replace(job, attempt=job.attempt + 1))
            plan["imported"] = str(paths.attempt(job.attempt).imported)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            log.warning("%s: there is no spare: %s", job.name, error)
            return
        try:
            folder.dir.mkdir(exist_ok=True)
            folder.log.unlink(missing_ok=True)
            records.save_json(folder.launch, plan, durably=False)
            pid = self._spawn(folder, theirs)  # where there is no descriptor for it, it ends with its socket
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            log.warning("%s: there is no spare: %s", job.name, error)
            ours.close()
            return
        finally:
            theirs.close()
        spare = Spare(job.name, pid, pidfd, ours, _match(plan), folder, job.attempt, time.monotonic())
        self._waiting[job.name] = spare
        self._loop.on_readable(ours.fileno(), lambda: self._hear(spare))

    def _spawn(self, folder: AttemptPaths, channel: socket.socket) -> int:
        # A copy above the numbers that are given out; the two below it are reserved by any descriptor.
        copy = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
        try:
            handed = dict.fromkeys((*_RESERVED_FDS, _CHANNEL_FD), copy)
            return launch.spawn_shim(_PROGRAM, folder.dir, folder.log, handed)
        finally:
            os.close(copy)

    def _hear(self, spare: Spare) -> None:
        """Take what a spare says: it is ready, or of no use; or that it has ended."""
        try:
            message = spare.channel.recv(_MESSAGE_BYTES)
        except OSError:
            message = b""
        said = _said(message)
        if said.get("ready"):
            spare.ready = True
            log.info("%s: a spare is ready, %s modules are left to the script", spare.name, said.get("left"))
            told = ("modules", "left", "until", "hot", "reason")
            details = {key: said[key] for key in told if key in said}
            self._note(spare.name, "spare-ready", **details, resident_bytes=spare.resident_bytes())
        else:
            reason = str(said.get("reason", "it has ended"))
            again_s = KILLED_S if not said else SHORT_S if said.get("again") else _NEVER
            self._not_before[spare.name, spare.beside] = time.monotonic() + again_s
            self.dismiss(spare.name, reason)

    def of(self, job: Job, memory: int | None) -> Spare | None:
        """Return the spare for the job's attempt, which is to be started; None where it has none.

        Args:
            job: its record. Without a checkpoint, or what is left in memory, there is nothing to hurry to.
            memory: a descriptor of what is left in memory.
        """
        return self._waiting.get(job.name) if job.checkpoint is not None or memory is not None else None

    def has(self, name: str, pid: int) -> bool:
        """Tell whether a process is one of the job's spare that waits.

        Its shim is our child, not reaped yet, so that nobody else has its pid; all that it has started stays
        below it.
        """
        spare = self._waiting.get(name)
        return spare is not None and process.descends(pid, spare.pid)

    def heed(self, job: Job) -> None:
        """Drop the spare of a job that will not be started again, or not soon."""
        spare = self._waiting.get(job.name)
        if spare is None:
            return
        if job.state in {State.BACKOFF, State.QUEUED}:
            self._loop.after(IDLE_S, lambda: self._dismiss_idle(spare))
        elif job.state is not State.RUNNING and not job.hung:
            self.dismiss(job.name, "")

    def _dismiss_idle(self, spare: Spare) -> None:
        """Drop a spare whose job has waited for so long: each start of an attempt uses it or drops it."""
        if self._waiting.get(spare.name) is spare:
            self.dismiss(spare.name, f"its job has waited for {IDLE_S:g} s")

    def release(self, name: str, *, used: bool) -> None:
        """Forget the job's spare: it has become a shim, or is dismissed."""
        spare = self._waiting.pop(name, None)
        if spare is None:
            return
        self._loop.forget(spare.channel.fileno())
        spare.channel.close()
        if used:
            os.close(spare.pidfd)
        else:
            self._ending[spare.pidfd] = spare
            self._loop.on_readable(spare.pidfd, lambda: self._reap(spare))

    def forget(self, name: str) -> None:
        """Let nothing be left of a job that was removed."""
        self.dismiss(name, "")
        self._forget_times(name)

    def dismiss(self, name: str, why: str) -> None:
        """Let the job's spare end, and record why where that tells anything."""
        if name in self._waiting:
            self.release(name, used=False)
            if why:
                log.info("%s: there is no spare: %s", name, why)
                self._note(name, "spare-dropped", reason=why)

    def dismiss_all(self) -> None:
        """Let all end: this supervisor starts nothing any more."""
        for name in list(self._waiting):
            self.dismiss(name, "")

    def end(self) -> None:
        """Let all end, and wait a moment for them and who was to end before: nobody else would reap them."""
        self.dismiss_all()
        until_s = time.monotonic() + _END_S
        for spare in self._ending.values():
            process.wait(spare.pidfd, max(0.0, until_s - time.monotonic()))
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, spare.pidfd, os.WEXITED | os.WNOHANG)

    def _reap(self, spare: Spare) -> None:
        del self._ending[spare.pidfd]
        self._loop.forget(spare.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, spare.pidfd, os.WEXITED)
        os.close(spare.pidfd)


def _match(plan: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two attempts must have in common for one process to do for both."""
    env = {name: value for name, value in plan["env"].items() if name not in _FOR_EACH}
    return env, {key: plan[key] for key in _FIXED}, _program(plan["argv"][0], plan["env"])


def _program(name: str, env: dict[str, str]) -> tuple[int, ...]:
    """Return which file the interpreter is, and when it was changed."""
    path = shutil.which(name, path=env.get("PATH", os.environ.get("PATH")))
    try:
        found = os.stat(path or name)  # noqa: PTH116 - the program itself, wherever links lead
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _said(message: bytes) -> dict[str, Any]:
    """Read what a spare says; what is no JSON object says as little as one that has ended.

    Any process of the job can have sent it.
    """
    try:
        found = jsontext.decode(message)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: _bounded(value) for key, value in found.items()}


def _bounded(value: Any) -> Any:
    """Return what a record may take over."""
    return value if isinstance(value, int | None) else str(value)[:_REASON_MAX]
