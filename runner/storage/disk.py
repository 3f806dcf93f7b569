"""What room a file system has, as far as it tells (statvfs(3)); quotas it does not tell.

Limits: on file systems that count no inodes (btrfs, many network ones) there is always room for names.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return how many bytes this process may write in `folder`.

    Raises:
        OSError: the folder is not there.
    """
    room = os.statvfs(folder)
    return room.f_frsize * (room.f_bfree if os.geteuid() == 0 else room.f_bavail)


def trouble(folder: Path, needed_bytes: int = 0) -> OSError | None:
    """Say why a file of so many bytes would find no room in `folder`; None where it would, or who knows."""
    try:
        room = os.statvfs(folder)
        free = free_bytes(folder)
    except FileNotFoundError as error:
        return error
    except OSError:
        return None
    if room.f_flag & os.ST_RDONLY:
        return OSError(errno.EROFS, "the file system is read-only", str(folder))
    if room.f_files and not room.f_favail:
        return OSError(errno.ENOSPC, "the file system has no inodes left", str(folder))
    if free < needed_bytes:
        return OSError(errno.ENOSPC, f"{needed_bytes} bytes are needed, {free} are free", str(folder))
    return None
