"""What exactness rests on besides the checkpoint: versions, processor, threads, flags, source, data."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.training.datasets import walk

#: Data above this size are sampled rather than read whole.
_WHOLE_BYTES_MAX = 256 << 20
#: Environment that decides about bits: the backend, oneDNN, XLA, determinism, the GPU's arithmetic.
_FLAGS = (
    "KERAS_BACKEND",
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "TF_DETERMINISTIC_OPS",
    "TF_CUDNN_DETERMINISTIC",
    "NVIDIA_TF32_OVERRIDE",
)
#: Of the processor's flags, those by which kernels are chosen.
_FEATURES = ("sse4", "avx", "fma", "amx", "bf16", "vnni", "f16c", "asimd", "sve")


def machine() -> dict[str, Any]:
    """Return what of machine and installation decides about bits."""
    versions = {
        name: getattr(sys.modules.get(name), "__version__", None) for name in ("keras", "tensorflow", "numpy")
    }
    model, features = _cpu()
    return {
        **versions,
        "python": platform.python_version(),
        "cpu": model,
        "cpu features": features,
        "accelerators": accelerators(),
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS"),
        "hash seed": os.environ.get("PYTHONHASHSEED"),
        "precision": _keras("dtype_policy"),
        "float": _keras("floatx"),
        "op determinism": _op_determinism(),
        "flags": {name: os.environ.get(name) for name in _FLAGS},
    }


@functools.cache
def _cpu() -> tuple[str, list[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), []
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    flags = (first.get("flags") or first.get("Features") or "").split()
    model = first.get("model name") or platform.machine()
    return model, sorted(flag for flag in flags if flag.startswith(_FEATURES) or flag.endswith(_FEATURES))


def accelerators(kind: str = "GPU") -> list[str]:
    """Name the devices of a kind that TensorFlow uses."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return []
    details = tensorflow.config.experimental.get_device_details
    return [
        str(details(device).get("device_name", kind))
        for device in tensorflow.config.get_visible_devices(kind)
    ]


def _keras(what: str) -> str | None:
    """Return a setting of Keras's, by its name in `keras.config`."""
    config = getattr(sys.modules.get("keras"), "config", None)
    value = getattr(config, what, lambda: None)()
    return None if value is None else str(getattr(value, "name", value))


def _op_determinism() -> bool | None:
    module = sys.modules.get("tensorflow.python.framework.config")
    ask = getattr(module, "is_op_determinism_enabled", None)
    return None if ask is None else bool(ask())


def of(entry: Path | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that one call of `fit` rests on.

    Args:
        entry: the script.
        arguments: of the call, by name.
    """
    return {**machine(), "source": source(entry), "data": data(arguments)}


def source(path: Path | None) -> str | None:
    """Return the digest of the entry script."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else None
    except OSError:
        return None


def data(arguments: Mapping[str, Any]) -> str | None:
    """Return a digest of the data that a fit is given; None where none of it lies in memory.

    Arrays, tensors, data frames, and what `tf.data` datasets are made of (but for their ragged and sparse
    tensors). Above 256 MiB a sample of an array is taken: 256 pieces, evenly spread.

    Args:
        arguments: of the call of `fit`, by name.
    """
    from keras import tree

    total, found = 0, False
    for name in ("x", "y", "sample_weight", "validation_data"):
        for leaf in tree.flatten(arguments.get(name)):
            for array in _arrays_in(leaf):
                found = True
                total = zlib.crc32(f"{array.shape}{array.dtype}".encode(), total)
                for piece in _pieces(array):
                    total = zlib.crc32(piece, total)
    return f"{total:08x}" if found else None


def _arrays_in(value: Any) -> Iterator[np.ndarray]:
    if hasattr(value, "element_spec") and hasattr(value, "_inputs"):
        for one in walk(value):
            for tensor in getattr(one, "_tensors", ()):
                yield from _arrays_in(tensor)
        return
    if type(value).__name__ in {"RaggedTensor", "SparseTensor"}:
        for part in _parts(value):
            yield from _arrays_in(part)
        return
    if type(value).__name__ in {"DataFrame", "Series"} and hasattr(value, "to_numpy"):
        value = value.to_numpy()
    elif type(value).__name__ == "EagerTensor":
        if value.dtype.name in {"variant", "resource"}:  # so datasets keep ragged and sparse ones
            return
        value = getattr(value, "_numpy", value.numpy)()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield value


def _parts(value: Any) -> list[Any]:
    """Return the tensors that a ragged or sparse one consists of."""
    import tensorflow as tf

    return list(tf.nest.flatten(value, expand_composites=True))


def _pieces(array: np.ndarray) -> list[Any]:
    if array.nbytes <= _WHOLE_BYTES_MAX:
        return [np.ascontiguousarray(array).view(np.uint8).reshape(-1).data] if array.size else []
    count = max(1, array.shape[0] // 256)
    return [np.ascontiguousarray(array[i : i + 1]).view(np.uint8).data for i in range(0, len(array), count)]


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Name what differs between the checkpoint's fingerprint and the present one."""
    return [
        _difference(name, saved[name], present.get(name))
        for name in saved
        if name != "flags" and saved[name] is not None and saved[name] != present.get(name)
    ] + [
        _difference(name, value, present["flags"].get(name))
        for name, value in saved.get("flags", {}).items()
        if value != present.get("flags", {}).get(name)
    ]


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "source":
        return "the script has changed"
    if name == "data":
        return "the data have changed"
    if isinstance(before, list) and isinstance(now, list):
        gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
        parts = [f"without {' '.join(gone)}"] * bool(gone) + [f"with {' '.join(new)}"] * bool(new)
        return f"{name}: now {' and '.join(parts)}"
    return f"{name} was {before}, is {now}"
