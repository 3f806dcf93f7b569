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
import socket
import sys
import time

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    import resource
    from collections.abc import Callable
    from typing import Any

    from runner.settings import envfile
    from runner.supervisor import attemptgroup, landlock, logcap
else:  # by their place: the package's own imports would take longer than all else
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path += [HERE, os.path.join(os.path.dirname(HERE), "settings")]
    import attemptgroup
    import envfile
    import landlock
    import logcap

LOCK_FD = 3
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
#: Seconds for evidence at most, and from SIGTERM to SIGKILL after a hang.
EVIDENCE_S = 10.0
HANG_GRACE_S = 5.0
#: What has not died so long after SIGKILL is told of.
STUCK_S = 3.0
#: For the memory of GPUs to become free.
GPU_S = 30.0
OUTCOME_RETRY_S = 1.0
#: Between two looks at the limits of the control group.
GROUP_LOOK_S = 1.0
#: For the keeper to write what is left in memory: in any case, and for each byte of it.
KEEPER_S = 30.0
KEEPER_BYTES_PER_S = 10e6
#: How much it stands back behind the training.
KEEPER_NICE = 5
#: In the environment of worker and keeper: the descriptors that they are handed.
KEEPER = "RUNNER_KEEPER"
#: The first bytes of the memory for snapshots (see `storage.slots`), and its size at first.
MEMORY_MAGIC, MEMORY_SIZE = b"runner snapshots 1\n", 4096


def main() -> None:
    """Run one attempt to its end."""
    run(sys.argv[1], become_subreaper(), watch_signals(), start_process, start_process)


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
    error = ""
    keeper, handed = start_keeper(launch, folder, libc, inherited(launch), beside)
    attempt = Attempt(keeper, folder, float(launch["grace_s"]), *handed[1:])
    attempt.watch(group, logcap.CappedLog(os.path.join(folder, "log"), launch.get("log_bytes"), libc))
    attempt.sees_gpus = launch["env"].get("CUDA_VISIBLE_DEVICES") != ""
    attempt.tell_identity()  # before there is a worker: else a successor could take it for never started
    try:
        make_group(group)
        how = launch["argv"], with_secrets(launch), folder, libc, handed
        attempt.worker = start(*how, lambda: confine(launch, group, libc))
        group.take_in(attempt.worker)
        attempt.members.add(attempt.worker)
    except OSError as failure:
        error = str(failure)
    for fd in handed[:1]:
        os.close(fd)  # so that the keeper notices when the worker has ended
    attempt.tell_identity()
    attempt.supervise(wake)
    if not attempt.kept:  # the keeper was killed, or hung: another one, and nobody at the other end
        attempt.keeper, handed = start_keeper(launch, folder, libc, attempt.memory)
        for fd in handed[:1]:
            os.close(fd)
        attempt.await_keeper(wake)
    write_outcome(folder, attempt.outcome(error, time.monotonic() - began))


