"""Checkpoints: one HDF5 file that Keras's `load_weights` takes as it is and that holds all a resume needs.

Promises (tested by failing, killing and flipping bytes everywhere):

- A file under its final name is whole: it was read back and verified before the rename (P1, P3).
- What `read` returns is what was written: a digest covers every byte after the user block, another the user
  block, one more each array; the first two are checked before anything else is parsed (P4).
- A hostile file cannot run code (JSON and raw numbers, no pickle), cannot point outside itself, and cannot
  make the reader allocate more than its own size for arrays. `read` does not even use the HDF5 library.

The file: a user block (`storage.userblock`), then an HDF5 file with every array, contiguous, at
`/runner/arrays/KEY`; Keras's own paths are hard links to them; `/runner/manifest` is JSON (as Python writes
it: NaN and Infinity are allowed) with the state and, for each array, its dtype, shape, offset and sha256.

Limits: numbers only (bool, integers, floats, complex, at most 16 bytes, and those of ml_dtypes); in the
state, as always in JSON, tuples become lists and keys become strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import StorageError
from runner.storage import durable, userblock
from runner.storage.userblock import Info, bad

#: A larger manifest is neither written nor read.
MANIFEST_BYTES_MAX = 64 * 1024 * 1024

_ARRAYS = "runner/arrays"
_MANIFEST = "runner/manifest"
_PIECE = 4 * 1024 * 1024
_RANK_MAX = 32
_METRIC_MAX = 80  # a longer name is left out of the header, which has little room
_DTYPE = re.compile(r"\|b1|[|<>][iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)")
_FOREIGN_DTYPE = re.compile(r"bfloat16|float(8|6|4)_[a-z0-9_]+|u?int[124]")

__all__ = ["FORMAT", "Info", "Snapshot", "describe", "read", "verify", "write"]
FORMAT = userblock.FORMAT


@dataclass(frozen=True)
class Snapshot:
    """Training at one moment, as values; its arrays are not modified any more."""

    step: int  #: completed steps, over the whole script
    epoch: int
    state: dict[str, Any]  #: what JSON can hold
    arrays: dict[str, np.ndarray[Any, Any]]  #: everything numeric, by key, such as "variables/00012"
    #: Keras's own path in a weights file ("layers/dense/vars/0") -> key in `arrays`.
    links: dict[str, str] = field(default_factory=dict)
    #: HDF5 attributes by path; a path that is no link is a group, made where it is missing.
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """Where an array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    sha256: str

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, snapshot: Snapshot, *, created: str) -> int:
    """Replace `path` durably by a checkpoint, verified before it appears; return its size in bytes.

    Args:
        path: its folder exists; `.weights.h5` at its end lets Keras load it.
        snapshot: its arrays must not change meanwhile (one that does is noticed, and nothing is published).
        created: the time, for people.

    Raises:
        StorageError: the snapshot cannot be put into this format, or what was written does not verify.
        OSError: the disk failed; `path` is as it was.
    """
    try:
        layout, manifest = _lay_out(snapshot, created)
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        RecursionError,
        OSError,
    ) as error:  # no disk was touched
        raise StorageError(f"{path}: this snapshot cannot be stored as a checkpoint: {error}") from error
    offset, size = manifest
    with durable.replacing(path, verify=_verify_new) as fd:
        durable.write_all(fd, bytes(userblock.SIZE))
        digest, length = _write_pieces(fd, layout.pieces())
        info = Info(
            step=snapshot.step,
            epoch=snapshot.epoch,
            created=created,
            size_bytes=userblock.SIZE + length,
            sha256=digest,
            manifest_offset=offset,
            manifest_size=size,
            **_best_of(snapshot.state),
        )
        os.lseek(fd, 0, os.SEEK_SET)
        durable.write_all(fd, userblock.render(info))
    return info.size_bytes


def _verify_new(temporary: Path) -> None:
    verify(temporary)


def _write_pieces(fd: int, pieces: Iterator[bytes | memoryview]) -> tuple[str, int]:
    digest, length = hashlib.sha256(), 0
    for piece in pieces:
        durable.write_all(fd, piece)
        digest.update(piece)
        length += len(piece)
    return digest.hexdigest(), length


