"""Landlock (Linux 5.19): a process gives up writing but below some folders, for good, with all it starts.

Standard library only: the worker's process calls it between fork and exec. Reading, running and the network
stay free. What it has open already stays writable. See landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_GET_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
#: What changes files: write, remove (folders, files), make (seven kinds), link or rename elsewhere, truncate.
_WRITE_FILE = 1 << 1
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
REFER_SINCE, _TRUNCATE_SINCE = 2, 3
#: Of these a rule for a single file takes no more than that.
_FOR_FILES = _WRITE_FILE | _TRUNCATE


#: Where programs write that mean no harm: scratch files, shared memory, terminals, GPUs, themselves.
_USUAL = ("/tmp", "/var/tmp", "/dev", "/proc")


def usual(*paths: str) -> list[str]:
    """Return these paths and those that any program writes below, as far as they are there."""
    return [path for path in (*paths, *_USUAL, os.environ.get("TMPDIR", "")) if path and os.path.exists(path)]


def version(libc: ctypes.CDLL) -> int:
    """Return which Landlock the kernel has; 0: none."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)))


def write_only_below(paths: list[str], libc: ctypes.CDLL) -> None:
    """Give up writing anywhere but below `paths`, for this process and all that it starts.

    Raises:
        OSError: the kernel has no Landlock that can do it, or one of the paths is not there.
    """
    known = version(libc)
    if known < REFER_SINCE:
        raise OSError(
            "[isolation] needs Landlock, which this kernel does not have (Linux 5.19 or newer, lsm=)"
        )
    rights = _WRITE_FILE | _REMOVE_AND_MAKE | _REFER | (_TRUNCATE if known >= _TRUNCATE_SINCE else 0)
    attributes = struct.pack("=Q", rights)
    ruleset = _call(libc, _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path in paths:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if os.path.isdir(path) else rights & _FOR_FILES
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, fd), 0)
        os.close(fd)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _call(libc, _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(libc: ctypes.CDLL, *arguments: object) -> int:
    result = int(libc.syscall(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
