"""The shim: the small parent of one attempt. It outlives the supervisor and tells the truth afterwards.

Run as `python -I -S shim.py ATTEMPT_DIR` with the job's lock inherited as descriptor 3. It needs nothing but
the standard library and a few files beside it, so that it is up within milliseconds.

- The worker runs in a session of its own, with stdout and stderr on `log`, and dies with the shim
  (PR_SET_PDEATHSIG). The shim is a subreaper: whatever the worker's tree leaves behind becomes its child.
- SIGTERM: asks the worker to stop; after the grace the tree is killed. SIGUSR1: kills the tree. SIGUSR2: the
  attempt hangs: `evidence.py` writes what it is doing, then as SIGTERM, shortly.
- Where launch.json names a keeper, it is started beside the worker, whose snapshots it writes to the disk;
  the memory that they lie in is the shim's. When the worker is gone, it has a moment for what is left there.
- Where launch.json names a control group, the worker's tree is in it (`attemptgroup`); the log is capped
  (`logcap`). Secrets of the job's `env_file` go from there into the worker's environment, and nowhere else.
- When the worker has ended, every process that is left of the tree is killed and reaped; where it did not end
  well and there are GPUs, a moment is waited for their memory; the outcome is written durably (again and
  again while the disk refuses), and only then the lock is let go.
- What SIGKILL does not end, as a process in uninterruptible sleep, is waited for as long as it takes, and
  told in `stuck.json` meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    import resource
    from collections.abc import Callable

    from runner.supervisor import attemptgroup, birth, jsonfile, lineage, logcap
else:  # by their place: the package's own imports would take longer than all else
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path += [HERE, os.path.join(os.path.dirname(HERE), "settings")]
    import attemptgroup
    import birth
    import jsonfile
    import lineage
    import logcap

LOCK_FD = 3
PR_SET_CHILD_SUBREAPER = 36
#: Seconds for evidence at most, and from SIGTERM to SIGKILL after a hang.
EVIDENCE_S = 10.0
HANG_GRACE_S = 5.0
#: What has not died so long after SIGKILL is told of.
STUCK_S = 3.0
#: For the memory of GPUs to become free.
GPU_S = 30.0
#: Between two looks at the limits of the control group.
GROUP_LOOK_S = 1.0
#: For the keeper to write what is left in memory: in any case, and for each byte of it.
KEEPER_S = 30.0
KEEPER_BYTES_PER_S = 10e6


def main() -> None:
    """Run one attempt to its end."""
    run(sys.argv[1], become_subreaper(), watch_signals(), *[birth.start_process] * 2)


def become_subreaper() -> ctypes.CDLL:
    """Let the orphans among this process's descendants become its children; return the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return libc


def run(
    folder: str, libc: ctypes.CDLL, wake: int, start: Callable[..., int], beside: Callable[..., int]
) -> None:
    """Run the attempt of this folder to its end; `start` and `beside` start worker and keeper."""
    with open(os.path.join(folder, "launch.json"), "rb") as file:
        launch = json.load(file)
    if fcntl.fcntl(LOCK_FD, fcntl.F_GETFD) >= 0:
        os.set_inheritable(LOCK_FD, False)
    began = time.monotonic()
    group = attemptgroup.Group(launch.get("cgroup"))
    error: OSError | None = None
    keeper, handed = birth.start_keeper(launch, folder, libc, birth.inherited(launch), beside)
    attempt = Attempt(keeper, folder, float(launch["grace_s"]), *handed[1:])
    attempt.watch(group, logcap.CappedLog(os.path.join(folder, "log"), launch.get("log_bytes"), libc))
    attempt.sees_gpus = launch["env"].get("CUDA_VISIBLE_DEVICES") != ""
    try:
        attempt.tell_identity()  # before there is a worker: else a successor could take it for never started
        birth.make_group(group)
        how = launch["argv"], birth.with_secrets(launch), folder, libc, handed
        attempt.worker = start(*how, lambda: birth.confine(launch, group, libc))
        attempt.members.add(attempt.worker)
        attempt.take_in()
    except OSError as failure:
        error = failure
    for fd in handed[:1]:
        os.close(fd)  # so that the keeper notices when the worker has ended
    if attempt.worker:
        attempt.tell_identity()
    attempt.supervise(wake)
    if not attempt.kept:  # the keeper was killed, or hung: another one, and nobody at the other end
        attempt.keeper, handed = birth.start_keeper(launch, folder, libc, attempt.memory)
        for fd in handed[:1]:
            os.close(fd)
        attempt.await_keeper(wake)
    jsonfile.write_outcome(folder, attempt.outcome(error, time.monotonic() - began))