def _lay_out(snapshot: Snapshot, created: str) -> tuple[Any, tuple[int, int]]:
    """Lay the file out; return the layout and where the manifest lies in the file (offset, size)."""
    from runner.storage.hdf5layout import Layout  # here, so that reading needs no h5py

    layout = Layout()
    entries: dict[str, Any] = {}
    for key, given in snapshot.arrays.items():
        array = np.asarray(given, order="C")
        path = f"{_ARRAYS}/{key}"
        offset = layout.reserve(path, array.shape, array.dtype)
        data = _bytes_of(array)
        layout.fill(path, data)
        entries[key] = {
            "dtype": _dtype_name(array.dtype, key),
            "shape": list(array.shape),
            "offset": offset + userblock.SIZE if data else 0,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    _add_names(layout, snapshot)
    # Keys keep their order (a History's keys have one), so the text is not sorted.
    manifest = json.dumps(
        {
            "version": FORMAT,
            "step": snapshot.step,
            "epoch": snapshot.epoch,
            "created": created,
            "state": snapshot.state,
            "links": snapshot.links,
            "attributes": snapshot.attributes,
            "arrays": entries,
        },
        separators=(",", ":"),
    ).encode("ascii")
    if len(manifest) > MANIFEST_BYTES_MAX:
        raise ValueError(f"its manifest takes {len(manifest)} bytes, at most {MANIFEST_BYTES_MAX}")
    offset = layout.reserve(_MANIFEST, (len(manifest),), np.dtype(np.uint8))
    layout.fill(_MANIFEST, memoryview(manifest))
    layout.close()
    return layout, (offset + userblock.SIZE, len(manifest))


def _add_names(layout: Any, snapshot: Snapshot) -> None:
    for path, key in snapshot.links.items():
        if f"{path}/".startswith((f"{_ARRAYS}/", f"{_MANIFEST}/")):
            raise ValueError(f"the link '{path}' lies where the runner keeps its own")
        layout.link(path, f"{_ARRAYS}/{key}")
    for key, array in snapshot.arrays.items():
        if array.dtype.name == "bfloat16":  # the mark by which Keras knows these bytes
            layout.annotate(f"{_ARRAYS}/{key}", {"dtype": "bfloat16"})
    for path, attributes in snapshot.attributes.items():
        layout.annotate(path, attributes)


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _dtype_name(dtype: np.dtype[Any], key: str) -> str:
    name = dtype.name if dtype.isbuiltin == 2 else dtype.str
    if not _is_known(name):
        raise TypeError(f"array '{key}' has the dtype {dtype}, which is not a plain number")
    return name


def _is_known(name: str) -> bool:
    return bool(_DTYPE.fullmatch(name) or _FOREIGN_DTYPE.fullmatch(name))


def _best_of(state: dict[str, Any]) -> dict[str, Any]:
    """Say what the header tells of a best model, where the state names one and it fits."""
    best = state.get("best")
    if not isinstance(best, dict):
        return {}
    metric, mode, value = best.get("metric"), best.get("mode"), best.get("value")
    fits = isinstance(metric, str) and len(json.dumps(metric)) <= _METRIC_MAX and mode in ("min", "max")
    if not fits or not isinstance(value, float) or not math.isfinite(value):
        return {}
    return {"metric": metric, "mode": mode, "value": value}


def describe(path: Path) -> Info:
    """Read what a checkpoint says of itself: its first 512 bytes and its size, nothing of the rest.

    Raises:
        BadCheckpointError: the header is damaged, or the file's size is not what it says.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        return _header(fd, path)


def read(path: Path) -> Snapshot:
    """Read a checkpoint, every digest checked; arrays are writable and own their memory.

    Raises:
        BadCheckpointError: any byte is not as it was written, or the format is unknown.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        manifest, entries = _checked(fd, path)
        arrays = {key: _load(fd, entry, key, path) for key, entry in entries.items()}
    return Snapshot(
        step=manifest["step"],
        epoch=manifest["epoch"],
        state=manifest["state"],
        arrays=arrays,
        links=manifest["links"],
        attributes=manifest["attributes"],
    )


def verify(path: Path) -> Info:
    """Check everything: the digests, and that HDF5 finds the same arrays under the same names.

    Raises:
        BadCheckpointError: something is not as it was written.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        info = _header(fd, path)
        manifest, entries = _checked(fd, path)
        for key, entry in entries.items():
            _check_array(_digest(fd, entry.offset, entry.size, path), entry, key, path)
    try:
        _check_hdf5(path, info, manifest["links"], entries)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise bad(path, f"HDF5 does not see it as it was written ({error})") from error
    return info


def _check_hdf5(path: Path, info: Info, links: dict[str, str], entries: dict[str, _Entry]) -> None:
    import h5py

    from runner.storage.hdf5layout import dataset

    with h5py.File(path, "r", locking=False) as file:
        # Whether offsets count the user block differs between versions of HDF5: the manifest's tells.
        shift = info.manifest_offset - dataset(file, _MANIFEST).id.get_offset()
        for key, entry in entries.items():
            found = dataset(file, f"{_ARRAYS}/{key}")
            offset = (found.id.get_offset() or 0) + shift if entry.size else 0
            seen = found.shape, offset, found.id.get_storage_size()
            if seen != (entry.shape, entry.offset, entry.size):
                raise ValueError(f"array '{key}' lies elsewhere")
        for link, key in links.items():
            if dataset(file, link) != dataset(file, f"{_ARRAYS}/{key}"):
                raise ValueError(f"'{link}' is not array '{key}'")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise bad(path, "it is no regular file")
        yield fd
    finally:
        os.close(fd)


def _header(fd: int, path: Path) -> Info:
    info = userblock.parse(os.pread(fd, userblock.SIZE, 0), path)
    size = os.fstat(fd).st_size
    if size != info.size_bytes:
        raise bad(path, f"it has {size} bytes where its header says {info.size_bytes}")
    return info


def _checked(fd: int, path: Path) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Check the whole file's digest, then parse the manifest."""
    info = _header(fd, path)
    if _digest(fd, userblock.SIZE, info.size_bytes - userblock.SIZE, path) != info.sha256:
        raise bad(path, "its bytes do not match its digest")
    if info.manifest_size > MANIFEST_BYTES_MAX:
        raise bad(path, f"its manifest has {info.manifest_size} bytes, at most {MANIFEST_BYTES_MAX}")
    text = bytearray(info.manifest_size)
    _read_into(fd, memoryview(text), info.manifest_offset, path)
    try:
        manifest = json.loads(text)
        return manifest, _entries(manifest, info)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise bad(path, f"its manifest cannot be understood ({error})") from None


def _entries(manifest: dict[str, Any], info: Info) -> dict[str, _Entry]:
    if (manifest["version"], manifest["step"], manifest["epoch"]) != (FORMAT, info.step, info.epoch):
        raise ValueError("it is of another step, epoch or format than the header")
    for name in ("state", "links", "attributes", "arrays"):
        if not isinstance(manifest[name], dict):
            raise TypeError(f"'{name}' is no object")
    if not all(key in manifest["arrays"] for key in manifest["links"].values()):
        raise ValueError("a link names no array")
    entries = {key: _entry(raw, info.size_bytes) for key, raw in manifest["arrays"].items()}
    if sum(entry.size for entry in entries.values()) > info.size_bytes:
        raise ValueError("its arrays are larger than the file")
    return entries


def _entry(raw: dict[str, Any], file_size: int) -> _Entry:
    shape, offset = tuple(raw["shape"]), raw["offset"]
    if len(shape) > _RANK_MAX or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, offset)):
        raise ValueError("an array has an impossible shape or offset")
    entry = _Entry(_dtype(raw["dtype"]), shape, offset, str(raw["sha256"]))
    if offset + entry.size > file_size:
        raise ValueError("an array ends outside the file")
    return entry


