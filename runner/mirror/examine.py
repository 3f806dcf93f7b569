"""What a file's bytes are: its digest, and, of a checkpoint, whether they are what its own header says.

Bytes are taken as they come from a disk or a medium, once; nothing is kept of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from runner.errors import BadCheckpointError
from runner.storage import digests, userblock
from runner.storage.userblock import Info, bad

CHECKPOINT_SUFFIX = ".weights.h5"


@dataclass(frozen=True)
class Found:
    """A file, examined."""

    digest: str  #: of all its bytes
    size_bytes: int
    info: Info | None  #: what a checkpoint says of itself, and what is true


def examine(pieces: Iterable[bytes | memoryview], name: str, *, alike: str = "") -> Found:
    """Take a file's bytes.

    Args:
        pieces: all of them, in order.
        name: of the file; one that ends in `.weights.h5` has to be an intact checkpoint.
        alike: a digest, the algorithm of which is to be used.

    Raises:
        BadCheckpointError: it is not.
        StorageError: its digest needs a package that is not installed.
    """
    algorithm = alike.partition(":")[0]
    whole, size, checked = digests.new(algorithm), 0, _Checked(name)
    for piece in pieces:
        whole.update(piece)
        size += len(piece)
        checked.take(piece)
    return Found(digests.text(whole, algorithm), size, checked.finish(size))


class _Checked:
    """Compares a checkpoint with its own header; any other file is as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start: bytearray | None = bytearray() if name.endswith(CHECKPOINT_SUFFIX) else None
        self._info: Info | None = None
        self._rest: digests.Digest = hashlib.sha256()

    def take(self, piece: bytes | memoryview) -> None:
        if self._info is not None:
            self._rest.update(piece)
        elif self._start is not None:
            self._start += piece
            if len(self._start) >= userblock.SIZE:
                self._begin()

    def _begin(self) -> None:
        assert self._start is not None
        info = userblock.parse(bytes(self._start[: userblock.SIZE]), self._name)
        try:
            self._rest = digests.new(info.digest.partition(":")[0] or "none")
        except ValueError as error:
            raise bad(self._name, f"its header names an {error}") from None
        self._rest.update(memoryview(self._start)[userblock.SIZES[info.format] :])
        self._info, self._start = info, None

    def finish(self, size: int) -> Info | None:
        if self._start is not None:
            self._begin()  # a file shorter than a header says so itself
        info = self._info
        if info is None:
            return None
        if size != info.size_bytes:
            raise bad(self._name, f"it has {size} bytes where its header says {info.size_bytes}")
        if self._rest.hexdigest() != info.digest.partition(":")[2]:
            raise bad(self._name, "its bytes do not match its digest")
        return info


def check_name(info: Info | None, step: int | None, name: str) -> None:
    """Make sure that a checkpoint is of the step that it is named for.

    Raises:
        BadCheckpointError: it is not.
    """
    if info is not None and step is not None and info.step != step:
        raise BadCheckpointError(f"{name}: holds step {info.step}, not the one it is named for; remove it")
