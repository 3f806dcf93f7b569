"""The memory file that a job's snapshots lie in (see `storage.slots`): made without NumPy.

It lives for as long as somebody holds its descriptor.
"""

from __future__ import annotations

import mmap
import os

MAGIC = b"runner snapshots 1\n"


def is_one(fd: int) -> bool:
    """Tell whether this is the descriptor of such a file."""
    try:
        return os.pread(fd, len(MAGIC), 0) == MAGIC
    except OSError:
        return False


def create() -> int:
    """Return the descriptor of a new, empty memory file, not inherited by children.

    Raises:
        OSError: the kernel gives none.
    """
    fd = os.memfd_create("runner-snapshots", os.MFD_CLOEXEC)
    os.truncate(fd, mmap.PAGESIZE)
    os.pwrite(fd, MAGIC, 0)
    return fd
