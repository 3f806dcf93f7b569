"""What the scripts under test share: dying at chosen moments, and a digest of everything that counts.

An ordinary script could do all this: nothing here knows of the runner but `until_saved`.
"""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

import keras
import numpy as np


def wanted(name):
    """Whether a run does this training: the script's arguments name those that it does, or it does all."""
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    return not named or name in named


def moments():
    """Return where each life ends, as KILL says: "a/train:5 b/test:2" is the n-th such moment of a fit.

    "a/train:5@4" waits until the checkpoint of step 4 is on the disk, so that the next life resumes from it
    (steps count on from fit to fit); with KILL_SAVED, each waits until there is one that its fit has taken.
    """
    return os.environ.get("KILL", "").split()


def saved_step():
    """Return of which step the newest checkpoint on the disk is; -1 where there is none."""
    folder = Path(os.environ.get("RUNNER_STATE", "."), "checkpoints")
    return max((int(path.name[5:17]) for path in folder.glob("step-*.weights.h5")), default=-1)


def until_saved(step):
    """Wait until a checkpoint of `step` or later is on the disk."""
    deadline = time.monotonic() + 60
    while saved_step() < step:
        if time.monotonic() > deadline:
            print(f"no checkpoint of step {step} came", file=sys.stderr, flush=True)
            os._exit(97)
        time.sleep(0.01)


class Mortal(keras.callbacks.Callback):
    """Dies by SIGKILL at the moments that KILL names, one in each life."""

    lives = Path("lives.txt")

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.counts = {}

    def reach(self, kind):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        lived = int(self.lives.read_text()) if self.lives.exists() else 0
        plan = moments()
        moment, _, saved = plan[lived].partition("@") if lived < len(plan) else ("", "", "")
        if moment == f"{self.name}/{kind}:{self.counts[kind]}":
            newer = int(os.environ["SAVED_BEFORE"]) + 1 if "KILL_SAVED" in os.environ else -1
            until_saved(int(saved or newer))
            self.lives.write_text(str(lived + 1))
            os.kill(os.getpid(), 9)

    def on_train_begin(self, logs=None):
        os.environ["SAVED_BEFORE"] = str(saved_step())  # no resume puts it back
        self.reach("start")

    def on_epoch_begin(self, epoch, logs=None):
        self.reach("begin")

    def on_train_batch_end(self, batch, logs=None):
        self.reach("train")

    def on_test_batch_end(self, batch, logs=None):
        self.reach("test")

    def on_epoch_end(self, epoch, logs=None):
        self.reach("end")


def digest(model, history, *more):
    """Say everything that a training leaves behind in a few letters."""
    sha = hashlib.sha256()
    variables = [*model.variables, *model.metrics_variables]
    if model.optimizer is not None:
        variables += model.optimizer.variables
    for variable in variables:
        sha.update(np.ascontiguousarray(variable.numpy()).tobytes())
    sha.update(repr((history.epoch, history.history, sorted(history.params))).encode())
    sha.update(
        repr((random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2:])).encode()
    )
    sha.update(repr(more).encode())
    return sha.hexdigest()[:20]


def say(name, model, history, *more):
    print("RESULT", name, digest(model, history, *more), repr(history.history["loss"][-1]), flush=True)
