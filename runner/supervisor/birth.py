"""How the processes of an attempt come to life; standard library only, for the shim.

The worker and the keeper each have a session of their own and the log for what they say, die with the shim
(PR_SET_PDEATHSIG), and what keeps them from starting is told by the process that could not become them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable
    from typing import Any

    from runner.settings import envfile
    from runner.supervisor import attemptgroup, landlock
else:  # by their place, which the shim has named
    import envfile
    import landlock

PR_SET_PDEATHSIG = 1
#: How much the keeper stands back behind the training.
KEEPER_NICE = 5
#: In the environment of worker and keeper: the descriptors that they are handed.
KEEPER = "RUNNER_KEEPER"
#: The first bytes of the memory for snapshots (see `storage.slots`), and its size at first.
MEMORY_MAGIC, MEMORY_SIZE = b"runner snapshots 1\n", 4096


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
    keep_in(launch, libc)


def keep_in(launch: dict[str, Any], libc: ctypes.CDLL) -> None:
    """Keep this process, where the job is isolated, from writing but where the job may.

    Raises:
        OSError: that could not be done.
    """
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
    there is none. Where nobody takes the socket, the keeper writes what is left in memory, and ends. It does
    what the worker asks, with the job's environment: it may write no more than that.
    """

    def settle() -> None:
        stand_back()
        keep_in(launch, libc)

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
            how = launch["keeper"], launch, folder, libc, handed, settle
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
        OSError: its program or the job's folder is not there, or the machine refuses, as its errno tells.
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
            os.write(report_write, report(failure, argv[0]))
        os._exit(127)
    os.close(report_write)
    os.close(log)
    problem = b""
    while chunk := os.read(report_read, 4096):
        problem += chunk
    os.close(report_read)
    if problem:
        os.waitpid(pid, 0)
        raise told(problem)
    return pid


def has_program(name: str) -> bool:
    """Tell whether a program is found in PATH."""
    return any(os.access(f"{path}/{name}", os.X_OK) for path in os.environ.get("PATH", "").split(":"))


def report(failure: BaseException, program: str) -> bytes:
    """Say what keeps this process from becoming a program, for `told`."""
    return f"{getattr(failure, 'errno', None) or 0} {program}: {failure}".encode(errors="replace")


def told(problem: bytes) -> OSError:
    """Return what a process has reported that could not become its program: an errno, 0 for none, and why."""
    number, _, text = problem.decode(errors="replace").partition(" ")
    failure = OSError(text)
    failure.errno = int(number) or None
    return failure


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
