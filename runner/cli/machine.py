"""What `runner doctor` looks at in a machine and a home: each finding with what it means and what to do.

A check says what it has seen, never more: what cannot be looked at is a note. "bad" is what loses training or
keeps it from running; a "note" is what people should know.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from runner.cli import daemon, disktest, output
from runner.errors import UnreadableRecordError
from runner.storage import disk, records
from runner.storage.layout import Home
from runner.supervisor import allotment

#: Of Keras, those that are tested (README.md); others are resumed at the beginning of an epoch.
KERAS = ((3, 10), (3, 15))
PYTHONS = ((3, 11), (3, 13))
_FREE_BYTES = 2 << 30
_MEMORY_BYTES = 2 << 30
_FILES_MIN, _WATCHES_MIN = 1024, 1024
_IMPORT_S = 180.0
_TOOL_S = 10.0
_UNIT = "training-runner.service"
#: Where the kernel keeps no file on a disk, or another machine has its say in it.
_VOLATILE = {"tmpfs", "ramfs", "devtmpfs"}
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "fuse.s3fs"}
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized


class Level(StrEnum):
    """How a finding is meant."""

    GOOD = "good"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    found: str
    advice: str = ""


def examine(home: Home) -> list[Finding]:
    """Look at everything; a file is written where the home is or would be, and removed again."""
    checks: list[Callable[[Home], Finding]] = [
        *(_python, _packages, _tensorflow, _gpus, _memory, _processors),
        *(_home, _file_system, _room, _disk, _watching, _open_files),
        *(_processes, _clock, _service, _supervisor),
    ]
    return [check(home) for check in checks]


# --- what runs ---------------------------------------------------------------------------------------------


def _python(_home: Home) -> Finding:
    here = f"{platform.python_version()}, {sys.executable}"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("python", Level.GOOD, here)
    known = f"{_dotted(PYTHONS[0])} to {_dotted(PYTHONS[1])}"
    return Finding("python", Level.NOTE, here, f"tested are {known}; TensorFlow has wheels for these")


def _packages(_home: Home) -> Finding:
    found, missing = [], []
    for name in ("keras", "tensorflow", "numpy", "h5py", "xxhash", "watchdog", "psutil"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    said = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    if missing:
        return Finding("packages", Level.BAD, said, f"pip install {' '.join(missing)}")
    numbers = tuple(int(part) for part in importlib.metadata.version("keras").split(".")[:2])
    if not KERAS[0] <= numbers <= KERAS[1]:
        known = f"{_dotted(KERAS[0])} to {_dotted(KERAS[1])}"
        return Finding("packages", Level.NOTE, said, f"tested is Keras {known}; another is resumed by epochs")
    return Finding("packages", Level.GOOD, said)


def _tensorflow(_home: Home) -> Finding:
    """Import it in a process of its own: a wheel that does not fit the processor kills its process."""
    began = time.monotonic()
    program = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=_IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("tensorflow", Level.BAD, f"does not import within {_IMPORT_S:g} s", "look at the disk")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = "the processor may lack what the wheel needs" if done.returncode < 0 else "reinstall it"
        return Finding("tensorflow", Level.BAD, f"does not import: {last}", advice)
    took, gpus = time.monotonic() - began, done.stdout.strip().splitlines()[-1]
    found = f"imports in {took:.1f} s, sees {gpus} GPUs"
    listed = sum(
        ", " in line for line in (_listed_gpus() or "").splitlines()
    )  # "No devices were found" is none
    if gpus.isdigit() and int(gpus) < listed:
        return Finding("tensorflow", Level.NOTE, f"{found}, nvidia-smi lists {listed}", _why_unseen())
    return Finding("tensorflow", Level.GOOD, found)


def _why_unseen() -> str:
    """Say what keeps TensorFlow from a GPU that is there."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return f'CUDA_VISIBLE_DEVICES="{shown}" hides the others in this environment'
    return "jobs would train on processors: pip install 'tensorflow[and-cuda]', and see what its import says"


def _listed_gpus() -> str | None:
    """Return what nvidia-smi tells of each GPU, a line each; None where it is not there, or fails."""
    return _run(["nvidia-smi", "--query-gpu=name,uuid,memory.total,memory.used", "--format=csv,noheader"])


