"""Writing beside the training, on a disk that may be full: nothing here ends a training.

- `Lines` appends to a file of ours; what the disk refuses waits in memory, in order, and follows later.
- `steady_output` lets a script print into its log: what the log has no room for is dropped, and once there is
  room again a line says how much.

Limits: lines wait in memory only, up to `WAITING_BYTES_MAX`; beyond that new ones are refused.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any, TextIO, cast

from runner.storage import durable

WAITING_BYTES_MAX = 1 << 20
#: What a disk may say that is not the script's fault.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE}
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class Lines:
    """A file of lines, of which one process is the writer; to be used from any thread."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.RLock()
        self._fd: int | None = None
        self._waiting = bytearray()

    def append(self, line: bytes) -> None:
        """Append a line, and before it what waits.

        Raises:
            OSError: it could not be written now; it waits, unless too much does.
        """
        with self._lock:
            if len(self._waiting) >= WAITING_BYTES_MAX:
                self.flush()
            self._waiting += line
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: the disk refuses it still.
        """
        with self._lock:
            while self._waiting:
                written = os.write(self._open(), self._waiting)
                del self._waiting[:written]

    def _open(self) -> int:
        """Return the file's descriptor; anew where somebody has removed the file."""
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:
            os.close(self._fd)
            self._fd = None
        if self._fd is None:
            self._fd = os.open(self._path, _FLAGS, 0o644)
        return self._fd

    def size(self) -> int:
        """Return the number of bytes so far, those that wait included."""
        with self._lock:
            with contextlib.suppress(OSError):
                self.flush()
            return self._written() + len(self._waiting)

    @property
    def waiting(self) -> bytes:
        """What the disk has not taken yet."""
        return bytes(self._waiting)

    def cut(self, size: int, end: bytes = b"") -> None:
        """Drop everything after `size` bytes; where there are fewer, the `end` of them is made good."""
        with self._lock:
            written = self._written()
            del self._waiting[max(0, size - written) :]
            lacking = size - written - len(self._waiting)
            if 0 < lacking <= len(end):
                self._waiting += end[-lacking:]
                with contextlib.suppress(OSError):
                    self.flush()
            if written > size:
                os.truncate(self._path, size)

    def _written(self) -> int:
        try:
            return os.stat(self._path).st_size  # noqa: PTH116 - at every snapshot
        except FileNotFoundError:
            return 0


def steady_output() -> None:
    """Let standard output and standard error outlast a full disk, where they are files."""
    for name in ("stdout", "stderr"):
        stream = _steady(getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _steady(stream: TextIO) -> TextIO:
    try:
        fd = stream.fileno()
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    unbuffered = bool(getattr(stream, "write_through", True))
    raw: Any = _Steady(fd, stream.name)
    steady: Any = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=bool(getattr(stream, "line_buffering", False)),
        write_through=unbuffered,
    )
    steady.mode = "w"
    return cast(TextIO, steady)


class _Steady(io.RawIOBase):
    """A descriptor that takes everything; what the disk has no room for is counted."""

    def __init__(self, fd: int, name: str):
        self._fd = fd
        self._lost = 0
        self.name = name
        self.mode = "wb"

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        try:
            if self._lost:
                durable.write_all(self._fd, b"\nrunner: %d bytes of output are missing here\n" % self._lost)
                self._lost = 0
            durable.write_all(self._fd, memoryview(data))
        except OSError as error:
            if error.errno not in _DISK:
                raise
            self._lost += size
        return size
