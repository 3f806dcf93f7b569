"""Steps per second under the runner, as a share of the plain script's: paired runs, medians.

    python benchmarks/bench_step_overhead.py [--pairs 5] [--script digits|half-ms|20-ms ...]

"digits" is the job that is shipped, as it is; "half-ms" and "20-ms" are dense models with steps of about that
length. Each script prints "Epoch 2/N" and so on; the time from the second epoch's line to the last's is
taken from outside. The instrumented one saves by the default cadence.

The two of a pair run at the same time, each on its half of the cores, and then once more with the halves
exchanged; the geometric mean of the two ratios is one measurement. So neither a machine whose speed comes and
goes nor a core that is slower than its neighbour favours either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
BOOTSTRAP = ROOT / "runner" / "training" / "bootstrap.py"
DENSE = """
import keras
import numpy as np

keras.utils.set_random_seed(1)
x = np.random.rand({rows}, 64).astype("float32")
y = np.random.randint(0, 10, {rows})
layers = [keras.layers.Dense({units}, "relu") for _ in range({depth})]
model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dropout(0.2), keras.layers.Dense(10)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.fit(x, y, batch_size={batch}, epochs={epochs}, verbose=2, validation_data=(x[:{batch}], y[:{batch}]))
"""
#: name -> (script's text, None for the job that is shipped; arguments; steps in an epoch)
SCRIPTS: dict[str, tuple[str | None, list[str], int]] = {
    "digits": (None, ["--epochs", "40"], 36),
    "half-ms": (DENSE.format(rows=32 * 450, units=128, depth=1, batch=32, epochs=18), [], 450),
    "20-ms": (DENSE.format(rows=256 * 60, units=1024, depth=2, batch=256, epochs=12), [], 60),
}
AUTO = {"unit": "auto", "count": 0.0}
_EPOCH = re.compile(r"Epoch (\d+)/(\d+)")


def steps_per_s(root: Path, name: str, every: dict | None, cores: set[int]) -> float:
    """Run a script once, plain (None) or under the bootstrap, on these cores."""
    text, args, steps = SCRIPTS[name]
    job, state = root / "jobs" / "j", root / "state" / "j"
    attempt = state / "attempts" / "0001"
    for folder in (job, attempt):
        folder.mkdir(parents=True)
    if text is None:
        shutil.copy(ROOT / "jobs" / name / "train.py", job)
    else:
        (job / "train.py").write_text(text)
    launch = {
        "version": 1, "job": "j", "attempt": 1, "state": str(state), "cwd": str(job), "grace_s": 30.0,
        "seed": 1, "threads": 1, "entry": "train.py", "args": args, "from": None,
        "checkpoint": {"every": every, "keep": 3, "monitor": None, "mode": "auto", "best": "best.weights.h5"},
    }  # fmt: skip
    (attempt / "launch.json").write_text(json.dumps(launch))
    environ = {
        **os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
        "RUNNER_STATE": str(state), "RUNNER_ATTEMPT": "1", "RUNNER_JOB": "j", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command = [sys.executable, *(["train.py", *args] if every is None else [str(BOOTSTRAP)])]
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    seen: dict[int, float] = {}
    with (root / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=job, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if found := _EPOCH.match(line):
                seen[int(found[1])] = time.perf_counter()
    if process.wait() or len(seen) < 3:
        sys.exit(f"the script failed ({process.returncode}):\n{(root / 'errors').read_text()}")
    return (len(seen) - 2) * steps / (seen[len(seen)] - seen[2])


def ratio(name: str, plain_cores: set[int], our_cores: set[int]) -> float:
    """Return our steps per second as a share of the plain script's, run side by side."""
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        ThreadPoolExecutor(2) as threads,
    ):
        plain = threads.submit(steps_per_s, Path(one), name, None, plain_cores)
        ours = threads.submit(steps_per_s, Path(other), name, AUTO, our_cores)
        return ours.result() / plain.result()


def measure(name: str, pairs: int) -> None:
    """Print the median of one script."""
    cores = sorted(os.sched_getaffinity(0))
    halves = (set(cores[::2]), set(cores[1::2]))
    found = []
    for _ in range(pairs):
        found.append(math.sqrt(ratio(name, *halves) * ratio(name, *halves[::-1])))
        print(f"{name}: {found[-1]:.3f}", file=sys.stderr, flush=True)
    print(f"{name}: {statistics.median(found):.3f} of plain (from {min(found):.3f} to {max(found):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--script", nargs="*", choices=sorted(SCRIPTS), default=list(SCRIPTS))
    options = parser.parse_args()
    for name in options.script:
        measure(name, options.pairs)


if __name__ == "__main__":
    main()
