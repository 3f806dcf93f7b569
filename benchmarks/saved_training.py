"""A training that is saved now and then; `bench_savers.py` runs it once for each way of saving.

    python saved_training.py SAVER MILLIONS WINDOW SAVES PAIRS FOLDER

MILLIONS of parameters with Adam, in ten dense layers. After a first fit, which traces and saves once, PAIRS
of fits follow, plain and saved by turns. A fit is SAVES + 1 windows of WINDOW steps, with a save at each
border of two; its steps are timed by their beginnings, so that a window holds a save and the steps after it.
Then the newest save is read back, dropped from the page cache before. What was measured goes as JSON into
FOLDER/measured.json; FOLDER/saves is where the saver writes.

SAVER is `runner` where this runs under the runner, whose checkpoints need no line here. The few lines that
touch it switch it off for the plain fits, and keep the ends of fits out of the account.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

BATCH = 8
LAYERS = 10
#: A file that nobody has: to ask for it marks, in a trace of system calls, that a save is reported as done.
MARK = "/reported-as-saved"

#: When each step of the present fit began. Beyond a megabyte, so that the runner takes it for data.
begun_s = np.zeros(200_000)


# Keras names the logs that it hands to callbacks: hence ARG002, where they are not looked at.
class Stopwatch(keras.callbacks.Callback):
    """Notes when steps begin, and the last one ends; the first of all callbacks."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        begun_s[batch] = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        begun_s[batch + 1] = time.perf_counter()


# --- the savers -------------------------------------------------------------------------------------------


class Saver:
    """Saves by one callback, made anew for each fit."""

    def __init__(self, model: Any, folder: Path, every: int):
        self.model, self.folder, self.every = model, folder, every
        self.told_s: list[float] = []  #: how long training stood still, as the saver itself has it

    def callbacks(self) -> list[Any]:
        """Return the callbacks for the next fit."""
        callback = self.make()
        inner = callback.on_train_batch_end

        def timed(batch: int, logs: Any = None) -> None:
            began = time.perf_counter()
            inner(batch, logs)
            if (batch + 1) % self.every == 0:
                self.told_s.append(time.perf_counter() - began)

        callback.on_train_batch_end = timed
        return [callback]

    def make(self) -> Any:
        raise NotImplementedError

    def switch(self, *, on: bool) -> None:
        """Prepare for a fit that is saved, or is not."""

    def finish(self) -> None:
        """Wait until all that was begun is reported as saved."""

    def newest(self) -> Path:
        """Return the newest save: a file or a folder."""
        return max(self.folder.glob("*.h5"), key=lambda path: path.stat().st_mtime)

    def restore(self) -> None:
        """Put the newest save back into the model."""
        self.model.load_weights(self.newest())


class SaveWeights(Saver):
    """Keras's `save_weights`, and fsync of the file: the measure of all."""

    def make(self) -> Any:
        model, path, every = self.model, self.folder / "saved.weights.h5", self.every

        class Save(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
                if (batch + 1) % every == 0:
                    model.save_weights(path)
                    fd = os.open(path, os.O_RDWR)
                    os.fsync(fd)
                    os.close(fd)

        return Save()


class Checkpoint(Saver):
    """Keras's ModelCheckpoint, of the weights and the optimizer."""

    def make(self) -> Any:
        path = self.folder / "saved.weights.h5"
        return keras.callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=self.every)


class Backup(Saver):
    """Keras's BackupAndRestore."""

    def make(self) -> Any:
        return keras.callbacks.BackupAndRestore(self.folder, save_freq=self.every, delete_checkpoint=False)


class Orbax(Saver):
    """Keras's OrbaxCheckpoint, which writes in the background."""

    def make(self) -> Any:
        shutil.rmtree(self.folder, ignore_errors=True)  # its steps must grow
        self.callback = keras.callbacks.OrbaxCheckpoint(str(self.folder), save_freq=self.every)
        return self.callback

    def finish(self) -> None:
        self.callback.wait_until_finished()

    def newest(self) -> Path:
        return self.folder  # it keeps one


