"""Snapshots for tests: small ones of every kind of number, and how to compare them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from runner.storage.checkpoint import Snapshot

CREATED = "2026-01-02T03:04:05.678Z"


def every_kind() -> dict[str, np.ndarray[Any, Any]]:
    """An array of each dtype, shape and layout that a checkpoint may meet."""
    numbers = np.arange(6)
    plain = ["?", "u1", "i1", "u2", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16", ">i4", ">f8", ">c8"]
    foreign = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"]
    arrays = {f"plain/{name}": numbers.astype(np.dtype(name)) for name in plain}
    arrays |= {f"foreign/{name}": numbers.astype(getattr(ml_dtypes, name)) for name in foreign}
    return arrays | {
        "shape/scalar": np.array(1.5, np.float32),
        "shape/empty": np.zeros((0,), np.float32),
        "shape/hollow": np.zeros((3, 0, 2), ml_dtypes.bfloat16),
        "shape/deep": np.arange(64.0).reshape((1, 2) * 6),
        "layout/fortran": np.asfortranarray(numbers.reshape(2, 3)),
        "layout/strided": np.arange(20)[::3],
        "layout/reversed": np.arange(5.0)[::-1],
        "value/odd": np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324]),
    }


def small(step: int = 12, epoch: int = 3) -> Snapshot:
    """A snapshot of a few hundred bytes, with Keras's names; different for every step."""
    return Snapshot(
        step=step,
        epoch=epoch,
        state={"history": {"loss": [0.5, 0.25], "accuracy": [0.1]}, "seed": 2**63 + step},
        arrays={
            "variables/0": np.arange(6, dtype=np.float32).reshape(2, 3) + step,
            "variables/1": np.array([1, 2], ">i4"),
            "callbacks/0": np.array(step),
        },
        links={"layers/dense/vars/0": "variables/0", "layers/dense/vars/1": "variables/1"},
        attributes={"layers/dense/vars": {"name": "dense"}, "layers/dropout/vars": {"name": "dropout"}},
    )


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    """Compare two snapshots bit by bit."""
    assert (found.step, found.epoch) == (expected.step, expected.epoch)
    assert repr(found.state) == repr(expected.state)  # NaN included, and the order of keys
    assert (found.links, found.attributes) == (expected.links, expected.attributes)
    assert list(found.arrays) == list(expected.arrays)
    for key, array in expected.arrays.items():
        there = found.arrays[key]
        assert (there.dtype, there.shape) == (array.dtype, array.shape), key
        assert there.tobytes() == array.tobytes(), key
