"""A process that has numpy and h5py loaded and forks a child for each thing to be disturbed.

Starting Python under strace for each of a thousand faults would take minutes. The child stops itself, strace
is attached to it and counts its calls from there, it goes on, does its one thing, and exits: 0 when it
believes that all went well, 3 when it was told of an error.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from runner.core.spec import CheckpointSpec
from runner.errors import StorageError
from runner.storage import checkpoint, durable
from runner.storage.layout import JobPaths
from runner.training.saver import Saver
from tests.storage.snapshots import CREATED, small

_PR_SET_PTRACER = 0x59616D61


def save(folder: Path) -> None:
    """What the product does: save, verify, publish, evict."""
    Saver(JobPaths(folder), CheckpointSpec(keep=1), lambda _: None).save_now(small(20))


def save_again(folder: Path) -> None:
    """As training does: a failed save is tried again."""
    saver = Saver(JobPaths(folder), CheckpointSpec(keep=1), lambda _: None)
    try:
        saver.save_now(small(20))
    except (OSError, StorageError):
        saver.save_now(small(20))


def control_in_place(folder: Path) -> None:
    """The image, written straight to its final name."""
    checkpoint.write(folder / "image", small(20), created=CREATED)
    data = (folder / "image").read_bytes()
    fd = os.open(JobPaths(folder).checkpoint(20), os.O_WRONLY | os.O_CREAT)
    for start in range(0, len(data), 4096):
        durable.write_all(fd, data[start : start + 4096])
    os.fsync(fd)
    os.close(fd)


def control_deaf(folder: Path) -> None:
    """A temporary file and a rename, but no error is heard and nothing is read back."""
    checkpoint.write(folder / "image", small(20), created=CREATED)
    temporary, data = folder / "temporary", (folder / "image").read_bytes()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT)
    for start in range(0, len(data), 4096):
        with suppress(OSError):
            os.pwrite(fd, data[start : start + 4096], start)
    os.fsync(fd)
    os.close(fd)
    temporary.rename(JobPaths(folder).checkpoint(20))


def control_bare(folder: Path) -> None:
    """What most programs do: h5py, fsync, rename."""
    temporary = folder / "temporary"
    with h5py.File(temporary, "w") as file:
        file.create_dataset("values", data=VALUES, chunks=(1024,))
        file.flush()
    fd = os.open(temporary, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    temporary.rename(folder / "bare.h5")


def check_bare(folder: Path) -> None:
    """Fail unless the bare file holds what was written; in a child, for reading it may crash."""
    with h5py.File(folder / "bare.h5", "r") as file:
        if not np.array_equal(file["values"][()], VALUES):
            raise OSError("other values")


VALUES = np.arange(8192.0)
SCENARIOS: dict[str, Callable[[Path], None]] = {
    "save": save,
    "save again": save_again,
    "in place": control_in_place,
    "deaf": control_deaf,
    "bare": control_bare,
    "check bare": check_bare,
}


def child(scenario: str, folder: Path) -> int:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, -1, 0, 0, 0)
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)  # HDF5 tells of ignored errors there
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        SCENARIOS[scenario](folder)
    except (OSError, StorageError, RuntimeError, KeyError):
        return 3
    return 0


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    for line in sys.stdin:
        scenario, _, folder = line.rstrip("\n").partition("\t")
        pid = os.fork()
        if pid == 0:
            os._exit(child(scenario, Path(folder)))
        os.waitpid(pid, os.WUNTRACED)  # until it has stopped
        say(pid)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
