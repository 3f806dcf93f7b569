"""Checkpoints: one HDF5 file that Keras's `load_weights` takes as it is and that holds all a resume needs.

Promises (tested by failing, killing and flipping bytes everywhere):

- A file under its final name is whole: it was read back and verified before the rename (P1, P3).
- What `read` returns is what was written: one digest covers every byte after the user block, another the
  manifest, a third the user block; nothing is parsed before its digest is right, nothing returned before
  all are (P4).
- A hostile file cannot run code (JSON and raw numbers, no pickle), cannot point outside itself, and cannot
  make the reader allocate more than its own size for arrays. `read` does not even use the HDF5 library.

The file: a user block (`storage.userblock`), then an HDF5 file with every array, contiguous, at
`/runner/arrays/KEY`; Keras's own paths are hard links to them; `/runner/manifest` is JSON (as Python writes
it: NaN and Infinity are allowed) with the state and, for each array, its dtype, shape and offset. Files of
format 1 (a smaller user block, sha256, also of each array) are read for ever.

Limits: numbers only (bool, integers, floats, complex, at most 16 bytes, and those of ml_dtypes); in the
state, as always in JSON, tuples become lists and keys become strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runner.errors import StorageError
from runner.storage import blocks, digests, durable, manifest, userblock
from runner.storage.manifest import Entry
from runner.storage.userblock import Info, bad

if TYPE_CHECKING:
    from runner.storage.hdf5layout import Plan

_ARRAYS = "runner/arrays"
_MANIFEST = "runner/manifest"
_METRIC_MAX = 80  # a longer name is left out of the header
_PLANS_MAX = 8

__all__ = ["FORMAT", "Info", "Snapshot", "describe", "read", "read_state", "verify", "write"]
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

    @property
    def nbytes(self) -> int:
        """How many bytes the arrays have."""
        return sum(array.nbytes for array in self.arrays.values())


def write(path: Path, snapshot: Snapshot, *, created: str, still: Callable[[], None] = lambda: None) -> int:
    """Replace `path` durably by a checkpoint, verified before it appears; return its size in bytes.

    Args:
        path: its folder exists; `.weights.h5` at its end lets Keras load it.
        snapshot: its arrays must not change meanwhile.
        created: the time, for people.
        still: called before the file appears; what it raises prevents that.

    Raises:
        StorageError: the snapshot cannot be put into this format, or what was written does not verify.
        OSError: the disk failed; `path` is as it was.
    """
    try:
        arrays = {key: np.asarray(array, order="C") for key, array in snapshot.arrays.items()}
        plan, text = _planned(snapshot, arrays, created)
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        RecursionError,
        OSError,
    ) as error:  # no disk was touched
        raise StorageError(f"{path}: this snapshot cannot be stored as a checkpoint: {error}") from error
    data = {f"{_ARRAYS}/{key}": _bytes_of(array) for key, array in arrays.items()}
    data[_MANIFEST] = memoryview(text)

    def check(temporary: Path) -> None:
        _verify_new(temporary, plan)
        still()

    with durable.replacing(path, verify=check) as fd:
        writer = blocks.Writer(fd, userblock.SIZE, plan.size)
        for piece in plan.pieces(data):
            writer.write(piece)
        info = Info(
            step=snapshot.step,
            epoch=snapshot.epoch,
            created=created,
            digest=writer.finish(),
            size_bytes=userblock.SIZE + plan.size,
            manifest_offset=userblock.SIZE + plan.offset(_MANIFEST),
            manifest_size=len(text),
            manifest_digest=digests.of(text),
            **_best_of(snapshot.state),
        )
        durable.write_all(fd, userblock.render(info))  # the file's position is still its beginning
    return info.size_bytes


def _verify_new(temporary: Path, plan: Plan) -> None:
    """Read back what was written; HDF5 is asked once per plan, for it sees nothing but the plan."""
    verify(temporary, hdf5=not plan.checked)
    plan.checked = True


class _Structure(NamedTuple):
    """What a plan depends on, but for the manifest's size."""

    arrays: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
    links: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


