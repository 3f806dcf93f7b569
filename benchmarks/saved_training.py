"""A training that is saved now and then; `bench_savers.py` runs it once for each way of saving.

    python saved_training.py SAVER MILLIONS WINDOW SAVES FITS FOLDER

MILLIONS of parameters with Adam, in ten dense layers (three, where it is less than one). After a first fit,
which traces and saves once, FITS follow. A fit is 2 * SAVES + 1 windows of WINDOW steps, with a save in every
other one; its steps are timed by their beginnings, so that a window holds a save and the steps after it. What
such a window takes longer than the mean of its two neighbours is what the save costs; so a machine that is
slow for a while is no matter. Then the newest save is read back, dropped from the page cache before. What was
measured goes as JSON into FOLDER/measured.json; FOLDER/saves is where the saver writes.

SAVER is `runner` where this runs under the runner, whose checkpoints need no line here. The few lines that
touch it switch it off for a plain fit, and keep the ends of fits out of the account.
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
LAYERS, LAYERS_OF_SMALL = 10, 3
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


def model_of(millions: float) -> Any:
    """Return a model of about so many million parameters, and data for it."""
    count = LAYERS if millions >= 1 else LAYERS_OF_SMALL
    side = round((millions * 1e6 / count) ** 0.5)
    layers = [keras.layers.Dense(side, "relu") for _ in range(count)]
    model = keras.Sequential([keras.Input((side,)), *layers])
    model.compile("adam", "mse")
    return model, side


class Finish(keras.callbacks.Callback):
    """Notes when the saver's callback has seen the end of training; the last of all callbacks.

    What TensorFlow does after that is not the saver's: to end the thread that tunes its pipeline takes it
    seconds now and then.
    """

    at_s = 0.0

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002
        self.at_s = time.perf_counter()


def fit(model: Any, x: Any, saver: Saver, steps: int, *, saved: bool) -> tuple[np.ndarray, float]:
    """Train; return when the steps began and the last one ended, and how much later all was saved."""
    saver.switch(on=saved)
    more = saver.callbacks() if saved else []
    rows, finish = x[: steps * BATCH], Finish()
    model.fit(rows, rows, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[Stopwatch(), *more, finish])
    late_s = finish.at_s - float(begun_s[steps])
    if saved:
        late_s += timed(saver.finish)
        os.access(MARK, os.F_OK)
    return begun_s[: steps + 1].copy(), late_s


def windows(begun: np.ndarray, window: int) -> list[float]:
    """Return the seconds of the windows of a fit, each with the save before its first step."""
    return [float(d) for d in np.diff(begun[window - 1 :: window])]


def measure(saver: Saver, model: Any, x: Any, window: int, saves: int, fits: int) -> dict[str, Any]:
    """Fit, with a save in every other window; return what a save takes."""
    fit(model, x, saver, 3 * window - 1, saved=True)
    _, plain_late_s = fit(model, x, saver, 2, saved=False)
    gaps_s: list[float] = []
    costs_s: list[float] = []
    steps_s: list[float] = []
    for _ in range(fits):
        begun, all_late_s = fit(model, x, saver, (2 * saves + 2) * window - 1, saved=True)
        step_s = float(np.median(np.diff(begun)))
        steps_s.append(step_s)
        gaps_s += [float(s) - step_s for s in np.diff(begun)[2 * window - 1 :: 2 * window]]
        late_s = max(0.0, all_late_s - plain_late_s) / saves
        took_s = windows(begun, window)
        for before_s, with_s, after_s in zip(took_s[::2], took_s[1::2], took_s[2::2], strict=False):
            costs_s.append(with_s - (before_s + after_s) / 2 + late_s)
    return {
        "step_s": statistics.median(steps_s),
        "told_s": saver.told_s[-saves * fits :],
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
    name, millions, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[6])
    window, saves, fits = map(int, sys.argv[3:6])
    (folder / "saves").mkdir(exist_ok=True)
    model, side = model_of(millions)
    x = np.random.default_rng(1).random(((2 * saves + 2) * window * BATCH, side), np.float32)
    saver = SAVERS[name](model, folder / "saves", 2 * window)
    found = measure(saver, model, x, window, saves, fits)
    found["bytes"] = cold(saver.newest())
    found["restores_s"] = []
    for _ in range(max(2, fits)):
        cold(saver.newest())
        found["restores_s"].append(timed(saver.restore))
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / "measured.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