def _dtype(name: str) -> np.dtype[Any]:
    if not _is_known(name):
        raise ValueError(f"unknown dtype {name!r:.40}")
    if _DTYPE.fullmatch(name):
        return np.dtype(name)
    import ml_dtypes  # comes with Keras

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def _load(fd: int, entry: _Entry, key: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.empty(entry.shape, entry.dtype)
    except ValueError as error:
        raise bad(path, f"array '{key}': {error}") from None
    data = _bytes_of(array)
    _read_into(fd, data, entry.offset, path)
    _check_array(hashlib.sha256(data).hexdigest(), entry, key, path)
    return array


def _check_array(digest: str, entry: _Entry, key: str, path: Path) -> None:
    if digest != entry.sha256:
        raise bad(path, f"array '{key}' does not match its digest")


def _read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    while view:
        got = os.preadv(fd, [view[:_PIECE]], offset)
        if got == 0:
            raise bad(path, "it ended while it was being read")
        view, offset = view[got:], offset + got


def _digest(fd: int, offset: int, size: int, path: Path) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(_PIECE, size)))
    while size:
        part = piece[: min(len(piece), size)]
        _read_into(fd, part, offset, path)
        digest.update(part)
        offset, size = offset + len(part), size - len(part)
    return digest.hexdigest()
