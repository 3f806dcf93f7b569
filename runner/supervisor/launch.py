"""From a record to a running shim: what the worker is started with, and how."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.core.job import Job
from runner.errors import UnreadableRecordError
from runner.storage import durable, lock, records
from runner.storage.layout import START_FROM, AttemptPaths, Home, attempt_numbers
from runner.supervisor.broom import sweep
from runner.supervisor.cgroups import VARIABLE, Groups

if TYPE_CHECKING:
    from runner.supervisor.spare import Spare

# Resolved: where an upgrade swaps a link to the installation, a worker stays with the files it started with.
_SHIM = Path(__file__).resolve().with_name("shim.py")
_BOOTSTRAP = _SHIM.parent.parent / "training" / "bootstrap.py"
_KEEPER = _SHIM.parent.parent / "training" / "keeper.py"
_PYTHON = str(Path(sys.executable).parent.resolve() / Path(sys.executable).name)
#: The logs of all attempts take at most so many caps of one.
_LOGS = 4
_SHIM_LOCK_FD, _SHIM_MEMORY_FD = 3, 4
#: What systemd says to us is not for the workers.
_OURS_ALONE = {
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    VARIABLE,
}


class StillLockedError(Exception):
    """Something of an earlier attempt still holds the job's lock."""


def launch_plan(home: Home, job: Job) -> dict[str, Any]:
    """Return the content of launch.json for the job's newest attempt (see ARCHITECTURE.md)."""
    spec, paths, folder = job.spec, home.job(job.name), home.folder(job.name)
    start_from = folder / START_FROM
    env = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": str(job.seed % 2**32),
        "TF_NUM_INTRAOP_THREADS": str(job.threads),
        **_gpu_env(job),
        **spec.env,
        "RUNNER_HOME": str(home.root),
        "RUNNER_JOB": job.name,
        "RUNNER_ATTEMPT": str(job.attempt),
        "RUNNER_STATE": str(paths.dir),
        "RUNNER_RESUME": "1" if job.checkpoint else "0",
    }
    argv = [*spec.command] if spec.command else [interpreter(spec.python, folder), str(_BOOTSTRAP)]
    return {
        "version": 1,
        "job": job.name,
        "attempt": job.attempt,
        "state": str(paths.dir),
        "cwd": str(folder),
        "argv": [*argv, *spec.args] if spec.command else argv,
        "env": env,
        "grace_s": spec.limits.grace_s,
        "seed": job.seed,
        "threads": job.threads,
        "entry": spec.entry if not spec.command else None,
        "args": list(spec.args),
        "checkpoint": asdict(spec.checkpoint),
        "past": asdict(job.past),
        "memory_bytes": spec.limits.memory_bytes,
        "nan": {"mode": spec.limits.nan, "loss_max": spec.limits.loss_max},
        "retreat": asdict(job.retreat) if job.retreat is not None else None,
        "log_bytes": spec.limits.log_bytes,
        "env_file": spec.env_file,  # the path; what is in it never leaves the shim and the worker
        "write": spec.isolation.write,
        "keeper": [_PYTHON, "-I", str(_KEEPER)] if not spec.command else None,
        "from": str(start_from) if start_from.exists() else None,
        "spare": spec.restart.spare.value,
    }


def environment_of(paths: AttemptPaths) -> dict[str, str]:
    """Return what an attempt's launch.json adds to the environment; nothing where it cannot be read."""
    try:
        env = records.load_json(paths.launch).get("env")
    except (OSError, UnreadableRecordError):
        env = None
    return {k: v for k, v in env.items() if isinstance(v, str)} if isinstance(env, dict) else {}