class Attempt:
    """The worker and all that descends from it."""

    def __init__(self, keeper: int, folder: str, grace_s: float, memory: int = -1) -> None:
        self.worker = 0  # not started, or it could not be
        self.keeper = keeper  # 0: there is none, or it has ended
        self.memory = memory  # descriptor of what the keeper's snapshots lie in; -1: there is none
        self.kept = not keeper  # nothing is left in memory
        self.sees_gpus = True
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
        self.oom_kills = oom_kills()
        self.deadlines: dict[str, float] = {}  # what to do -> when (monotonic)

    def watch(self, group: attemptgroup.Group, log: logcap.CappedLog) -> None:
        """Look after the attempt's control group and its log from now on."""
        self.group, self.log = group, log
        self.deadlines.update(look=0.0, look_at_group=0.0)

    def look(self) -> None:
        """Keep the log below its cap."""
        if self.log is not None:
            self.deadlines["look"] = time.monotonic() + self.log.look()

    def look_at_group(self) -> None:
        """Keep the limits in force; the memory of snapshots comes on top."""
        if self.group.path is not None:
            self.group.limit(self.held_bytes())
            self.deadlines["look_at_group"] = time.monotonic() + GROUP_LOOK_S

    def tell_identity(self) -> None:
        """Write who shim and worker are; again a second later, for as long as the disk refuses."""
        about = {
            "version": 1,
            "shim": identity(os.getpid()),
            "worker": identity(self.worker) if self.worker else None,
            "keeper": identity(self.keeper) if self.keeper else None,
            "memory_fd": self.memory,
        }
        try:
            write_json(os.path.join(self.folder, "shim.json"), about)
        except OSError:
            self.deadlines["tell_identity"] = time.monotonic() + OUTCOME_RETRY_S

    def supervise(self, wake: int) -> None:
        """Wait for the worker's end, doing what is asked; then clear away its tree."""
        while self.worker and self.status is None:
            timeout = None
            if self.deadlines:
                timeout = max(0.0, min(self.deadlines.values()) - time.monotonic())
            self.turn(wake, timeout)
        self.deadlines.pop("kill", None)
        self.deadlines.pop("stop_hung", None)
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
                self.members.update(descendants())
                self.beside = start_beside("evidence.py", self.folder, self.worker)
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
                self.status = status
                self.usage = self_usage

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
        left = [pid for pid in descendants() if pid not in (self.keeper, self.worker)]
        return [self.worker, *left] if self.worker and self.status is None else left

    def tell_stuck(self) -> None:
        """Write what SIGKILL has not ended, and where in the kernel that is; again when it changes."""
        stuck = "; ".join(map(place_of, self.left()))
        if stuck and stuck != self.stuck:
            with contextlib.suppress(OSError):
                text = f"killed, and not dead: {stuck}; the job keeps its place until it is"
                write_json(os.path.join(self.folder, "stuck.json"), {"version": 1, "text": text})
                self.stuck = stuck
        self.deadlines["tell_stuck"] = time.monotonic() + STUCK_S

    def await_gpu(self, wake: int) -> None:
        """Where the worker did not end well, wait a while until no GPU has memory of its tree."""
        places = (f"{path}/nvidia-smi" for path in os.environ.get("PATH", "").split(":"))
        here = self.sees_gpus and any(os.access(place, os.X_OK) for place in places)
        if not self.worker or self.status == 0 or not here:
            return
        self.beside = start_beside("vacated.py", *sorted(self.members))
        self.deadlines["end_beside"] = time.monotonic() + GPU_S
        while self.beside and "end_beside" in self.deadlines:
            self.turn(wake, 1.0)
        if self.beside:  # it is left to end by itself: the outcome does not wait for it
            sys.stderr.write(f"shim: GPU memory of the attempt is not free after {GPU_S:g} s\n")
            self.end_beside()

    def end_beside(self) -> None:
        """End a program of ours that looks at the tree."""
        if self.beside:
            os.kill(self.beside, signal.SIGKILL)

    def close_group(self) -> None:
        """Note what the control group tells, and remove it: nothing of the tree lives."""
        self.deadlines.pop("look_at_group", None)
        self.look()
        self.group.account()
        self.group.remove()

    def starved(self) -> bool:
        """Tell whether the kernel killed for memory: in the attempt's group, else anywhere."""
        if self.group.oom_kills is not None:
            return self.group.oom_kills > 0
        return oom_kills() > self.oom_kills

    def outcome(self, error: str, duration_s: float) -> dict[str, object]:
        """Say how it ended, as outcome.json holds it."""
        code = number = None
        usage: dict[str, float] = {}
        if self.status is not None:
            if os.WIFSIGNALED(self.status):
                number = os.WTERMSIG(self.status)
            else:
                code = os.WEXITSTATUS(self.status)
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
            "kernel_oom": number == signal.SIGKILL and not self.killed and self.starved(),
            "memory_peak_bytes": self.group.peak_bytes,
            "memory_limit_bytes": self.group.memory_bytes,
            "strays_killed": len(self.strays),
            "error": error,
            "duration_s": duration_s,
            "ended_at": time.time(),
            "rusage": usage,
        }


def make_group(group: attemptgroup.Group) -> None:
    """Make the attempt's control group; where that cannot be, the log says so."""
    try:
        group.make()
    except OSError as failure:
        sys.stderr.write(f"shim: there is no control group: {failure}\n")


def with_secrets(launch: dict[str, Any]) -> dict[str, Any]:
    """Return what to launch the worker by, with the job's secrets in its environment; [env] goes before them.

    Raises:
        OSError: the file with the secrets cannot be taken.
    """
    shown = launch.get("env_file")
    if not shown:
        return launch
    try:
        secrets = envfile.read(os.path.join(launch["cwd"], shown), shown)
    except envfile.SecretsError as failure:
        raise OSError(f"env_file {failure}") from None
    return {**launch, "env": {**secrets, **launch["env"]}}


def confine(launch: dict[str, Any], group: attemptgroup.Group, libc: ctypes.CDLL) -> None:
    """Put this process, which becomes the worker, where it belongs, and keep it from writing elsewhere.

    Raises:
        OSError: that could not be done; then the worker is not started.
    """
    group.enter()
    if launch.get("write") is not None:
        landlock.write_only_below(landlock.usual(launch["state"], launch["cwd"]) + launch["write"], libc)


def inherited(launch: dict[str, Any]) -> int:
    """Return the descriptor of the memory that the attempt before has left; -1 where there is none."""
    number = int(launch.get("memory_fd") or -1)
    try:
        os.set_inheritable(number, False)
        return number if os.pread(number, len(MEMORY_MAGIC), 0) == MEMORY_MAGIC else -1
    except OSError:
        return -1


