"""Steps per second under the runner, as a share of the plain script's: paired runs, medians.

    python benchmarks/bench_step_overhead.py [--pairs 7]

The script trains a small dense model on data of the size of scikit-learn's digits, at about half a
millisecond a step; it times its own `fit` without the first epoch (tracing). "never": instrumented, no
checkpoint is due; "auto": the default cadence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BOOTSTRAP = Path(__file__).parent.parent / "runner" / "training" / "bootstrap.py"
SCRIPT = """
import time
import keras
import numpy as np

keras.utils.set_random_seed(1)
x = np.random.rand(1440, 64).astype("float32")
y = np.random.randint(0, 10, 1440)
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])


class Clock(keras.callbacks.Callback):
    async_safe = True
    began = None

    def on_epoch_end(self, epoch, logs=None):
        self.began = self.began or time.perf_counter()
        self.ended = time.perf_counter()


clock = Clock()
epochs = 150
held_out = (x[:360], y[:360])
model.fit(x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=[clock], validation_data=held_out)
print("STEPS/S", (epochs - 1) * 45 / (clock.ended - clock.began))
"""
MODES = {"plain": None, "never": {"unit": "steps", "count": 1e12}, "auto": {"unit": "auto", "count": 0.0}}


def steps_per_s(root: Path, every: dict | None) -> float:
    """Run the script once, plain (None) or under the bootstrap."""
    job, state = root / "jobs" / "j", root / "state" / "j"
    attempt = state / "attempts" / "0001"
    for folder in (job, attempt):
        folder.mkdir(parents=True)
    (job / "train.py").write_text(SCRIPT)
    launch = {
        "version": 1, "job": "j", "attempt": 1, "state": str(state), "cwd": str(job), "grace_s": 30.0,
        "seed": 1, "threads": 1, "entry": "train.py", "args": [], "from": None,
        "checkpoint": {"every": every, "keep": 3, "monitor": None, "mode": "auto", "best": "best.weights.h5"},
    }  # fmt: skip
    (attempt / "launch.json").write_text(json.dumps(launch))
    environ = {
        **os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
        "RUNNER_STATE": str(state), "RUNNER_ATTEMPT": "1", "RUNNER_JOB": "j",
    }  # fmt: skip
    command = [sys.executable, "train.py" if every is None else str(BOOTSTRAP)]
    done = subprocess.run(command, cwd=job, env=environ, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the script failed ({done.returncode}):\n{done.stderr}")
    return float(done.stdout.split("STEPS/S")[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(pairs):
        for mode, every in MODES.items():
            with tempfile.TemporaryDirectory() as root:
                rates[mode].append(steps_per_s(Path(root), every))
    print(f"plain: {statistics.median(rates['plain']):.0f} steps/s (median of {pairs})")
    for mode in ("never", "auto"):
        ratios = sorted(ours / plain for ours, plain in zip(rates[mode], rates["plain"], strict=True))
        print(f"{mode}: {statistics.median(ratios):.3f} of plain (from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