def _gpu_env(job: Job) -> dict[str, str]:
    """Return what lets the attempt see no other GPUs than its own; nothing where none are given out to it."""
    gpus = job.current.gpus if job.current else None
    if gpus is None:
        return {}
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    # By default TensorFlow takes all of a device's memory: the others on it would find none.
    return shown | ({"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if 0 < job.spec.resources.gpus < 1 else {})


def interpreter(python: str, folder: Path) -> str:
    """Choose the job's interpreter: `auto` is its own virtual environment's, else the runner's."""
    if python != "auto":
        return str(folder / python) if "/" in python else python
    own = folder / ".venv" / "bin" / "python"
    return str(own) if own.exists() else _PYTHON


def start_python(home: Home, argv: list[str], log: IO[bytes] | None = None, **environ: str) -> int:
    """Start a program of ours that nobody waits for, in a session of its own; return its pid.

    Args:
        home: what it works on.
        argv: the arguments of Python.
        log: for stdout and stderr; else stderr is ours.
        environ: to be added to the environment.

    Raises:
        OSError: no process could be made.
    """
    outputs = [] if log is None else [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
    return os.posix_spawn(
        _PYTHON,
        [_PYTHON, "-P", *argv],
        {**_environ(), "RUNNER_HOME": str(home.root), **environ},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            *outputs,
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
    )


def trim_logs(attempts: Path, cap_bytes: int | None) -> None:
    """Remove the oldest logs where those of all attempts take more than a few caps together."""
    left = None if cap_bytes is None else _LOGS * cap_bytes
    for number in reversed(attempt_numbers(attempts)):
        log = AttemptPaths(attempts / f"{number:04d}").log
        with contextlib.suppress(OSError):
            if left is not None and (left := left - log.stat().st_blocks * 512) < 0:
                log.unlink()


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OURS_ALONE}


def start_shim(
    home: Home,
    job: Job,
    memory_fd: int | None = None,
    groups: Groups | None = None,
    spare: Spare | None = None,
) -> int:
    """Start the shim of the job's newest attempt; return its pid.

    Args:
        home: the job's.
        job: its record.
        memory_fd: of the memory that the attempt before had for its snapshots, where it is still held.
        groups: where the attempt gets a control group.
        spare: a shim that waits with its worker; where it takes the attempt over, it is the shim.

    Raises:
        StillLockedError: an earlier attempt is not entirely gone.
        OSError: the attempt's folder could not be written, or no process could be made.
    """
    paths = home.job(job.name)
    attempt = paths.attempt(job.attempt)
    handed: list[int] = []
    lock_fd = lock.try_lock(paths.lock)
    if lock_fd is None:
        raise StillLockedError(job.name)
    try:
        if groups is not None and not groups.clear(job.name):
            raise StillLockedError(job.name)
        sweep(paths.dir)
        trim_logs(paths.attempts, job.spec.limits.log_bytes)
        attempt.dir.mkdir(parents=True, exist_ok=True)
        plan = {**launch_plan(home, job), "cgroup": groups.about(job) if groups is not None else None}
        plan["memory_fd"] = None if memory_fd is None else _SHIM_MEMORY_FD
        records.save_json(attempt.launch, plan, durably=False)
        durable.link(paths.current, f"attempts/{attempt.dir.name}")
        if spare is not None and spare.hand_over(plan, attempt, lock_fd, memory_fd):
            return spare.pid
        # Copies above the numbers that they get: neither takes the other's place.
        handed = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (lock_fd, memory_fd) if fd is not None]
        return spawn_shim(_SHIM, attempt.dir, attempt.log, dict(enumerate(handed, _SHIM_LOCK_FD)))
    finally:
        for fd in (lock_fd, *handed):
            os.close(fd)


def spawn_shim(program: Path, folder: Path, log: Path, handed: dict[int, int]) -> int:
    """Start a shim in a session of its own; return its pid.

    Args:
        program: of the shim.
        folder: of its attempt.
        log: takes what it says.
        handed: the numbers that it finds these descriptors under.

    Raises:
        OSError: no process could be made.
    """
    return os.posix_spawn(
        _PYTHON,
        [_PYTHON, "-I", "-S", str(program), str(folder)],
        _environ(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in handed.items()),
        ],
        setsid=True,
        # Blocked until the shim has its handlers: a signal sent meanwhile waits instead of killing it.
        setsigmask=[signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGHUP],
    )