def start_keeper(
    launch: dict[str, Any],
    folder: str,
    libc: ctypes.CDLL,
    memory: int = -1,
    start: Callable[..., int] | None = None,
) -> tuple[int, tuple[int, ...]]:
    """Start the keeper, where there is to be one; return its pid, and what the worker is handed.

    That is the descriptors of a socket to the keeper and of the memory for snapshots, which is made where
    there is none. Where nobody takes the socket, the keeper writes what is left in memory, and ends.
    """
    if not launch.get("keeper"):
        return 0, ()
    try:
        if memory < 0:
            memory = os.memfd_create("runner-snapshots")
            os.truncate(memory, MEMORY_SIZE)
            os.pwrite(memory, MEMORY_MAGIC, 0)
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with mine:
            handed = (mine.fileno(), memory)
            how = launch["keeper"], launch, folder, libc, handed, stand_back
            pid = start(*how) if start is not None else start_process(*how)
    except OSError as failure:
        sys.stderr.write(f"shim: there is no keeper: {failure}\n")
        return 0, ()
    return pid, (other.detach(), memory)


def stand_back() -> None:
    """Be a keeper, which comes after the training."""
    os.nice(KEEPER_NICE)


def start_process(
    argv: list[str],
    launch: dict[str, Any],
    folder: str,
    libc: ctypes.CDLL,
    handed: tuple[int, ...],
    settle: Callable[[], object],
) -> int:
    """Start the worker or the keeper in a session of its own, with these descriptors; return its pid.

    The new process calls `settle` before it becomes the program.

    Raises:
        OSError: its program or the job's folder is not there.
    """
    environ = {**os.environ, **launch["env"]}
    if handed:
        environ[KEEPER] = ",".join(str(fd) for fd in handed)
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    report_read, report_write = os.pipe()
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != shim:
                os._exit(1)
            forget_signals()
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, number in ((null, 0), (log, 1), (log, 2)):
                os.dup2(fd, number)
            for fd in handed:
                os.set_inheritable(fd, True)
            settle()
            os.chdir(launch["cwd"])
            os.execvpe(argv[0], argv, environ)
        except BaseException as failure:  # noqa: BLE001 - the child reports whatever stops it, and ends
            os.write(report_write, f"{argv[0]}: {failure}".encode(errors="replace"))
        os._exit(127)
    os.close(report_write)
    os.close(log)
    problem = b""
    while chunk := os.read(report_read, 4096):
        problem += chunk
    os.close(report_read)
    if problem:
        os.waitpid(pid, 0)
        raise OSError(problem.decode(errors="replace"))
    return pid


def start_beside(name: str, *arguments: object) -> int:
    """Start a program of ours that looks at what may block; return its pid, 0 where that fails."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    argv = [sys.executable, "-I", "-S", program, *map(str, arguments)]
    defaults = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE]
    try:
        return os.posix_spawn(sys.executable, argv, os.environ, setsid=True, setsigdef=defaults)
    except OSError as failure:
        sys.stderr.write(f"shim: {name} could not be started: {failure}\n")
        return 0


def forget_signals() -> None:
    """Give a child back what any new process has."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def watch_signals() -> int:
    """Route signals into a pipe; return its reading end."""
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.set_wakeup_fd(write)
    # The supervisor starts us with these blocked, so that none is lost before this point.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read


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


def oom_kills() -> int:
    """Return how many processes the kernel has killed for memory since boot (proc(5), vmstat)."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def identity(pid: int) -> dict[str, object]:
    """Return boot id, pid and start time of a process (see supervisor.process.Identity)."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:  # a process's name may be any bytes
        start = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"boot": file.read().strip(), "pid": pid, "start": start}


def write_outcome(folder: str, outcome: dict[str, object]) -> None:
    """Write outcome.json durably, trying again for as long as the disk refuses."""
    while True:
        try:
            write_json(os.path.join(folder, "outcome.json"), outcome, durably=True)
            return
        except OSError:
            if not os.path.isdir(folder):
                return  # the job's state was removed under us: nobody will ask
            time.sleep(OUTCOME_RETRY_S)


def write_json(path: str, value: dict[str, object], durably: bool = False) -> None:
    """Replace a JSON file atomically."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        data = (json.dumps(value) + "\n").encode()
        while data:
            data = data[os.write(fd, data) :]
        if durably:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durably:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
            os.fstat(folder)  # as in storage.durable: on an xfs that has shut down fsync returns 0
        finally:
            os.close(folder)


if __name__ == "__main__":
    # The working directory may be removed under us, and we must not keep a file system busy.
    os.chdir("/")
    main()
    os._exit(0)  # the outcome is on disk: tearing the interpreter down would only delay the successor