class Manager(Saver):
    """TensorFlow's tf.train.CheckpointManager; keeps three."""

    def __init__(self, model: Any, folder: Path, every: int):
        import tensorflow as tf

        super().__init__(model, folder, every)
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(folder), max_to_keep=3)

    def make(self) -> Any:
        manager, every = self.manager, self.every

        class Save(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
                if (batch + 1) % every == 0:
                    manager.save()

        return Save()

    def newest(self) -> Path:
        return Path(f"{self.manager.latest_checkpoint}.data-00000-of-00001")

    def restore(self) -> None:
        self.checkpoint.restore(self.manager.latest_checkpoint).assert_existing_objects_matched()


class Runner(Saver):
    """The runner's own checkpoints, made without a line in the script."""

    def __init__(self, model: Any, folder: Path, every: int):
        from runner.training import worker

        super().__init__(model, folder, every)
        self.worker = worker.current()
        assert self.worker is not None
        self.worker.ends.allowed = lambda _number: False  # they are saves that the others do not make

    def callbacks(self) -> list[Any]:
        return []

    def switch(self, *, on: bool) -> None:
        self.worker.looping = not on  # a fit inside a loop of the API's is left alone
        self.worker.step = -(-self.worker.step // self.every) * self.every

    def finish(self) -> None:
        self.worker.saver.flush()
        facts = map(json.loads, self.worker.launch.attempt_paths.facts.read_text().splitlines())
        self.told_s = [fact["stall_s"] for fact in facts if fact["event"] == "checkpoint"]

    def newest(self) -> Path:
        return self.worker.launch.paths.list_checkpoints()[-1][1]

    def restore(self) -> None:
        from runner.storage import checkpoint
        from runner.training import capture, variables

        capture.restore_variables(checkpoint.read(self.newest()), variables.all_variables(self.model))


SAVERS: dict[str, type[Saver]] = {
    "save_weights": SaveWeights,
    "ModelCheckpoint": Checkpoint,
    "BackupAndRestore": Backup,
    "OrbaxCheckpoint": Orbax,
    "CheckpointManager": Manager,
    "runner": Runner,
}


# --- the measuring ----------------------------------------------------------------------------------------


def model_of(millions: int) -> Any:
    """Return a model of about so many million parameters, and data for it."""
    side = round((millions * 1e6 / LAYERS) ** 0.5)
    layers = [keras.layers.Dense(side, "relu") for _ in range(LAYERS)]
    model = keras.Sequential([keras.Input((side,)), *layers])
    model.compile("adam", "mse")
    return model, side


def fit(model: Any, x: Any, saver: Saver, steps: int, *, saved: bool) -> tuple[np.ndarray, float]:
    """Train; return when the steps began and the last one ended, and how long all was over after that."""
    saver.switch(on=saved)
    more = saver.callbacks() if saved else []
    rows = x[: steps * BATCH]
    model.fit(rows, rows, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[Stopwatch(), *more])
    if saved:
        saver.finish()
        os.access(MARK, os.F_OK)
    return begun_s[: steps + 1].copy(), time.perf_counter() - begun_s[steps]


def windows(begun: np.ndarray, window: int) -> list[float]:
    """Return the seconds of the windows of a fit, each with the save before its first step."""
    return [float(d) for d in np.diff(begun[window - 1 :: window])]


def measure(saver: Saver, model: Any, x: Any, window: int, saves: int, pairs: int) -> dict[str, Any]:
    """Fit by turns, plain and saved; return what a save takes."""
    fit(model, x, saver, 2 * window - 1, saved=True)
    fit(model, x, saver, 2, saved=False)
    gaps_s: list[float] = []
    costs_s: list[float] = []
    steps_s: list[float] = []
    for _ in range(pairs):
        plain, plain_tail_s = fit(model, x, saver, (saves + 1) * window - 1, saved=False)
        begun, tail_s = fit(model, x, saver, (saves + 1) * window - 1, saved=True)
        step_s = float(np.median(np.diff(plain)))
        steps_s.append(step_s)
        gaps_s += [float(s) - step_s for s in np.diff(begun)[window - 1 :: window]]
        usual_s = statistics.median(windows(plain, window))
        late_s = max(0.0, tail_s - plain_tail_s) / saves
        costs_s += [took_s - usual_s + late_s for took_s in windows(begun, window)]
    return {
        "step_s": statistics.median(steps_s),
        "told_s": saver.told_s[-saves * pairs :],
        "gaps_s": gaps_s,
        "costs_s": costs_s,
    }


def files_of(path: Path) -> list[Path]:
    """Return the files of a save."""
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def cold(path: Path) -> int:
    """Drop a save from the page cache; return its bytes on the disk."""
    os.sync()
    for file in files_of(path):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return sum(file.stat().st_blocks * 512 for file in files_of(path))


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Measure one saver and write what was found."""
    name, (millions, window, saves, pairs), folder = sys.argv[1], map(int, sys.argv[2:6]), Path(sys.argv[6])
    (folder / "saves").mkdir(exist_ok=True)
    model, side = model_of(millions)
    x = np.random.default_rng(1).random(((saves + 1) * window * BATCH, side), np.float32)
    saver = SAVERS[name](model, folder / "saves", window)
    found = measure(saver, model, x, window, saves, pairs)
    found["bytes"] = cold(saver.newest())
    found["restores_s"] = []
    for _ in range(max(2, pairs)):
        cold(saver.newest())
        found["restores_s"].append(timed(saver.restore))
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / "measured.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
