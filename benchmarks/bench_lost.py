"""Training time that is lost when the worker is killed: the steps since its last snapshot, in seconds.

An ordinary Keras script, with the settings as they are by default, is killed by SIGKILL at random moments.
It notes each step in a shared page, so that the last one before the kill is known; where the next attempt
resumes is in its facts. Beside it: what would have been lost with checkpoints on the disk alone, as they were
made by the cadence in the same run.

Usage: python benchmarks/bench_lost.py [KILLS]
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runner.storage.layout import Home, JobPaths
from runner.supervisor.traces import read_identity

SEED = 20261121
#: Between two looks at the page, for a step's time to be told.
STEPS_MIN = 100
SCRIPT = """
import mmap, struct, time
import keras
import numpy as np

keras.utils.set_random_seed(1)
with open("page", "r+b") as file:
    page = mmap.mmap(file.fileno(), 16)


class Note(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        page[:16] = struct.pack("=qd", int(self.model.optimizer.iterations), time.monotonic())


x, y = np.random.rand(32 * 500, 64).astype("float32"), np.random.randint(0, 10, 32 * 500)
model = keras.Sequential([
    keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)
])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
some = (x[:320], y[:320])
model.fit(x, y, batch_size=32, epochs=100_000, verbose=0, callbacks=[Note()], validation_data=some)
"""


def facts(paths: JobPaths, attempt: int, event: str) -> list[dict[str, Any]]:
    """Read what one attempt reported."""
    with contextlib.suppress(FileNotFoundError):
        lines = paths.attempt(attempt).facts.read_text().splitlines()
        return [fact for line in lines if (fact := json.loads(line))["event"] == event]
    return []


def wait_for(what: Any, timeout_s: float = 120.0) -> Any:
    """Wait until something is there; return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise SystemExit("it never came")
        time.sleep(0.01)
    return found


def measure(home: Home, page: mmap.mmap, kills: int) -> tuple[list[float], list[float], float]:
    """Kill again and again; return seconds lost, seconds since the last checkpoint, and a step's seconds."""
    chance, paths = random.Random(SEED), home.job("bench")
    lost, disk, pace_s, resumed_before = [], [], [], 0
    for attempt in range(1, kills + 1):
        wait_for(lambda a=attempt: any(f["phase"] == "train" for f in facts(paths, a, "phase")))
        first, first_s = struct.unpack("=qd", page[:16])
        time.sleep(chance.uniform(1.0, 6.0))
        worker = read_identity(paths.attempt(attempt), "worker")
        assert worker is not None
        written = [fact["step"] for fact in facts(paths, attempt, "checkpoint")]
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.05)
        last, last_s = struct.unpack("=qd", page[:16])
        resumed = wait_for(lambda a=attempt: facts(paths, a + 1, "resumed"))[0]["step"]
        if last - first > STEPS_MIN:  # else the page still held what the attempt before had noted
            pace_s.append((last_s - first_s) / (last - first))
        lost.append(last - resumed)
        disk.append(last - max([resumed_before, *written]))
        resumed_before = resumed
    step_s = statistics.median(pace_s)
    return [steps * step_s for steps in lost], [steps * step_s for steps in disk], step_s


def main(kills: int) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        job = home.folder("bench")
        job.mkdir(parents=True)
        (job / "train.py").write_text(SCRIPT)
        (job / "page").write_bytes(bytes(16))
        (job / ".submitted.json").write_text('{"version": 1, "source": null}')
        with (job / "page").open("r+b") as file:
            page = mmap.mmap(file.fileno(), 16)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "runner.supervisor", "--home", folder], stderr=subprocess.DEVNULL
        )
        try:
            lost_s, disk_s, step_s = measure(home, page, kills)
        finally:
            daemon.terminate()
            daemon.wait()
    print(f"training lost by SIGKILL of the worker, {kills} kills, steps of {1000 * step_s:.1f} ms (seconds)")
    print(f"{'':24}{'median':>9}{'p90':>9}{'max':>9}")
    for name, values in (("lost", lost_s), ("since the checkpoint", disk_s)):
        p90 = statistics.quantiles(values, n=10)[-1]
        print(f"{name:24}{statistics.median(values):9.2f}{p90:9.2f}{max(values):9.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
