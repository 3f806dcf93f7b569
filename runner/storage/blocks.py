"""Bytes to and from large files, in whole blocks, past the page cache where that can be.

A checkpoint of gigabytes is read by nobody before it is replaced: written through the page cache it would
drive out what training reads, take the processor's time for copying, and be read back, to verify it, from
memory instead of the disk. So large files are opened for direct I/O (`O_DIRECT`, open(2)): from where the
bytes lie, if that is at the border of a page both in memory and in the file, else through one aligned buffer;
where the file system refuses that, and for small files, everything goes the usual way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from runner.storage import digests, durable
from runner.storage.digests import Digest

#: From this size on the page cache is passed by.
DIRECT_BYTES_MIN = 8 * 1024 * 1024
#: Direct I/O wants offsets, lengths and memory aligned to the disk's blocks; a page always is.
BLOCK = mmap.PAGESIZE

#: Bytes that are read or written at a time.
PIECE = 4 * 1024 * 1024
#: Threads that read a large file: a disk is fastest with more than one request at a time, and while it works
#: for the one, the kernel makes pages for the other.
_READERS = 3


class Writer:
    """Writes a file from `offset` on, in order, and digests what it writes."""

    def __init__(self, fd: int, offset: int, size: int):
        """Begin.

        Args:
            fd: open for writing.
            offset: where the bytes go; a multiple of `BLOCK`.
            size: how many there will be.
        """
        self.digest: Digest = digests.new()
        self.offset = offset  #: where the next byte goes
        self._fd = fd
        self._direct = size >= DIRECT_BYTES_MIN and _set_direct(fd, on=True)
        self._buffer = memory(min(size, PIECE))
        self._filled = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes.

        Raises:
            OSError: the disk failed.
        """
        view = memoryview(piece)
        if self._direct and len(view) >= PIECE and _is_aligned(view, self.offset + self._filled):
            self._flush()
            whole = len(view) // BLOCK * BLOCK
            for start in range(0, whole, PIECE):
                self._put(view[start : min(start + PIECE, whole)])
            view = view[whole:]
        while view:
            size = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + size] = view[:size]
            self._filled += size
            view = view[size:]
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> str:
        """Write what is left; return the digest of all."""
        if self._direct and self._filled % BLOCK:
            self._direct = _set_direct(self._fd, on=False)
        self._flush()
        if self._direct:
            _set_direct(self._fd, on=False)
        return digests.text(self.digest)

    def _flush(self) -> None:
        self._put(self._buffer[: self._filled])
        self._filled = 0

    def _put(self, data: memoryview) -> None:
        self.digest.update(data)
        while data:
            try:
                written = durable.write_at(self._fd, data, self.offset)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                # Not here, not of this length, or after a short write: the usual way then.
                self._direct = _set_direct(self._fd, on=False)
                continue
            self.offset += written
            data = data[written:]


def _is_aligned(view: memoryview, offset: int) -> bool:
    """Tell whether direct I/O takes these bytes from where they are to an offset in a file."""
    if offset % BLOCK or view.readonly:  # where bytes lie that cannot be written to, ctypes does not tell
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % BLOCK == 0


def beginning(fd: int, size: int) -> bytes:
    """Return the first `size` bytes of a file, fewer where it ends; a short read is continued.

    Raises:
        OSError: the disk failed.
    """
    start = b""
    while more := os.pread(fd, size - len(start), len(start)):
        start += more
    return start


def memory(size: int) -> memoryview:
    """Return memory for so many bytes, in whole pages, large ones where that can be, untouched yet."""
    pages = mmap.mmap(-1, max(-(-size // BLOCK), 1) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: it only takes longer
        pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


def read(fd: int, offset: int, size: int) -> Iterator[memoryview]:
    """Yield `size` bytes from `offset` on, in pieces that are good until the next; fewer where the file ends.

    Raises:
        OSError: the disk failed.
    """
    buffers = [memory(min(PIECE, size)) for _ in range(_READERS if size >= DIRECT_BYTES_MIN else 1)]
    return _filled(fd, offset, size, lambda start: buffers[start // PIECE % len(buffers)])


def load(fd: int, offset: int, size: int, into: memoryview) -> Iterator[memoryview]:
    """Fill memory with `size` bytes from `offset` on; yield its parts in order, as they are filled.

    Args:
        fd: of a file.
        offset: where the bytes are.
        size: how many there should be; where the file ends before, so do the parts.
        into: as `memory` returns it.

    Raises:
        OSError: the disk failed.
    """
    return _filled(fd, offset, size, lambda start: into[start : start + PIECE])


def _filled(fd: int, offset: int, size: int, room: Callable[[int], memoryview]) -> Iterator[memoryview]:
    """Yield a file's pieces in order, each in the `room` for its place; a large file's are read ahead.

    So many as there are readers are under way or with the caller: the next one may have the same room.
    """
    large = size >= DIRECT_BYTES_MIN
    direct = large and offset % BLOCK == 0 and _set_direct(fd, on=True)
    starts = iter(range(0, size, PIECE))

    def fill(start: int) -> memoryview:
        return _read_piece(fd, offset + start, min(PIECE, size - start), room(start), direct=direct)

    try:
        if not large:
            yield from map(fill, starts)
            return
        readers = ThreadPoolExecutor(_READERS, "reading")
        try:
            ahead = deque(readers.submit(fill, start) for start in itertools.islice(starts, _READERS))
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(readers.submit(fill, start) for start in itertools.islice(starts, 1))
        finally:
            readers.shutdown(cancel_futures=True)
    finally:
        if direct:
            _set_direct(fd, on=False)


def _read_piece(fd: int, offset: int, size: int, into: memoryview, *, direct: bool) -> memoryview:
    """Fill memory with `size` bytes; return what was filled: less where the file ends."""
    done = 0
    while done < size:
        try:
            # A direct read wants whole blocks, also where the file ends within one.
            got = os.preadv(fd, [into[done:] if direct else into[done:size]], offset + done)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            direct = _set_direct(fd, on=False)
            continue
        if got == 0:
            break
        done += got
    return into[: min(done, size)]


def _set_direct(fd: int, *, on: bool) -> bool:
    """Switch direct I/O on, where the file system has it, or off; tell which it is now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return on
