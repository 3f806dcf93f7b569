"""Keeps the log of an attempt from filling the disk; standard library only, used by the shim.

The worker's stdout is the file itself, so that nothing is lost with the shim, and nothing stands between.
When the file takes more than its cap, the disk space of its middle is given back (fallocate(2),
FALLOC_FL_PUNCH_HOLE): the first quarter of the cap and the newest half of it stay, and a line between them
tells how much was dropped. No position in the file changes, so whoever follows it goes on.

Limits: the size that `ls -l` tells keeps growing, what `du` tells does not. The middle reads as zero bytes;
`runner logs` leaves them out. Between two looks more than the cap may be written: a job that writes 1 GB/s
gets about 250 MB beyond it in the first quarter of a second, and 20 MB from then on, while the shim gets
processor time. Where the file system cannot punch holes, all but the first quarter is cut off instead.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Between two looks: in general, and while it grows fast.
LOOK_S, HURRY_S = 0.25, 0.02
_PUNCH = 0x1 | 0x2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_BLOCK = 4096
#: Grown by more than this part of the cap since the last look: look again soon.
_FAST = 16


class CappedLog:
    """The log of one attempt, looked at now and then."""

    def __init__(self, path: str, cap_bytes: int | None, libc: ctypes.CDLL) -> None:
        self._path = path
        self._cap = cap_bytes
        self._libc = libc
        self._kept = (cap_bytes or 0) // 4 // _BLOCK * _BLOCK  # of its beginning
        self._size = 0

    def look(self) -> float:
        """Give back what is too much; return in how many seconds to look again."""
        if self._cap is None:
            return LOOK_S
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return LOOK_S
        try:
            return self._look(fd, self._cap)
        except OSError:
            return LOOK_S  # the disk refuses: again
        finally:
            os.close(fd)

    def _look(self, fd: int, cap: int) -> float:
        about = os.fstat(fd)
        grown, self._size = about.st_size - self._size, about.st_size
        if about.st_blocks * 512 > cap and about.st_size > cap:
            self._drop(fd, (about.st_size - cap // 2) // _BLOCK * _BLOCK)
        return HURRY_S if grown > cap // _FAST else LOOK_S

    def _drop(self, fd: int, end: int) -> None:
        """Give back what lies between the kept beginning and `end`, and say so in its place."""
        begin = self._kept + _BLOCK
        punched = self._libc.fallocate(fd, _PUNCH, ctypes.c_int64(begin), ctypes.c_int64(end - begin))
        if punched != 0:
            os.ftruncate(fd, self._kept)
            end = self._size
        note = f"\n--- runner: about {end - self._kept >> 20} MiB of this log were dropped here "
        note += f"(limits.log = {(self._cap or 0) >> 20} MiB) ---\n"
        place = begin - len(note) if punched == 0 else self._kept
        os.pwrite(fd, note.encode(), place)


def pieces(fd: int, position: int, chunk_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield (data, position behind it) of a log from `position` on, the dropped middle left out."""
    while True:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, position, os.SEEK_HOLE)
        except OSError:  # ENXIO: nothing from there on
            return
        data = os.pread(fd, min(chunk_bytes, end - position), position)
        if not data:
            return
        position += len(data)
        yield data, position
