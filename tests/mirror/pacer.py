"""A resumable worker that writes real checkpoints without Keras: `pacer.py TARGET [PAUSE_S] [--size BYTES]`.

It goes on from the newest checkpoint that it finds, keeps as many as its job says, and writes a best model at
every third step. In `trace` it leaves, for each start: attempt, seed, first step.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from runner.storage import checkpoint, durable
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths

target, pause_s = int(sys.argv[1]), float(sys.argv[2])
size = int(sys.argv[sys.argv.index("--size") + 1]) if "--size" in sys.argv else 4096
paths = JobPaths(Path(os.environ["RUNNER_STATE"]))
attempt = paths.attempt(int(os.environ["RUNNER_ATTEMPT"]))
launch = json.loads(attempt.launch.read_text())
stop = False


def on_term(*_: object) -> None:
    global stop
    stop = True


def report(**fact: object) -> None:
    with attempt.facts.open("a") as out:
        out.write(json.dumps(fact) + "\n")


def save(path: Path, step: int, **state: object) -> None:
    path.parent.mkdir(exist_ok=True)
    weights = np.random.default_rng(step).random(size // 8)
    checkpoint.write(path, Snapshot(step, 0, dict(state), {"variables/0": weights}), created="now")


signal.signal(signal.SIGTERM, on_term)
found = paths.list_checkpoints()
step = checkpoint.read(found[-1][1]).step if found else 0
if step:
    report(event="resumed", path=f"checkpoints/{paths.checkpoint(step).name}", step=step, epoch=0, exact=True)
with Path("trace").open("a") as trace:
    trace.write(f"{launch['attempt']} {launch['seed']} {step}\n")
while step < target and not stop:
    time.sleep(pause_s)
    step += 1
    if step % 3 == 0:
        best = {
            "metric": "loss",
            "mode": "min",
            "value": 1 / step,
            "epoch": 0,
            "step": step,
            "file": "b.weights.h5",
        }
        save(paths.best / "b.weights.h5", step, best=best)
        durable.write(paths.best / "best.json", json.dumps({"version": 1, **best}).encode())
    save(paths.checkpoint(step), step)
    report(event="checkpoint", path=f"checkpoints/{paths.checkpoint(step).name}", step=step, epoch=0)
    for _, old in paths.list_checkpoints()[: -launch["checkpoint"]["keep"]]:
        old.unlink()
sys.exit(75 if stop else 0)
