"""The attempts that live: started or adopted, asked to end, watched to their true end.

`Attempts` tells its owner of an attempt's end exactly once, after everything of it is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from runner.core.actions import Ask
from runner.core.events import Ended, StartFailed
from runner.core.job import Job
from runner.core.restart import EXIT_CONFIG, EXIT_RETRY
from runner.storage import lock, mirrored
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import confining, launch, mirrors, process, traces, vacancy
from runner.supervisor.cgroups import Groups
from runner.supervisor.ends import MACHINES_FAULT, read, read_outcome, signs_s
from runner.supervisor.loop import Loop
from runner.supervisor.process import Identity
from runner.supervisor.spare import Spares
from runner.supervisor.watch import Watch

log = logging.getLogger(__name__)

_SIGNALS = {Ask.STOP: signal.SIGTERM, Ask.KILL: signal.SIGUSR1, Ask.HANG: signal.SIGUSR2}
#: Between two looks at something that must happen soon.
_SOON_S = 0.02
#: Between two looks at what a killed shim has left, at most; and after how many it is told of.
_STRAYS_S, _STRAYS_LOOKS = 1.0, 20
#: Before trying again what the machine refused.
_REFUSED_S = 1.0
#: An adopted shim without shim.json is given this long to write it; after the first, /proc is asked, too.
_BIRTH_S, _INFANCY_S = 10.0, 1.0
#: Between two looks at what keeps an attempt from its end; a shim stopped at so many in a row stays so.
_HELD_LOOK_S, _STOPPED_LOOKS = 1.0, 3
#: What keeps an attempt from its end is told no more often than so, in so many characters.
_TOLD_S, _STUCK_TEXT_MAX = 5.0, 500
_UNSEEN = Ended(reason="its shim was killed; nobody saw the end")


@dataclass
class Live:
    """One attempt whose shim lives."""

    name: str
    number: int
    paths: AttemptPaths
    shim: Identity | None = None
    pidfd: int = -1
    fetch: int = -1  #: a pidfd, while its checkpoints are fetched from the job's mirror
    fetched: bool = False  #: they were looked for
    asked: Ask | None = None
    waited_s: float = 0.0
    wall_s: float = -1.0  #: how long the job has run, as far as its limit counts; below 0: not summed yet
    memory_held: bool = False
    looked_at: float = 0.0  #: when its memory and wall time were looked at
    worker: int | None = None  #: its worker's pid, once its shim has told it
    watch: Watch | None = None
    settling: int = 0  #: how often its tree was looked for, without a shim
    stray: str = ""  #: what of that does not die
    gone: set[int] = field(default_factory=set)  #: what was found of it, and killed
    stopped: int = 0  #: looks in a row at which its shim was stopped
    stuck: str = ""  #: what keeps it from its end, as it was told last
    stuck_at: float = 0.0  #: when that was looked at


class Attempts:
    """Starts, adopts, asks and watches attempts."""

    def __init__(
        self,
        home: Home,
        loop: Loop,
        on_end: Callable[[str, Ended | StartFailed], None],
        must_fetch: Callable[[Job], bool],
        caught_up: Callable[[str], Job | None],
        spares: Spares,
        *,
        isolate: bool,
    ) -> None:
        """Begin.

        Args:
            home: of the jobs.
            loop: the supervisor's.
            on_end: takes the end of an attempt.
            must_fetch: tells whether a job's checkpoints are to be looked for on its mirror first.
            caught_up: returns a job's record once all is in it that was reported; None: to be asked again.
            spares: what waits to take over.
            isolate: keep every job from the files of others.
        """
        self._home = home
        self._loop = loop
        self._on_end = on_end
        self._must_fetch = must_fetch
        self._caught_up = caught_up
        self.spares = spares
        self.live: dict[str, Live] = {}
        self._isolate = isolate
        self.groups: Groups | None = None  #: control groups for them, where the daemon has any to give
        #: What the shims hold for snapshots, held here too: what no disk took is there for the next one.
        self._memories: dict[str, int] = {}

    def start(self, job: Job) -> None:
        """Start the job's newest attempt, unless it is under way already."""
        if job.name in self.live:
            return
        attempt = Live(job.name, job.attempt, self._files(job))
        self.live[job.name] = attempt
        self._spawn(attempt, job)

    def adopt(self, job: Job, ask: Ask | None) -> None:
        """Watch an attempt that another supervisor started, and ask it again what was asked of it."""
        attempt = Live(job.name, job.attempt, self._files(job), asked=ask)
        self.live[job.name] = attempt
        if self._isolate and read(attempt.paths.launch).get("write") is None:
            text = "started without --isolate: until it ends it can write what its user can"
            log.warning("%s: attempt %d was %s", job.name, job.attempt, text)
        self._find_shim(attempt)

    def bury(self, job: Job, unseen: Ended) -> None:
        """Take an attempt whose shim died unseen for ended so, once nothing of it lives.

        The worker died with its shim, but not what the worker had started: that would run beside its
        successor.
        """
        attempt = Live(job.name, job.attempt, self._files(job))
        self.live[job.name] = attempt
        self._settle(attempt, replace(unseen, ran_s=signs_s(self._home.job(job.name), job)))

    def ask(self, name: str, ask: Ask) -> None:
        """Ask the attempt's shim; what comes before the shim can be reached is sent when it can."""
        attempt = self.live.get(name)
        if attempt is None:
            return
        attempt.asked = ask
        self._send(attempt)

    def hold_memory(self, attempt: Live) -> None:
        """Hold the memory for the attempt's snapshots, once its shim has told where it is."""
        if attempt.memory_held or attempt.shim is None:
            return
        about = read(attempt.paths.shim)
        fd = traces.open_memory(about, attempt.shim)
        attempt.memory_held = bool(about)  # it has told: there is none, or we have it
        if fd is not None:
            self.drop_memory(attempt.name)
            self._memories[attempt.name] = fd

    def newly_stuck(self, attempt: Live) -> str:
        """Say what keeps an attempt from its end, looking once a second; "" where that is known already."""
        now_s = time.monotonic()
        if now_s < attempt.stuck_at + _HELD_LOOK_S:
            return ""
        attempt.stuck_at = now_s
        stopped = attempt.pidfd >= 0 and attempt.shim is not None and process.is_stopped(attempt.shim.pid)
        attempt.stopped = attempt.stopped + 1 if stopped else 0
        if stopped:
            self._send(attempt)  # it is let go on where it was asked for something
        held = traces.stopped_shim(attempt.paths) if attempt.stopped >= _STOPPED_LOOKS else ""
        # Its folder is the job's too, which may write there what it likes.
        told = str(read(attempt.paths.stuck).get("text") or "")[:_STUCK_TEXT_MAX]
        said = told or attempt.stray or held
        if said == attempt.stuck:
            return ""
        attempt.stuck, attempt.stuck_at = said, now_s + _TOLD_S
        return said

    def drop_memory(self, name: str) -> None:
        """Let go of the memory of a job that has no next attempt."""
        fd = self._memories.pop(name, None)
        if fd is not None:
            os.close(fd)

    def holders(self) -> list[str]:
        """Name the jobs whose memory is held and of which no attempt lives."""
        return [name for name in self._memories if name not in self.live]

    def _spawn(self, attempt: Live, job: Job) -> None:
        if attempt.asked is not None:
            reason = "asked to end before it could be started"
            self._finish(attempt, Ended(exit_code=EXIT_RETRY, asked=True, reason=reason))
            return
        try:
            if not attempt.fetched and self._must_fetch(job):
                attempt.fetch = mirrors.start_fetch(self._home, job)
                self._loop.on_readable(attempt.fetch, lambda: self._fetch_ended(attempt))
                return
            job = confining.confined(self._home, job) if self._isolate else job
            memory_fd = self._memories.get(job.name)
            spare = self.spares.of(job, memory_fd)
            pid = launch.start_shim(self._home, job, memory_fd, self.groups, spare)
            self.spares.release(job.name, used=spare is not None and pid == spare.pid)
        except launch.StillLockedError:
            self._loop.after(_SOON_S, lambda: self._spawn(attempt, job))
            return
        except OSError as error:
            if error.errno not in MACHINES_FAULT:
                self._finish(attempt, StartFailed(f"cannot start: {error}"))
                return
            log.error("%s: cannot start attempt %d: %s; trying again", job.name, job.attempt, error)
            self._loop.after(_REFUSED_S, lambda: self._spawn(attempt, job))
            return
        attempt.shim = process.identify(pid)
        attempt.pidfd = os.pidfd_open(pid)
        self._watch(attempt)

    def _fetch_ended(self, attempt: Live) -> None:
        """Go on with the attempt after a look at its mirror, or end it."""
        self._loop.forget(attempt.fetch)
        code = mirrors.reap(attempt.fetch)
        attempt.fetch, attempt.fetched = -1, True
        reason = mirrored.load(self._home.job(attempt.name)).error or "its mirror could not be looked at"
        if attempt.asked is not None:
            reason = "asked to end while its checkpoints were being fetched"
            self._finish(attempt, Ended(exit_code=EXIT_RETRY, asked=True, reason=reason))
        elif code == 0:
            self._spawn_fetched(attempt)
        elif code == EXIT_CONFIG:
            self._finish(attempt, StartFailed(f"its mirror cannot be used: {reason}"))
        else:
            self._finish(attempt, Ended(exit_code=EXIT_RETRY, reason=f"its mirror cannot be read: {reason}"))

    def _spawn_fetched(self, attempt: Live) -> None:
        job = self._caught_up(attempt.name)
        if job is not None:
            self._spawn(attempt, job)
        else:
            self._loop.after(_REFUSED_S, lambda: self._spawn_fetched(attempt))

    def _find_shim(self, attempt: Live) -> None:
        """Find the shim that holds the lock; it may be too young to have written its identity.

        Or that was refused by the disk, or removed by the job. Who holds the lock longer and is no shim is
        a stray.
        """
        held, young = self._home.job(attempt.name).lock, attempt.waited_s < _INFANCY_S
        identity = traces.read_identity(attempt.paths, "shim")
        pidfd = process.open_pidfd(identity) if identity else None
        if pidfd is None and not young:
            identity = traces.find_shim(held)
            pidfd = process.open_pidfd(identity) if identity else None
        if pidfd is not None:
            attempt.shim, attempt.pidfd = identity, pidfd
            self._watch(attempt)
        elif lock.is_locked(held) and attempt.waited_s < _BIRTH_S:
            pause_s = _SOON_S if young else _HELD_LOOK_S
            attempt.waited_s += pause_s
            self._loop.after(pause_s, lambda: self._find_shim(attempt))
        else:
            self._settle(attempt)

    def _watch(self, attempt: Live) -> None:
        self._loop.on_readable(attempt.pidfd, lambda: self._shim_ended(attempt))
        if attempt.asked is not None:
            self._send(attempt)

    def _send(self, attempt: Live) -> None:
        if attempt.fetch >= 0:
            mirrors.end_fetch(attempt.fetch)
        if attempt.pidfd >= 0 and attempt.asked is not None:
            process.ask(attempt.pidfd, _SIGNALS[attempt.asked])

    def _shim_ended(self, attempt: Live) -> None:
        self._loop.forget(attempt.pidfd)
        # Ours, or that of the daemon that we were before SIGHUP; another daemon's is reaped by init.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, attempt.pidfd, os.WEXITED)
        os.close(attempt.pidfd)
        attempt.pidfd = -1
        self._settle(attempt)

    def _settle(self, attempt: Live, unseen: Ended = _UNSEEN) -> None:
        """Read the truth the shim left; where it left none, make sure first that nothing of it lives."""
        ended = read_outcome(attempt.paths)
        if ended is None and self._kill_strays(attempt):
            attempt.settling += 1
            delay_s = min(_SOON_S * attempt.settling, _STRAYS_S)
            self._loop.after(delay_s, lambda: self._settle(attempt, unseen))
            return
        if ended is None and not unseen.rebooted and vacancy.had_gpus(attempt.paths):
            self._await_gpus(attempt, unseen)
        else:
            self._finish(attempt, ended or unseen)

    def _await_gpus(self, attempt: Live, unseen: Ended) -> None:
        """Take the attempt for ended once no GPU has memory of it, or that takes too long."""
        worker = traces.read_identity(attempt.paths, "worker")
        gone = attempt.gone | ({worker.pid} if worker is not None else set())
        try:
            vacancy.await_vacated(
                self._home,
                self._loop,
                sorted(gone),
                lambda warning: self._finish(attempt, replace(unseen, warning=warning)),
            )
        except OSError as error:
            log.error("%s: its GPU memory cannot be looked after: %s", attempt.name, error)
            self._finish(attempt, unseen)

    def _kill_strays(self, attempt: Live) -> bool:
        strays, left = self._kill_left(attempt.name)
        attempt.gone.update(strays)
        if attempt.settling == _STRAYS_LOOKS:
            pids = ", ".join(map(str, strays)) or "who holds its lock"
            attempt.stray = f"killed, and not dead: pid {pids}; the job keeps its place until it is"
        return left

    def clear(self, name: str) -> bool:
        """SIGKILL what a job without a shim has left; tell whether nothing is left."""
        return not self._kill_left(name)[1]

    def _kill_left(self, name: str) -> tuple[list[int], bool]:
        # Who was started after the first look's list was made, by one that had ended when it was its turn,
        # is found by a second.
        strays = self._strays(name) or self._strays(name)
        for pid in strays:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        gone = self.groups is None or self.groups.clear(name)
        return strays, bool(strays) or not gone or lock.is_locked(self._home.job(name).lock)

    def _strays(self, name: str) -> list[int]:
        """List the job's processes, but for those of the spare that waits: it belongs to the next attempt."""
        marked = process.carrying(("RUNNER_STATE", str(self._home.job(name).dir)))
        return [pid for pid in marked if not self.spares.has(name, pid)]

    def _finish(self, attempt: Live, ended: Ended | StartFailed) -> None:
        del self.live[attempt.name]
        if isinstance(ended, Ended) and attempt.watch is not None:
            ended = replace(ended, pace=attempt.watch.pulse.pace)
        self._on_end(attempt.name, ended)

    def _files(self, job: Job) -> AttemptPaths:
        return self._home.job(job.name).attempt(job.attempt)