def _gpus(_home: Home) -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("gpus", Level.NOTE, "no nvidia-smi: jobs run on processors")
    said = _listed_gpus()
    if said is None:
        return Finding("gpus", Level.BAD, "nvidia-smi fails", "see `nvidia-smi` and `dmesg`")
    return Finding("gpus", Level.GOOD, "; ".join(said.splitlines()) or "none")


def _memory(_home: Home) -> Finding:
    sizes = _meminfo()
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = int(allotment.memory_bytes())
    said = f"{output.size(total)}, {output.size(free)} available"
    said += f"; this process may take {output.size(limit)}" if limit < total else ""
    if free < _MEMORY_BYTES:
        return Finding("memory", Level.NOTE, said, "snapshots take three times a model's state, if they fit")
    return Finding("memory", Level.GOOD, said)


def _processors(_home: Home) -> Finding:
    usable = allotment.cpus()
    load = os.getloadavg()[0]
    said = f"{usable:g} usable, load {load:.1f}, {platform.machine()}, Linux {platform.release()}"
    if load > 2 * usable:
        return Finding("processors", Level.NOTE, said, "something else works here: training will be slow")
    return Finding("processors", Level.GOOD, said)


# --- where it is kept --------------------------------------------------------------------------------------


def _place(home: Home) -> Path:
    """Return where the state is kept, or the folder that it would be made in."""
    return next(folder for folder in (home.state, *home.state.parents) if folder.exists())


def _home(home: Home) -> Finding:
    place = _place(home)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("home", Level.BAD, f"{place} cannot be written", "as another user, or --home DIR")
    if place != home.state:
        return Finding(
            "home", Level.NOTE, f"{home.root}: not there yet", "the first command that needs it makes it"
        )
    return Finding("home", Level.GOOD, str(home.root))


def _file_system(home: Home) -> Finding:
    kind = file_system(_place(home))
    if kind in _VOLATILE:
        advice = "a reboot takes all checkpoints: choose a home on a disk"
        return Finding("file system", Level.BAD, f"{kind}: memory", advice)
    if kind in _REMOTE:
        advice = "locks and folder events of other machines are not seen: one daemon alone may use this home"
        return Finding("file system", Level.NOTE, f"{kind}: over the network", advice)
    return Finding("file system", Level.GOOD if kind else Level.NOTE, kind or "not known")


def _room(home: Home) -> Finding:
    problem = disk.trouble(_place(home))
    if problem is not None:
        return Finding("room", Level.BAD, str(problem), "training goes on without new checkpoints: make room")
    free = disk.free_bytes(_place(home))
    if free < _FREE_BYTES:
        advice = "a checkpoint takes three times a model's weights; three are kept, and the best"
        return Finding("room", Level.NOTE, f"{output.size(free)} free", advice)
    return Finding("room", Level.GOOD, f"{output.size(free)} free")


def _disk(home: Home) -> Finding:
    """Measure how fast, and guess how honestly, the disk takes what it is given."""
    try:
        measured = disktest.measure(_place(home))
    except OSError as error:
        return Finding("disk", Level.BAD, f"cannot be written: {error}", "see `runner status` of any job")
    fast = f"writes {output.size(measured.bytes_per_s)} a second, fsync included"
    level, advice = verdict_of_disk(measured)
    return Finding("disk", level, f"{fast}; a small fsync takes {output.moment(measured.fsync_s)}", advice)


def verdict_of_disk(measured: disktest.Measured) -> tuple[Level, str]:
    """Say what follows from a disk's speed."""
    if measured.fsync_s < disktest.HONEST_S:
        lost = "a power cut may lose what was reported as saved; kills lose nothing"
        return Level.NOTE, f"faster than any disk: {lost}"
    if measured.fsync_s > disktest.SLOW_S:
        return Level.NOTE, "slow: progress and events come late, checkpoints are rarer"
    return Level.GOOD, ""


