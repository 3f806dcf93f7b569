"""Digests of bytes, as texts that name their algorithm: "xxh3_128:9f86d0...".

xxh3 (https://xxhash.com) reads memory as fast as it comes and notices every accident; it is no defence
against an adversary, who could write a whole new file just as well. Where the package `xxhash` is not
installed, which may be so in a job's own Python, sha256 is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from runner.errors import StorageError

try:
    import xxhash
except ImportError:
    _ALGORITHMS: dict[str, Callable[[], Any] | None] = {"xxh3_128": None, "sha256": hashlib.sha256}
    _preferred = "sha256"
else:
    _ALGORITHMS = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
    _preferred = "xxh3_128"

_PIECE = 1 << 20


class Digest(Protocol):
    """A digest in the making."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""


def preferred() -> str:
    """Return what new files are digested with."""
    return _preferred


def prefer(algorithm: str) -> None:
    """Digest new files in another way, for a reader that has no other.

    Raises:
        ValueError, StorageError: as `new`.
    """
    global _preferred
    new(algorithm)
    _preferred = algorithm


def new(algorithm: str = "") -> Digest:
    """Begin a digest, of the preferred algorithm where none is named.

    Raises:
        ValueError: no such algorithm is known.
        StorageError: it is known, and not installed.
    """
    algorithm = algorithm or _preferred
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"unknown digest {algorithm!r:.40}")
    make = _ALGORITHMS[algorithm]
    if make is None:
        raise StorageError("the digest xxh3_128 needs the package xxhash: pip install xxhash")
    digest: Digest = make()
    return digest


def text(digest: Digest, algorithm: str = "") -> str:
    """Return a digest as text."""
    return f"{algorithm or _preferred}:{digest.hexdigest()}"


def of(data: bytes | memoryview, algorithm: str = "") -> str:
    """Return the digest of bytes, as text."""
    digest = new(algorithm)
    digest.update(data)
    return text(digest, algorithm)


def of_file(path: Path, algorithm: str = "") -> str:
    """Return the digest of a file's bytes, as text.

    Raises:
        OSError: it cannot be read.
    """
    digest, piece = new(algorithm), memoryview(bytearray(_PIECE))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while got := os.readv(fd, [piece]):
            digest.update(piece[:got])
    finally:
        os.close(fd)
    return text(digest, algorithm)
