"""Bytes to and from large files, in whole blocks, past the page cache where that can be.

A checkpoint of gigabytes is read by nobody before it is replaced: written through the page cache it would
drive out what training reads, take the processor's time for copying, and be read back, to verify it, from
memory instead of the disk. So large files are opened for direct I/O (`O_DIRECT`, open(2)), through one
aligned buffer; where the file system refuses that, and for small files, everything goes the usual way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from runner.storage import digests, durable
from runner.storage.digests import Digest

#: From this size on the page cache is passed by.
DIRECT_BYTES_MIN = 8 * 1024 * 1024
#: Direct I/O wants offsets, lengths and memory aligned to the disk's blocks; a page always is.
BLOCK = mmap.PAGESIZE

#: Bytes that are read or written at a time.
PIECE = 2 * 1024 * 1024
#: Threads that fill memory from a large file: a disk is fastest with more than one request at a time, and
#: while it works for the one, the other has the kernel make its pages.
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
        self._buffer = _aligned(size)
        self._filled = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes.

        Raises:
            OSError: the disk failed.
        """
        view = memoryview(piece)
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
        data = self._buffer[: self._filled]
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
        self._filled = 0


def read(fd: int, offset: int, size: int) -> Iterator[memoryview]:
    """Yield `size` bytes from `offset` on, in pieces that are good until the next; fewer where the file ends.

    Raises:
        OSError: the disk failed.
    """
    direct = size >= DIRECT_BYTES_MIN and offset % BLOCK == 0 and _set_direct(fd, on=True)
    buffer = _aligned(size)
    try:
        while size > 0:
            # A direct read wants whole blocks, also where the file ends within one.
            try:
                got = os.preadv(fd, [buffer if direct else buffer[: min(len(buffer), size)]], offset)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                direct = _set_direct(fd, on=False)
                continue
            if got == 0:
                return
            if direct and got % BLOCK:
                direct = _set_direct(fd, on=False)
            got = min(got, size)
            yield buffer[:got]
            offset, size = offset + got, size - got
    finally:
        if direct:
            _set_direct(fd, on=False)


def memory(size: int) -> memoryview:
    """Return memory for so many bytes, in whole pages, that nothing has touched yet."""
    pages = mmap.mmap(-1, max(-(-size // BLOCK), 1) * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: it only takes longer
        pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


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
    direct = size >= DIRECT_BYTES_MIN and offset % BLOCK == 0 and _set_direct(fd, on=True)

    def fill(start: int) -> memoryview:
        done, refused = start, not direct
        end = min(start + PIECE, size)
        while done < end:
            try:  # a direct read wants whole blocks, also where the file ends within one
                got = os.preadv(fd, [into[done : start + PIECE]], offset + done)
            except OSError as error:
                if refused or error.errno != errno.EINVAL:
                    raise
                refused = not _set_direct(fd, on=False)
                continue
            if got == 0:
                break
            done += got
        return into[start : min(done, end)]

    readers = ThreadPoolExecutor(_READERS if size > PIECE else 1, "reading")
    try:
        yield from readers.map(fill, range(0, size, PIECE))
    finally:
        readers.shutdown(cancel_futures=True)
        if direct:
            _set_direct(fd, on=False)


def _set_direct(fd: int, *, on: bool) -> bool:
    """Switch direct I/O on, where the file system has it, or off; tell which it is now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return on


def _aligned(size: int) -> memoryview:
    """Return a buffer of whole pages for a file of so many bytes, at most of `PIECE`."""
    return memoryview(mmap.mmap(-1, min(PIECE, max(-(-size // BLOCK), 1) * BLOCK)))
