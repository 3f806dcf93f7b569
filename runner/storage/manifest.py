"""The manifest of a checkpoint: JSON that says what its arrays are and where they lie, and holds the state.

It comes from a file that may be forged: nothing it says is believed that the file's size does not bear out.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.storage.userblock import FORMAT, Info

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot

#: A larger one is neither written nor read.
BYTES_MAX = 64 * 1024 * 1024

_ROOM = 4096  # its place in the file is a multiple of this, so that one plan serves while it grows a little
_RANK_MAX = 32
_DTYPE = re.compile(r"\|b1|[|<>][iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)")
_FOREIGN_DTYPE = re.compile(r"bfloat16|float(8|6|4)_[a-z0-9_]+|u?int[124]")


@dataclass(frozen=True)
class Entry:
    """Where an array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    sha256: str = ""  #: in format 1 only: the whole file's digest covers it

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Constant(dict[str, Any]):
    """A dict that nobody changes any more: its JSON is made once, however many manifests it is in."""

    json = ""


class ConstantList(list[Any]):
    """A list that nobody changes any more."""

    json = ""


def render(
    snapshot: Snapshot, created: str, arrays: Mapping[str, np.ndarray[Any, Any]], offsets: Mapping[str, int]
) -> bytes:
    """Return the manifest, padded with blanks to whole pages.

    Args:
        snapshot: whose it is.
        created: the time, for people.
        arrays: the snapshot's, in C order.
        offsets: of each array in the file.

    Raises:
        ValueError, TypeError, RecursionError: the state cannot be told in JSON, or is too large.
    """
    # Keys keep their order (a History's keys have one), so the text is not sorted.
    parts = {
        "version": _json(FORMAT),
        "step": _json(snapshot.step),
        "epoch": _json(snapshot.epoch),
        "created": _json(created),
        "state": _object({key: _json(value) for key, value in snapshot.state.items()}),
        "links": _json(snapshot.links),
        "attributes": _json(snapshot.attributes),
        "arrays": _object({key: _entry_json(key, array, offsets[key]) for key, array in arrays.items()}),
    }
    text = _object(parts).encode("ascii")
    if len(text) > BYTES_MAX:
        raise ValueError(f"its manifest takes {len(text)} bytes, at most {BYTES_MAX}")
    return text.ljust(-(-len(text) // _ROOM) * _ROOM)


def _json(value: Any) -> str:
    if isinstance(value, Constant | ConstantList):
        value.json = value.json or _dumps(value)
        return value.json
    return _dumps(value)


_dumps = json.JSONEncoder(separators=(",", ":")).encode


def _object(parts: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{_dumps(str(key))}:{text}" for key, text in parts.items()) + "}"


def _entry_json(key: str, array: np.ndarray[Any, Any], offset: int) -> str:
    shape = ",".join(map(str, array.shape))
    return f'{{"dtype":{_dumps(dtype_name(array.dtype, key))},"shape":[{shape}],"offset":{offset}}}'


def parse(text: bytes | bytearray, info: Info) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Read a manifest whose digest is right; return it and where each array lies, in its order.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: it cannot be one of this file.
    """
    manifest = json.loads(text)
    if (manifest["version"], manifest["step"], manifest["epoch"]) != (info.format, info.step, info.epoch):
        raise ValueError("it is of another step, epoch or format than the header")
    for name in ("state", "links", "attributes", "arrays"):
        if not isinstance(manifest[name], dict):
            raise TypeError(f"'{name}' is no object")
    if not all(key in manifest["arrays"] for key in manifest["links"].values()):
        raise ValueError("a link names no array")
    entries = {key: _entry(raw, info) for key, raw in manifest["arrays"].items()}
    in_order = sorted((entry for entry in entries.values() if entry.size), key=lambda entry: entry.offset)
    for one, other in itertools.pairwise(in_order):
        if one.offset + one.size > other.offset:
            raise ValueError("two arrays lie in the same place")
    return manifest, entries


def _entry(raw: dict[str, Any], info: Info) -> Entry:
    shape, offset = tuple(raw["shape"]), raw["offset"]
    if len(shape) > _RANK_MAX or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, offset)):
        raise ValueError("an array has an impossible shape or offset")
    entry = Entry(_dtype(raw["dtype"]), shape, offset, str(raw["sha256"]) if info.format == 1 else "")
    if offset + entry.size > info.size_bytes:
        raise ValueError("an array ends outside the file")
    return entry


def dtype_name(dtype: np.dtype[Any], key: str) -> str:
    """Return a dtype as the manifest names it.

    Raises:
        TypeError: it is not of plain numbers.
    """
    name = _name(dtype)
    if not name:
        raise TypeError(f"array '{key}' has the dtype {dtype}, which is not a plain number")
    return name


@functools.lru_cache(64)  # of each array of each snapshot it is asked again
def _name(dtype: np.dtype[Any]) -> str:
    name = dtype.name if dtype.isbuiltin == 2 else dtype.str
    return name if _is_known(name) else ""


def _dtype(name: str) -> np.dtype[Any]:
    if not _is_known(name):
        raise ValueError(f"unknown dtype {name!r:.40}")
    if _DTYPE.fullmatch(name):
        return np.dtype(name)
    import ml_dtypes  # comes with Keras

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def _is_known(name: str) -> bool:
    return bool(_DTYPE.fullmatch(name) or _FOREIGN_DTYPE.fullmatch(name))
