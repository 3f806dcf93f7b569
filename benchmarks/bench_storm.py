"""Goodput under a storm: a kill every eight seconds, of a job whose epochs last longer than that.

A seeded Keras training (digits, some ten milliseconds a step) runs undisturbed, and then with its worker
killed by SIGKILL every eight seconds until it ends:

- runner: with `spare = "none"`, `"warm"` and `"hot"`;
- restart + BackupAndRestore: a loop that starts the script again at once, which keeps itself by Keras's
  callback, after each epoch as it does by default, or every hundred steps.

Goodput: what the undisturbed training takes from its first step to its last (the mean of one before and one
after), in parts of what this one took; where it does not end within two and a half times that, in parts of
the steps that it came to. Exact: the weights are, bit for bit, those of the undisturbed training. Where a row
misses its target (`TARGETS`), or has one and is not exact, the exit code is 1.

Usage: python benchmarks/bench_storm.py [--epochs N] [--every S] [ROW ...]
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_recovery import running, wait_for

from runner.storage.layout import Home
from runner.supervisor.traces import read_identity

#: Of a page that the training writes: how many steps it has completed, when the first and the newest was.
PAGE = struct.Struct("=qdd")
STEPS_PER_EPOCH = 900
PATIENCE = 2.5
TARGETS = {"runner-warm": 0.8, "runner-hot": 0.9}
SCRIPT = """
import hashlib, mmap, os, struct, sys, time
import keras
import numpy as np

keras.utils.set_random_seed(7)
page = None


class Note(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        global page
        if page is None:  # not earlier: a spare may have run the script up to its fit
            with open("page", "r+b") as file:
                page = mmap.mmap(file.fileno(), 24)
        time.sleep(0.01)
        _, first_s, _ = struct.unpack("=qdd", page)
        now_s = time.monotonic()
        page[:] = struct.pack("=qdd", int(self.model.optimizer.iterations), first_s or now_s, now_s)


x = np.random.default_rng(1).random((28800, 64), np.float32)
y = (x.sum(1) > 32).astype("int32")
model = keras.Sequential([
    keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)
])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
callbacks = [Note()]
if "KEEP" in os.environ:
    every = os.environ["KEEP"]
    every = int(every) if every.isdigit() else every
    callbacks.append(keras.callbacks.BackupAndRestore("backup", save_freq=every))
model.fit(x, y, batch_size=32, epochs=int(sys.argv[1]), verbose=0, callbacks=callbacks)
digest = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
with open("over", "w") as out:
    out.write(digest)
"""


class Storm:
    """One training, in a folder of its own."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        (folder / "page").write_bytes(bytes(PAGE.size))
        with (folder / "page").open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), PAGE.size)

    def seen(self) -> tuple[int, float, float]:
        return PAGE.unpack(self._page[: PAGE.size])

    def took_s(self) -> float:
        """Return the seconds from the first step to the newest."""
        _, first_s, now_s = self.seen()
        return now_s - first_s

    def digest(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "over").read_text()
        return ""

    def rages(self, every_s: float, until_s: float, kill: Callable[[], object]) -> int:
        """Kill every so often until it has ended, or has taken so long; return how often."""
        kills = 0
        wait_for(lambda: self.seen()[0])
        next_s = time.monotonic() + every_s
        while not self.digest() and time.monotonic() - self.seen()[1] < until_s:
            if time.monotonic() >= next_s:
                kill()
                kills += 1
                next_s += every_s
            time.sleep(0.005)
        return kills


def undisturbed(folder: Path, epochs: int) -> Storm:
    storm = Storm(folder)
    argv = [sys.executable, "train.py", str(epochs)]
    subprocess.run(argv, cwd=storm.folder, check=True, stderr=subprocess.DEVNULL)
    return storm


def runner(root: Path, epochs: int, every_s: float, until_s: float, spare: str) -> tuple[Storm, int]:
    home = Home(root / spare)
    storm = Storm(home.folder("storm"))
    (storm.folder / "job.toml").write_text(
        f'args = ["{epochs}"]\n[restart]\nspare = "{spare}"\nbackoff = "10ms..20ms"\nbudget = 100000\n'
    )
    (storm.folder / ".submitted.json").write_text('{"version": 1, "source": null}')

    def kill() -> None:
        newest = max(home.job("storm").attempts.iterdir(), key=lambda path: path.name)
        worker = read_identity(home.job("storm").attempt(int(newest.name)), "worker")
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    with running([sys.executable, "-m", "runner.supervisor", "--home", str(home.root)]):
        return storm, storm.rages(every_s, until_s, kill)


def restarted(root: Path, epochs: int, every_s: float, until_s: float, keep: str) -> tuple[Storm, int]:
    storm = Storm(root / f"restarted-{keep}")
    argv, environ = [sys.executable, "train.py", str(epochs)], {**os.environ, "KEEP": keep}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, cwd=storm.folder, env=environ, stderr=subprocess.DEVNULL)

    processes = [start()]

    def kill() -> None:
        processes[-1].kill()
        processes[-1].wait()
        processes.append(start())

    try:
        return storm, storm.rages(every_s, until_s, kill)
    finally:
        processes[-1].kill()
        processes[-1].wait()


def main() -> int:
    """Measure and print one table; return 1 where a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two kills")
    rows: dict[str, Callable[[Path, int, float, float], tuple[Storm, int]]] = {
        **{f"runner-{one}": lambda *given, one=one: runner(*given, one) for one in ("none", "warm", "hot")},
        **{f"backup-{one}": lambda *given, one=one: restarted(*given, one) for one in ("epoch", "100")},
    }
    parser.add_argument("rows", nargs="*", choices=[[], *rows], help="all by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = undisturbed(Path(folder) / "undisturbed", options.epochs)
        steps, missed = plain.seen()[0], False
        print(f"undisturbed: {steps} steps, {options.epochs} epochs")
        print(f"{'':16}{'goodput':>9}{'kills':>7}{'seconds':>9}{'undisturbed':>13}  ended", flush=True)
        for place, name in enumerate(options.rows or rows):
            root = Path(folder) / str(place)
            until_s = PATIENCE * plain.took_s()
            storm, kills = rows[name](root, options.epochs, options.every, until_s)
            took_s = storm.took_s() if storm.digest() else until_s
            exact = "exact" if storm.digest() == plain.digest() else "not exact"
            ended = exact if storm.digest() else f"not: at step {storm.seen()[0]}"
            after = undisturbed(root / "undisturbed", options.epochs)
            whole_s = (plain.took_s() + after.took_s()) / 2
            plain, share = after, whole_s / took_s * storm.seen()[0] / steps
            misses = name in TARGETS and (share < TARGETS[name] or ended != "exact")
            missed |= misses
            verdict = f"  of {TARGETS[name]:g}{'  MISSED' if misses else ''}" if name in TARGETS else ""
            print(f"{name:16}{share:9.2f}{kills:7}{took_s:9.1f}{whole_s:13.1f}  {ended}{verdict}", flush=True)
        return int(missed)


if __name__ == "__main__":
    sys.exit(main())
