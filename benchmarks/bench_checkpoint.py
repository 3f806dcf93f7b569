"""Saving and reading a checkpoint, beside Keras's `save_weights` and `load_weights` on the same numbers.

Ours is durable (fsync of file and folder), carries digests, and was read back and verified when `write`
returns; Keras's is none of these. The rounds alternate, so that both meet the same disk and neighbours.

Usage: python benchmarks/bench_checkpoint.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot

SIDES = {"1 M": 1000, "10 M": 3162}


def model_of(side: int) -> Any:
    """A model of about side x side parameters, and Adam's two values for each."""
    import keras

    model = keras.Sequential([keras.Input((side,)), keras.layers.Dense(side)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def snapshot_of(weights: Path) -> Snapshot:
    """Take the same numbers under the same names out of Keras's own file."""
    arrays: dict[str, np.ndarray] = {}
    links: dict[str, str] = {}

    def visit(path: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            links[path] = f"variables/{len(arrays):05d}"
            arrays[links[path]] = found[()]

    with h5py.File(weights, "r") as file:
        file.visititems(visit)
    return Snapshot(1, 0, {}, arrays, links)


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes, all dirty pages written before it."""
    os.sync()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bench(label: str, side: int, rounds: int, folder: Path) -> None:
    """Print one size's table."""
    model, own, ours = model_of(side), folder / "own.weights.h5", folder / "ours.weights.h5"
    model.save_weights(own)
    snapshot = snapshot_of(own)
    actions: dict[str, Callable[[], object]] = {
        "keras save_weights": lambda: model.save_weights(own),
        "checkpoint.write": lambda: checkpoint.write(ours, snapshot, created=""),
        "checkpoint.verify": lambda: checkpoint.verify(ours),
        "keras load_weights": lambda: model.load_weights(own),
        "checkpoint.read": lambda: checkpoint.read(ours),
        "keras load of ours": lambda: model.load_weights(ours),
    }
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            seconds = timed(action)
            if turn:  # the first one warms up
                taken[name].append(seconds)
    megabytes = ours.stat().st_size / 1e6
    print(f"\n{label} parameters with Adam: {megabytes:.0f} MB, medians of {rounds}")
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"  {name:20s} {1000 * middle:8.1f} ms {megabytes / middle:8.0f} MB/s")
    for one, other in (("checkpoint.write", "keras save_weights"), ("checkpoint.read", "keras load_weights")):
        ratio = statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))
        print(f"  {one} / {other}: {ratio:.2f}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for label, side in SIDES.items():
            bench(label, side, rounds, Path(folder))


if __name__ == "__main__":
    main()
