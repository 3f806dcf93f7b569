"""A medium: where a job's mirror lies, as a few verbs that every kind of it can do.

Promises of each:

- `put` publishes a file whole or not at all, once it was read back from the medium and found to be what was
  sent; what is killed in the middle leaves a temporary file that nobody reads.
- Whatever goes wrong is a `MirrorError` of one line, without anything secret; a missing file is a
  `FileNotFoundError`.
- The folder that the URL names must be there: one that is not mounted is not made on the wrong disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from runner.errors import MirrorError
from runner.storage import blocks, durable

#: Takes what was read back; raises BadCopyError where it is not what was sent.
Check: TypeAlias = Callable[[Iterator[bytes | memoryview]], None]

PIECE = 8 * 1024 * 1024
#: A server that says nothing for so long is given up.
CONNECT_S = 10.0
SILENCE_S = 60.0


class BadCopyError(MirrorError):
    """What the medium gives back is not what was sent."""


class Medium(Protocol):
    """A place on a medium; names are relative to it, such as "best/best.weights.h5"."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the files in a folder with their sizes; none where it is missing."""

    def read(self, name: str) -> Iterator[bytes | memoryview]:
        """Yield a file's bytes, in pieces that are good until the next."""

    def put(self, name: str, fd: int, check: Check) -> None:
        """Publish what `fd` holds under `name`, once `check` has taken what the medium gives back."""

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is fine."""

    def sweep(self, folder: str) -> None:
        """Remove what a killed process left half-written in a folder; "" is the place's own."""

    def close(self) -> None:
        """Let go of what is open."""


def open_medium(url: str, name: str) -> Medium:
    """Open the place of job `name` on the medium that `url` names.

    Raises:
        MirrorError: it cannot be reached, or its library is not installed.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "s3":
            from runner.mirror.objects import Objects

            return Objects(parts.netloc, parts.path.strip("/"), name)
        if parts.scheme == "sftp":
            from runner.mirror.sftp import Sftp

            return Sftp(parts, name)
    except ImportError as error:
        raise MirrorError(f"{url}: {error}; pip install 'training-runner[mirror]'") from None
    if parts.scheme != "file":
        raise MirrorError(f"{url}: no such kind of mirror is known")
    return Folder(Path(unquote(parts.path)), name)


def is_temporary(name: str) -> bool:
    """Tell whether a file is one that somebody did not finish."""
    return name.startswith(".") and name.endswith(".tmp")


class Folder:
    """A folder of this machine: another disk, or a file system of the network."""

    def __init__(self, root: Path, name: str) -> None:
        with _told(f"file://{root}"):
            if not root.is_dir():
                raise NotADirectoryError("there is no such folder; mount it, or make it")
        self._dir = root / name

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the files in a folder with their sizes."""
        found = {}
        with _told(f"file://{self._dir / folder}"):
            if (self._dir / folder).is_dir():
                for entry in os.scandir(self._dir / folder):
                    if entry.is_file(follow_symlinks=False) and not is_temporary(entry.name):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def read(self, name: str) -> Iterator[bytes | memoryview]:
        """Yield a file's bytes."""
        with _told(f"file://{self._dir / name}"):
            yield from _pieces(self._dir / name)

    def put(self, name: str, fd: int, check: Check) -> None:
        """Publish a file durably."""
        path = self._dir / name
        with _told(f"file://{path}"):
            durable.make_folder(path.parent)
            with durable.replacing(path, verify=lambda temporary: check(_pieces(temporary))) as out:
                for piece in blocks.read(fd, 0, os.fstat(fd).st_size):
                    durable.write_all(out, piece)

    def remove(self, name: str) -> None:
        """Remove a file, durably."""
        with _told(f"file://{self._dir / name}"), contextlib.suppress(NotADirectoryError):
            durable.remove(self._dir / name)

    def sweep(self, folder: str) -> None:
        """Remove what was not finished."""
        with contextlib.suppress(OSError):
            for path in list((self._dir / folder).iterdir()):
                if is_temporary(path.name):
                    path.unlink()

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _pieces(path: Path) -> Iterator[memoryview]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from blocks.read(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Make a MirrorError of what the disk says."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MirrorError(f"{where}: {error.strerror or error}") from error
