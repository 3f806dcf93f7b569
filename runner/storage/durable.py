"""Durable files: the only place that renames or fsyncs.

Promises (each is tested by failing and by killing at every system call):

- A file published here is the old one or the new one, never a mixture (P1), and when the call has returned
  it survives a power cut (P2): temporary file in the same folder, write, fsync, rename, fsync of the folder.
- A failed fsync is final for that file (P6): the temporary file is dropped and the error raised; it is never
  fsynced again and called saved. After a failure of the *folder's* fsync the new file is in place, but the
  caller is told of the failure and must not report it as saved.

Limits: a disk that lies about having flushed its cache is believed. Removal is made durable only where said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

_WRITE_BYTES_MAX = 16 * 1024 * 1024


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` to `fd`; a short write is continued.

    Raises:
        OSError: a write failed, or wrote nothing.
    """
    view = memoryview(data).cast("B")
    while view:
        written = os.write(fd, view[:_WRITE_BYTES_MAX])
        if written == 0:
            raise OSError(f"write of {len(view)} bytes wrote nothing")
        view = view[written:]


def write_at(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write the beginning of `data` at `offset`; return how many bytes that was, at least one.

    Raises:
        OSError: the write failed, or wrote nothing.
    """
    written = os.pwrite(fd, data, offset)
    if written == 0:
        raise OSError(f"write of {len(data)} bytes wrote nothing")
    return written


def sync(fd: int) -> None:
    """Have the disk take what was written to `fd` so far (fsync(2)).

    Raises:
        OSError: it did not.
    """
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
        os.fstat(fd)  # on xfs that has shut down after an error a folder's fsync does nothing and returns 0
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` for a file that takes its place later; what stays of it is swept."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


@contextlib.contextmanager
def replacing(
    path: Path, *, verify: Callable[[Path], None] | None = None, mode: int = 0o644
) -> Iterator[int]:
    """Replace `path` durably by what the block writes to the yielded file descriptor.

    Args:
        path: the file to be replaced or created; its folder exists.
        verify: called with the temporary file after its fsync and before the rename; what it raises
            prevents the publication.
        mode: permissions of the new file, subject to the umask.

    Raises:
        OSError: any step failed; `path` is then as it was (or new, when only the folder's fsync failed).
    """
    temporary = temporary_name(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with _dropping(temporary):
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        if verify is not None:
            verify(temporary)
        temporary.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _dropping(temporary: Path) -> Iterator[None]:
    """Remove the temporary file, as far as that can be done, where the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write(path: Path, data: bytes) -> None:
    """Replace `path` durably by `data`."""
    with replacing(path) as fd:
        write_all(fd, data)


def append(path: Path, data: bytes) -> None:
    """Append `data` durably; `path` is made where it is missing.

    Raises:
        OSError: any step failed; some of it may be there all the same.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def publish(path: Path, data: bytes) -> None:
    """Replace `path` atomically but not durably: for what is worthless after a reboot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _dropping(temporary):
        temporary.write_bytes(data)
        temporary.rename(path)


def make_folder(path: Path, within: Path | None = None) -> None:
    """Create `path` and the missing folders above it, durably.

    Args:
        path: may be there already.
        within: a folder that has to be there: below the mount point of a disk that is gone nothing is made.

    Raises:
        OSError: it could not be made, or `within` is gone.
    """
    if within is not None and not within.is_dir():
        raise FileNotFoundError(errno.ENOENT, "this folder is gone; is its disk mounted?", str(within))
    missing = []
    folder = path
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def link(path: Path, target: str) -> None:
    """Point the symbolic link `path` at `target`, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    with _dropping(temporary):
        temporary.symlink_to(target)
        temporary.rename(path)


def move(source: Path, target: Path) -> None:
    """Rename a file or a whole folder durably within one file system; `target`'s folder exists."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def remove(path: Path) -> None:
    """Remove a file, durably; a missing one is fine."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a whole folder: first renamed out of sight in one step, then deleted."""
    grave = bury(path)
    if grave is not None:
        shutil.rmtree(grave, ignore_errors=True)


def bury(path: Path) -> Path | None:
    """Rename a folder out of sight, to a name that may be deleted at leisure; None where it is missing."""
    grave = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        move(path, grave)
    except FileNotFoundError:
        return None
    return grave


def sync_tree(root: Path) -> None:
    """Make a freshly written tree of regular files and folders durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                continue
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))