#: Plans of the last structures: where the arrays lie, and a plan for each size of the manifest.
_plans: dict[_Structure, tuple[dict[str, int], dict[int, Plan]]] = {}
_plans_lock = threading.Lock()


def _planned(
    snapshot: Snapshot, arrays: Mapping[str, np.ndarray[Any, Any]], created: str
) -> tuple[Plan, bytes]:
    """Return where everything goes, and the manifest."""
    structure = _Structure(
        tuple((key, array.shape, array.dtype) for key, array in arrays.items()),
        tuple(snapshot.links.items()),
        tuple((path, tuple(found.items())) for path, found in snapshot.attributes.items()),
    )
    with _plans_lock:
        offsets, plans = _plans.get(structure, ({}, {}))
        if offsets or not arrays:
            text = manifest.render(snapshot, created, arrays, offsets)
            if len(text) in plans:
                return plans[len(text)], text
        plan, offsets, text = _lay_out(snapshot, created, arrays)
        while len(_plans) >= _PLANS_MAX:
            del _plans[next(iter(_plans))]
        # Of an older size of the manifest nothing more will be written: it only grows.
        _plans[structure] = offsets, {len(text): plan}
        return plan, text


def _lay_out(
    snapshot: Snapshot, created: str, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[Plan, dict[str, int], bytes]:
    """Lay the file out; return the plan, where the arrays lie in the file, and the manifest."""
    from runner.storage.hdf5layout import Layout  # here, so that reading needs no h5py

    layout = Layout()
    offsets = {}
    for key, array in arrays.items():
        offset = layout.reserve(f"{_ARRAYS}/{key}", array.shape, array.dtype)
        offsets[key] = offset + userblock.SIZE if array.size else 0
    _add_names(layout, snapshot)
    text = manifest.render(snapshot, created, arrays, offsets)
    layout.reserve(_MANIFEST, (len(text),), np.dtype(np.uint8))
    return layout.close(), offsets, text


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
    """Read what a checkpoint says of itself: its user block and its size, nothing of the rest.

    Raises:
        BadCheckpointError: the header is damaged, or the file's size is not what it says.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        return _header(fd, path)


def read(path: Path) -> Snapshot:
    """Read a checkpoint, every digest checked; its arrays are writable.

    Those of a large file lie in one piece of memory, as they do in the file: nothing is copied.

    Raises:
        BadCheckpointError: any byte is not as it was written, or the format is unknown.
        StorageError: its digest needs a package that is not installed.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        info = _header(fd, path)
        told, entries = _manifest(fd, info, path)
        arrays = _load(fd, info, entries, path)
    return Snapshot(told["step"], told["epoch"], told["state"], arrays, told["links"], told["attributes"])


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state; its arrays are not looked at. Raises as `read`."""
    with _opened(path) as fd:
        return dict(_manifest(fd, _header(fd, path), path)[0]["state"])


def verify(path: Path, *, hdf5: bool = True) -> Info:
    """Check everything: the digests and, if `hdf5`, that HDF5 finds the same arrays under the same names.

    Raises:
        BadCheckpointError: something is not as it was written.
        StorageError: its digest needs a package that is not installed.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        info = _header(fd, path)
        told, entries = _manifest(fd, info, path)
        if info.format > 1:
            _check_content(fd, info, path)
        for key, entry in entries.items() if info.format == 1 else ():
            _check_array(_sha256(fd, entry), entry, key, path)
    if hdf5:
        try:
            _check_hdf5(path, info, told["links"], entries)
        except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
            raise bad(path, f"HDF5 does not see it as it was written ({error})") from error
    return info


def _check_hdf5(path: Path, info: Info, links: dict[str, str], entries: dict[str, Entry]) -> None:
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
    info = userblock.parse(blocks.beginning(fd, userblock.SIZE), path)
    size = os.fstat(fd).st_size
    if size != info.size_bytes:
        raise bad(path, f"it has {size} bytes where its header says {info.size_bytes}")
    return info


def _manifest(fd: int, info: Info, path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Read the manifest once its digest is right; in format 1 that is the whole file's."""
    if info.format == 1:
        _check_content(fd, info, path)
    if info.manifest_size > manifest.BYTES_MAX:
        raise bad(path, f"its manifest has {info.manifest_size} bytes, at most {manifest.BYTES_MAX}")
    text = bytearray(info.manifest_size)
    _read_into(fd, memoryview(text), info.manifest_offset, path)
    try:
        algorithm = info.manifest_digest.partition(":")[0] or "none"
        if info.format > 1 and digests.of(bytes(text), algorithm) != info.manifest_digest:
            raise bad(path, "its manifest does not match its digest")
        return manifest.parse(text, info)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise bad(path, f"its manifest cannot be understood ({error})") from None


def _check_content(fd: int, info: Info, path: Path) -> None:
    start = userblock.SIZES[info.format]
    digest = _begun(info, path)
    for piece in blocks.read(fd, start, info.size_bytes - start):
        digest.update(piece)
    _check_digest(digest, info, path)


def _begun(info: Info, path: Path) -> digests.Digest:
    try:
        return digests.new(info.digest.partition(":")[0] or "none")
    except ValueError as error:
        raise bad(path, f"its header names an {error}") from None


def _check_digest(digest: digests.Digest, info: Info, path: Path) -> None:
    if digest.hexdigest() != info.digest.partition(":")[2]:
        raise bad(path, "its bytes do not match its digest")


def _load(fd: int, info: Info, entries: dict[str, Entry], path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays, in one pass over the file (two in format 1), once all digests are right."""
    if info.format == 1:
        return {key: _load_alone(fd, entry, key, path) for key, entry in entries.items()}
    digest, start = _begun(info, path), userblock.SIZES[info.format]
    size = info.size_bytes - start
    content = blocks.memory(size)
    for piece in blocks.load(fd, start, size, content):
        digest.update(piece)
    _check_digest(digest, info, path)
    return {key: _placed(content, entry, start, key, path) for key, entry in entries.items()}


def _load_alone(fd: int, entry: Entry, key: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.empty(entry.shape, entry.dtype)
    except ValueError as error:
        raise bad(path, f"array '{key}': {error}") from None
    data = _bytes_of(array)
    _read_into(fd, data, entry.offset, path)
    _check_array(hashlib.sha256(data).hexdigest(), entry, key, path)
    return array


def _placed(content: memoryview, entry: Entry, start: int, key: str, path: Path) -> np.ndarray[Any, Any]:
    """Return an array where it lies in the file's content; a copy where that is small, or not aligned."""
    try:
        if not entry.size:
            return np.empty(entry.shape, entry.dtype)
        data = np.frombuffer(content, np.uint8, entry.size, entry.offset - start)
        array = data.view(entry.dtype).reshape(entry.shape)
    except ValueError as error:
        raise bad(path, f"array '{key}': {error}") from None
    large = len(content) >= blocks.DIRECT_BYTES_MIN and array.flags.aligned
    return array if large else array.copy()


def _check_array(sha256: str, entry: Entry, key: str, path: Path) -> None:
    if sha256 != entry.sha256:
        raise bad(path, f"array '{key}' does not match its digest")


def _read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    while view:
        got = os.preadv(fd, [view[: blocks.PIECE]], offset)
        if got == 0:
            raise bad(path, "it ended while it was being read")
        view, offset = view[got:], offset + got


def _sha256(fd: int, entry: Entry) -> str:
    digest = hashlib.sha256()
    for piece in blocks.read(fd, entry.offset, entry.size):
        digest.update(piece)
    return digest.hexdigest()