class Attempt:
    """The worker and all that descends from it."""

    def __init__(self, keeper: int, folder: str, grace_s: float, memory: int = -1) -> None:
        self.worker = 0  # not started, or it could not be
        self.keeper = keeper  # 0: there is none, or it has ended
        self.memory = memory  # descriptor of what the keeper's snapshots lie in; -1: there is none
        self.kept = not keeper  # nothing is left in memory
        self.sees_gpus = True
        self.warning = ""  # what to know besides how it ended
        self.beside = 0  # a program of ours that looks at the tree
        self.members: set[int] = set()  # what is known to have been of the tree
        self.stuck = ""  # what has not died, in words
        self.folder = folder
        self.grace_s = grace_s
        self.status: int | None = None
        self.asked: str | None = None  # what the supervisor asked for: "stop", "kill", "hang"
        self.killed = False  # we sent SIGKILL
        self.strays: set[int] = set()
        self.group = attemptgroup.Group(None)
        self.log: logcap.CappedLog | None = None
        self.usage: resource.struct_rusage | None = None
        self.oom_kills = lineage.OomKills()
        self.kills_lately = False  # as the worker ended
        self.outside = False  # the worker could not be put into its control group
        self.deadlines: dict[str, float] = {}  # what to do -> when (monotonic)

    def watch(self, group: attemptgroup.Group, log: logcap.CappedLog) -> None:
        """Look after the attempt's control group and its log from now on."""
        self.group, self.log = group, log
        self.deadlines.update(look=0.0, look_at_group=0.0)

    def look(self) -> None:
        """Keep the log below its cap; see what the kernel kills for memory."""
        self.oom_kills.look(time.monotonic())
        if self.log is not None:
            self.deadlines["look"] = time.monotonic() + self.log.look()

    def look_at_group(self) -> None:
        """Keep the limits in force; the memory of snapshots comes on top."""
        if self.group.path is not None:
            self.group.limit(self.held_bytes())
            self.deadlines["look_at_group"] = time.monotonic() + GROUP_LOOK_S

    def take_in(self) -> None:
        """Have the worker in its control group; again a second later, while that is refused."""
        try:
            self.group.take_in(self.worker)
            self.outside = False
        except OSError as failure:
            if not self.outside:
                sys.stderr.write(
                    f"shim: the worker is in no control group, and has no limits yet: {failure}\n"
                )
            self.outside = True
            self.deadlines["take_in"] = time.monotonic() + GROUP_LOOK_S

    def tell_identity(self) -> None:
        """Write who shim and worker are; what the disk refuses of a worker, again a second later."""
        about = {
            "version": 1,
            "shim": lineage.identity(os.getpid()),
            "worker": lineage.identity(self.worker) if self.worker else None,
            "keeper": lineage.identity(self.keeper) if self.keeper else None,
            "memory_fd": self.memory,
        }
        try:
            jsonfile.write_json(os.path.join(self.folder, "shim.json"), about)
        except OSError:
            if not self.worker:
                raise
            self.deadlines["tell_identity"] = time.monotonic() + jsonfile.RETRY_S

    def supervise(self, wake: int) -> None:
        """Wait for the worker's end, doing what is asked; then clear away its tree."""
        while self.worker and self.status is None:
            timeout = None
            if self.deadlines:
                timeout = max(0.0, min(self.deadlines.values()) - time.monotonic())
            self.turn(wake, timeout)
        for deed in ("kill", "stop_hung"):
            self.deadlines.pop(deed, None)
        self.clear_tree(wake)
        self.await_gpu(wake)
        self.close_group()
        self.await_keeper(wake)

    def await_keeper(self, wake: int) -> None:
        """Give the keeper its time for what is left in memory."""
        self.deadlines["kill_keeper"] = time.monotonic() + self.keeper_s()
        while self.keeper:
            self.turn(wake, 1.0)

    def turn(self, wake: int, timeout: float | None) -> None:
        """Wait for a signal; do what is asked and what is due, and reap."""
        if select.select([wake], [], [], timeout)[0]:
            for number in os.read(wake, 512):
                self.on_signal(number)
        for deed in [d for d, when in self.deadlines.items() if when <= time.monotonic()]:
            del self.deadlines[deed]
            getattr(self, deed)()
        self.reap()

    def on_signal(self, number: int) -> None:
        """Do what the supervisor asks."""
        self.reap()  # who is a zombie by now was not asked
        if self.status is not None:
            return  # it has ended by itself
        if number == signal.SIGTERM:
            self.asked = self.asked or "stop"
            self.stop(self.grace_s)
        elif number == signal.SIGUSR1:
            self.asked = "kill"
            self.kill()
        elif number == signal.SIGUSR2:
            self.asked = "hang"
            if not self.beside:
                self.members.update(lineage.descendants())
                self.beside = birth.start_beside("evidence.py", self.folder, self.worker)
                self.deadlines["stop_hung"] = time.monotonic() + EVIDENCE_S * (self.beside > 0)

    def stop(self, grace_s: float) -> None:
        """Ask the worker to end, and kill its tree after the grace."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        self.deadlines.setdefault("kill", time.monotonic() + grace_s)

    def stop_hung(self) -> None:
        """End a hung worker: its evidence is taken."""
        self.end_beside()
        self.stop(min(HANG_GRACE_S, self.grace_s))

    def kill(self) -> None:
        """SIGKILL the worker; the rest of the tree follows when it has been reaped."""
        self.killed = self.killed or self.status is None
        self.send(signal.SIGKILL)
        self.deadlines.setdefault("tell_stuck", time.monotonic() + STUCK_S)

    def keeper_s(self) -> float:
        """Return how many seconds the keeper has to write what is left in memory, at most."""
        return KEEPER_S + self.held_bytes() / KEEPER_BYTES_PER_S

    def held_bytes(self) -> int:
        """Return how much memory the snapshots take."""
        return os.fstat(self.memory).st_blocks * 512 if self.memory >= 0 else 0

    def kill_keeper(self) -> None:
        """End the keeper: it has had its time."""
        if self.keeper:
            os.kill(self.keeper, signal.SIGKILL)

    def send(self, number: int) -> None:
        """Signal the worker, and nobody else: it owns its children."""
        if self.worker and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker, number)

    def reap(self) -> None:
        """Collect every child that has ended; the worker's status is kept."""
        while True:
            try:
                pid, status, self_usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.keeper:
                self.keeper, self.kept = 0, status == 0
            if pid == self.beside:
                self.beside = 0
                if "stop_hung" in self.deadlines:
                    self.deadlines["stop_hung"] = 0.0  # all evidence is there
            if pid == self.worker:
                self.status, self.usage = status, self_usage
                self.kills_lately = self.oom_kills.any_lately()

    def clear_tree(self, wake: int) -> None:
        """Kill what is left of the tree until nothing is: orphans are ours, as we are their subreaper."""
        self.end_beside()
        self.strays.update(self.group.kill())
        self.deadlines.setdefault("tell_stuck", time.monotonic() + STUCK_S)
        while left := self.left():
            self.members.update(left)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.strays.update({pid} - {self.beside})
            self.turn(wake, 0.05)
        self.reap()
        del self.deadlines["tell_stuck"]
        if self.stuck:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, "stuck.json"))

    def left(self) -> list[int]:
        """List what is left of the tree; a worker that was killed is, until it has been reaped."""
        left = [pid for pid in lineage.descendants() if pid not in (self.keeper, self.worker)]
        return [self.worker, *left] if self.worker and self.status is None else left

    def tell_stuck(self) -> None:
        """Write what SIGKILL has not ended, and where in the kernel that is; again when it changes."""
        stuck = "; ".join(map(lineage.place_of, self.left()))
        if stuck and stuck != self.stuck:
            with contextlib.suppress(OSError):
                text = f"killed, and not dead: {stuck}; the job keeps its place until it is"
                jsonfile.write_json(os.path.join(self.folder, "stuck.json"), {"version": 1, "text": text})
                self.stuck = stuck
        self.deadlines["tell_stuck"] = time.monotonic() + STUCK_S

    def await_gpu(self, wake: int) -> None:
        """Where the worker did not end well, wait a while until no GPU has memory of its tree."""
        if not self.worker or self.status == 0 or not self.sees_gpus or not birth.has_program("nvidia-smi"):
            return
        self.beside = birth.start_beside("vacated.py", *sorted(self.members))
        self.deadlines["end_beside"] = time.monotonic() + GPU_S
        while self.beside and "end_beside" in self.deadlines:
            self.turn(wake, 1.0)
        if self.deadlines.pop("end_beside", None) is None:  # the outcome does not wait for it
            self.warning = f"GPU memory of the attempt is not free {GPU_S:g} s after its end"
            self.end_beside()

    def end_beside(self) -> None:
        """End a program of ours that looks at the tree."""
        if self.beside:
            os.kill(self.beside, signal.SIGKILL)

    def close_group(self) -> None:
        """Note what the control group tells, and remove it: nothing of the tree lives."""
        for deed in ("look_at_group", "take_in"):
            self.deadlines.pop(deed, None)
        self.look()
        self.group.account()
        self.group.remove()

    def starved(self) -> bool:
        """Tell whether the kernel killed for memory: in the attempt's group, else anywhere of late."""
        kills = self.group.oom_kills
        return self.kills_lately if kills is None else kills > 0

    def outcome(self, error: OSError | None, duration_s: float) -> dict[str, object]:
        """Say how it ended, as outcome.json holds it."""
        usage: dict[str, float] = {}
        ended = None if self.status is None else os.waitstatus_to_exitcode(self.status)
        code, number = (None, -ended) if ended is not None and ended < 0 else (ended, None)
        if self.usage is not None:
            usage = {
                "user_s": self.usage.ru_utime,
                "system_s": self.usage.ru_stime,
                "max_rss_bytes": self.usage.ru_maxrss * 1024,
            }
        return {
            "version": 1,
            "exit_code": code,
            "signal": signal.Signals(number).name if number in list(signal.Signals) else number,
            "asked": self.asked,
            "killed": self.killed,
            "kernel_oom": (number == 9 or code == 128 + 9) and not self.killed and self.starved(),
            "memory_peak_bytes": self.group.peak_bytes,
            "memory_limit_bytes": self.group.memory_bytes,
            "strays_killed": len(self.strays),
            "error": str(error or ""),
            "errno": error.errno if error else None,
            "warning": self.warning,
            "duration_s": duration_s,
            "ended_at": time.time(),
            "ended_s": time.monotonic(),
            "rusage": usage,
        }


def watch_signals() -> int:
    """Route signals into a pipe; return its reading end."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.set_wakeup_fd(write)
    # The supervisor starts us with these blocked, so that none is lost before this point.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read


if __name__ == "__main__":
    # The working directory may be removed under us, and we must not keep a file system busy.
    os.chdir("/")
    main()
    os._exit(0)  # the outcome is on disk: tearing the interpreter down would only delay the successor
