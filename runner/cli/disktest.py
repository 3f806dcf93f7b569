"""How fast a disk takes what it is given, and whether it can have taken it.

A small fsync(2) waits for the device: a disk needs milliseconds, flash tens of microseconds at least. One
that answers faster has not asked the device: a file system in memory, a library or a virtual disk that
pretends, a cache that calls itself durable (which it may be, by a battery).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from runner.storage import durable

#: Faster than this nothing is durable; slower than that it is felt.
HONEST_S = 20e-6
SLOW_S = 0.1
_TIMES = 15
_LARGE_BYTES = 32 << 20
_PIECE = 1 << 20
_SMALL = b"x" * 4096


@dataclass(frozen=True)
class Measured:
    """What was seen."""

    fsync_s: float  #: of 4 KiB appended to a file, the median
    bytes_per_s: float  #: of a large file, its fsync included


def measure(folder: Path) -> Measured:
    """Write below a folder, and remove it again.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f".doctor.{os.getpid()}.tmp"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        waits = [_timed_append(fd, _SMALL) for _ in range(_TIMES)]
        piece = os.urandom(_PIECE)
        began = time.perf_counter()
        for _ in range(_LARGE_BYTES // _PIECE):
            durable.write_all(fd, piece)
        durable.sync(fd)
        took_s = time.perf_counter() - began
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()
    return Measured(statistics.median(waits), _LARGE_BYTES / took_s)


def _timed_append(fd: int, data: bytes) -> float:
    durable.write_all(fd, data)
    began = time.perf_counter()
    durable.sync(fd)
    return time.perf_counter() - began