def _watching(_home: Home) -> Finding:
    folder = Path("/proc/sys/fs/inotify")
    try:
        watches, instances = (
            int((folder / name).read_text()) for name in ("max_user_watches", "max_user_instances")
        )
    except (OSError, ValueError):
        return Finding("inotify", Level.NOTE, "not there", "new jobs are seen within five seconds")
    said = f"{watches} watches and {instances} instances a user"
    if watches < _WATCHES_MIN or not _can_watch():
        return Finding(
            "inotify", Level.NOTE, said, "used up: new jobs are seen within five seconds; sysctl fs.inotify"
        )
    return Finding("inotify", Level.GOOD, said)


def _open_files(_home: Home) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES_MIN:
        return Finding("open files", Level.NOTE, f"{soft} a process ({hard} at most)", "ulimit -n 4096")
    return Finding("open files", Level.GOOD, f"{soft} a process ({hard} at most)")


# --- what watches ------------------------------------------------------------------------------------------


def _processes(_home: Home) -> Finding:
    """See whether the kernel has what the supervisor stands on: pidfds, /proc of others, memory files."""
    missing = []
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        missing.append("pidfd_open (Linux 5.3)")
    if not Path("/proc/1/stat").exists():
        missing.append("other processes in /proc")
    try:
        os.close(os.memfd_create("runner-doctor"))
    except OSError:
        missing.append("memfd_create")
    if missing:
        advice = "no attempt can be supervised here" if "pidfd" in missing[0] else "see ARCHITECTURE.md"
        return Finding("kernel", Level.BAD, f"lacks {', '.join(missing)}", advice)
    return Finding("kernel", Level.GOOD, "has what supervising needs")


def _clock(_home: Home) -> Finding:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    room = ctypes.create_string_buffer(512)  # struct timex; all modes off: it is only read
    with contextlib.suppress(OSError, AttributeError):
        state = ctypes.CDLL(None, use_errno=True).adjtimex(room)
        if state == _TIME_ERROR:
            return Finding(
                "clock", Level.NOTE, f"{now}, not synchronized", "hangs and backoff do not need it"
            )
    return Finding("clock", Level.GOOD, now)


def _service(_home: Home) -> Finding:
    if not Path("/run/systemd/system").is_dir():
        return Finding(
            "service", Level.NOTE, "no systemd here", "runner supervise, by whatever starts services"
        )
    said = _run(["systemctl", "show", _UNIT, "--property=LoadState,ActiveState,UnitFileState"])
    if said is None:
        return Finding("service", Level.NOTE, "systemctl does not answer")
    states = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if states.get("LoadState") != "loaded":
        advice = "without it nothing starts after a reboot: make install-service"
        return Finding("service", Level.NOTE, f"{_UNIT} is not installed", advice)
    said = f"{_UNIT}: {states.get('ActiveState')}, {states.get('UnitFileState')}"
    if states.get("ActiveState") == "failed":
        return Finding("service", Level.BAD, said, f"journalctl -u {_UNIT}")
    return Finding("service", Level.GOOD, said)


def _supervisor(home: Home) -> Finding:
    if not daemon.is_serving(home):
        return Finding("supervisor", Level.NOTE, "none serves this home", "runner supervise")
    with contextlib.suppress(OSError, UnreadableRecordError, KeyError, TypeError):
        pid = records.load_json(home.supervisor)["identity"]["pid"]
        return Finding("supervisor", Level.GOOD, f"runs, pid {pid}")
    return Finding("supervisor", Level.GOOD, "runs")


# --- looking -----------------------------------------------------------------------------------------------


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder lies on, as mount(8) names it; "" if not known."""
    where, kind = folder.resolve(), ""
    longest = -1
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, place, its_kind = line.split()[:3]
            place = place.encode().decode("unicode_escape")  # a space is \040
            if where.is_relative_to(place) and len(place) >= longest:
                longest, kind = len(place), its_kind
    return kind


def _run(argv: list[str]) -> str | None:
    """Return what a program prints; None where it fails, or takes too long."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _meminfo() -> dict[str, int]:
    """Return the sizes in /proc/meminfo, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return {}


def _can_watch() -> bool:
    fd = ctypes.CDLL(None, use_errno=True).inotify_init()
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
