"""What exactness rests on besides the checkpoint: versions, processor, threads, flags, source, data."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: Data above this size are sampled rather than read whole.
_WHOLE_BYTES_MAX = 256 << 20
_FLAGS = ("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "TF_DETERMINISTIC_OPS", "KERAS_BACKEND")


def machine() -> dict[str, Any]:
    """Return what of machine and installation decides about bits."""
    versions = {
        name: getattr(sys.modules.get(name), "__version__", None) for name in ("keras", "tensorflow", "numpy")
    }
    return {
        **versions,
        "python": platform.python_version(),
        "cpu": _cpu_digest(),
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS"),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
        "flags": {name: os.environ.get(name) for name in _FLAGS},
    }


def _cpu_digest() -> str:
    wanted = ("model name", "flags")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    text = "\n".join(first.get(key, "") for key in wanted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source(path: Path | None) -> str | None:
    """Return the digest of the entry script."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else None
    except OSError:
        return None


def arrays(adapter: Any) -> str | None:
    """Return a digest of the arrays a fit trains on; None where the data are no NumPy arrays.

    Above 256 MiB per array a sample of it is taken: 256 pieces of 64 KiB, evenly spread.
    """
    from keras.src import tree

    total = 0
    inputs = getattr(adapter, "_inputs", None)
    if inputs is None:
        return None
    for array in tree.flatten(inputs):
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            continue
        total = zlib.crc32(f"{array.shape}{array.dtype}".encode(), total)
        for piece in _pieces(array):
            total = zlib.crc32(piece, total)
    return f"{total:08x}"


def _pieces(array: np.ndarray) -> list[Any]:
    if array.nbytes <= _WHOLE_BYTES_MAX:
        return [np.ascontiguousarray(array).view(np.uint8).reshape(-1).data] if array.size else []
    count = max(1, array.shape[0] // 256)
    return [np.ascontiguousarray(array[i : i + 1]).view(np.uint8).data for i in range(0, len(array), count)]


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Name what differs between the checkpoint's fingerprint and the present one."""
    return [
        f"{name} was {saved[name]}, is {present.get(name)}"
        for name in saved
        if name != "flags" and saved[name] is not None and saved[name] != present.get(name)
    ] + [
        f"{name} was {value}, is {present['flags'].get(name)}"
        for name, value in saved.get("flags", {}).items()
        if value != present.get("flags", {}).get(name)
    ]
