"""Steps per second under the runner, as a share of the plain script's: pairs within one process, medians.

    python benchmarks/bench_step_overhead.py [--pairs 10] [--script digits|half-ms|20-ms ...] [--control]

"digits" is the job that is shipped, as it is; "half-ms" and "20-ms" are dense models with steps of about that
length. The script runs in the worker, under a shim; its `fit` is called again and
again, by turns past the instrumentation and through it (default cadence, best model kept afresh each time).
Taken is the time from the second epoch's beginning to the last's, less the first step of each epoch: there
TensorFlow starts its reading threads, and waits a tenth of a second or does not. Two processes with the same
work differ by a tenth in speed, for as long as they live; within one, and by turns, what is left is the
runner's own. With `--control` both are plain: what comes out then is what the machine makes of equals.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BOOTSTRAP = ROOT / "runner" / "training" / "bootstrap.py"
KEEPER = BOOTSTRAP.with_name("keeper.py")
SHIM = ROOT / "runner" / "supervisor" / "shim.py"
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
#: Stands before the script: makes of its one call of `fit` several, every other one instrumented.
DRIVER = """
import runpy
import shutil
import time

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

from runner.training import worker

here, instrumented, enumerate_iterator = worker.current(), keras.Model.fit, EpochIterator._enumerate_iterator
epochs, first_steps = [], []


def enumerated(self):
    if self is not getattr(model, "_eval_epoch_iterator", None):
        epochs.append(time.perf_counter())
        for number, item in enumerate(enumerate_iterator(self)):
            began = time.perf_counter()
            yield item
            if number == 0:
                first_steps.append(time.perf_counter() - began)
    else:
        yield from enumerate_iterator(self)


def fit(self, *args, **kwargs):
    global model
    model = self
    start = [w.copy() for w in self.get_weights()]
    for number in range(2 * PAIRS + 2):
        self.set_weights(start)
        shutil.rmtree(here.launch.paths.best, ignore_errors=True)
        here._best = here._fit_best = None
        plain = number % 4 in (0, 3)  # by turns of turns: a machine that gets slower favours neither
        here.looping = CONTROL or plain  # a fit inside a loop of the API's is left alone
        epochs.clear(), first_steps.clear()
        history = instrumented(self, *args, **kwargs)
        print("TOOK", epochs[-1] - epochs[1] - sum(first_steps[1:-1]), flush=True)
    return history


EpochIterator._enumerate_iterator = enumerated
keras.Model.fit = fit
runpy.run_path("script.py", run_name="__main__")
"""
#: name -> (script's text, None for the job that is shipped; arguments)
SCRIPTS: dict[str, tuple[str | None, list[str]]] = {
    "digits": (None, []),
    "half-ms": (DENSE.format(rows=32 * 450, units=128, depth=1, batch=32, epochs=12), []),
    "20-ms": (DENSE.format(rows=256 * 150, units=1024, depth=3, batch=256, epochs=8), []),
}
_LINE = re.compile(r"^TOOK (.+)$", re.MULTILINE)


def durations_s(root: Path, name: str, pairs: int, *, control: bool) -> list[float]:
    """Return how long each fit took from its second epoch to its last, plain and instrumented by turns."""
    text, args = SCRIPTS[name]
    job, state = root / "jobs" / "j", root / "state" / "j"
    attempt = state / "attempts" / "0001"
    for folder in (job, attempt):
        folder.mkdir(parents=True)
    (job / "script.py").write_text(text or (ROOT / "jobs" / name / "train.py").read_text())
    (job / "train.py").write_text(DRIVER.replace("PAIRS", str(pairs)).replace("CONTROL", str(control)))
    environ = {
        "TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
        "RUNNER_STATE": str(state), "RUNNER_ATTEMPT": "1", "RUNNER_JOB": "j", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    launch = {
        "version": 1, "job": "j", "attempt": 1, "state": str(state), "cwd": str(job), "grace_s": 30.0,
        "argv": [sys.executable, str(BOOTSTRAP)], "env": environ,
        "keeper": [sys.executable, "-I", str(KEEPER)],
        "seed": 1, "threads": 1, "entry": "train.py", "args": args, "from": None,
        "checkpoint": {
            "every": {"unit": "auto", "count": 0.0}, "keep": 3, "monitor": None, "mode": "auto",
            "best": "best.weights.h5",
        },
    }  # fmt: skip
    (attempt / "launch.json").write_text(json.dumps(launch))
    # The shim holds the job's lock, inherited as descriptor 3.
    words = shlex.join([sys.executable, "-I", "-S", str(SHIM), str(attempt)])
    subprocess.run(["bash", "-c", f"exec 3>{shlex.quote(str(state / '.lock'))}; exec {words}"], check=True)
    outcome, log = json.loads((attempt / "outcome.json").read_text()), (attempt / "log").read_text()
    if outcome["exit_code"] != 0:
        sys.exit(f"the script failed ({outcome}):\n{log}")
    return [float(took) for took in _LINE.findall(log)[2:]]  # the first two trace


def measure(name: str, pairs: int, *, control: bool) -> None:
    """Print the median of one script."""
    with tempfile.TemporaryDirectory() as root:
        took = durations_s(Path(root), name, pairs, control=control)
    # In the order ours, plain, plain, ours, ours and so on.
    pairs_of = list(zip(took[::2], took[1::2], strict=True))
    ratios = sorted(b / a if turn % 2 == 0 else a / b for turn, (a, b) in enumerate(pairs_of))
    print(
        f"{name}{' (plain against plain)' if control else ''}: {statistics.median(ratios):.3f} of plain"
        f" (median of {pairs} pairs, {ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--script", nargs="*", choices=sorted(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--control", action="store_true", help="compare the plain script with itself")
    options = parser.parse_args()
    for name in options.script:
        measure(name, options.pairs, control=options.control)


if __name__ == "__main__":
    main()
