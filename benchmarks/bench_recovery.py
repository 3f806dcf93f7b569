"""From SIGKILL of the worker to the next completed training step, with a digits-sized model.

A Keras script notes each step in a shared page. Once it has trained for a while it is killed, many times:

- plain: no supervisor; from the start of its process to its first step, with nothing to resume;
- runner: `spare = "none"`, `"warm"` and `"hot"`, each kill with a spare that is ready;
- supervisord, systemd (RestartSec=0) and torchrun, where they are there: the script then keeps itself by
  Keras's BackupAndRestore, after each epoch.

What is not to be exceeded stands beside (`TARGETS`); where it is, the exit code is 1.

What does not train again within a minute is stuck: a kill in the midst of BackupAndRestore's writing leaves a
backup that cannot be read. It is counted, the backup is removed as a person would, and it goes on.

Beside the seconds: processor time that the new process has spent from the script's first line to that step,
which other load on the machine does not change much. What has taken over has imported before; a hot one has
spent most of that before, too.

Usage: python benchmarks/bench_recovery.py [--quick] [--rounds N] [--only ROW] [--supervisord PATH]
    [--torchrun PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import mmap
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runner.storage import records
from runner.storage.layout import Home

T = TypeVar("T")
#: Takes a folder and how many rounds; returns for each seconds, and processor seconds.
Measure = Callable[[Path, int], list[tuple[float, float]]]
#: Step, pid, when the process did its first step, processor time from the script's start to then, and at it.
PAGE = struct.Struct("=qqddd")
#: After its first step a process trains so long before it is killed: something is saved by then.
TRAINS_S = 5.0
STUCK_S = 60.0
#: So many rounds of one row, then of the next, again and again: machines become slower and faster.
BLOCK = 5
PLAIN = "plain process, first start"
#: Medians: seconds, or in parts of the plain process.
TARGETS = {
    "runner, no spare": (1.15, PLAIN),
    "runner, warm spare": (1.0, ""),
    "runner, hot spare": (0.25, ""),
}
SCRIPT = """
import time
begun_s = time.process_time()
import mmap, os, struct
import keras
from sklearn.datasets import load_digits

keras.utils.set_random_seed(7)
page = None


class Note(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        global page
        if page is None:  # not earlier: a spare may have run the script up to its fit
            with open("page", "r+b") as file:
                page = mmap.mmap(file.fileno(), 40)
        # All is in the page alone: what lies in callbacks, and what they reach, a resume puts back.
        _, pid, first_s, spent_s, _ = struct.unpack("=qqddd", page)
        if pid != os.getpid():
            first_s, spent_s = time.monotonic(), time.process_time() - begun_s
        page[:32] = struct.pack("=qqdd", int(self.model.optimizer.iterations), os.getpid(), first_s, spent_s)


x, y = load_digits(return_X_y=True)
model = keras.Sequential([
    keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)
])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
callbacks = [Note()]
if "KEEP" in os.environ:
    callbacks.append(keras.callbacks.BackupAndRestore("backup"))
model.fit(x / 16, y, batch_size=32, epochs=1_000_000, verbose=0, callbacks=callbacks)
"""
SUPERVISORD = """
[supervisord]
nodaemon = true
logfile = /dev/null
logfile_maxbytes = 0
[program:job]
command = {python} train.py
directory = {folder}
autorestart = true
startsecs = 0
"""


class Bench:
    """A folder with the script and its page."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "train.py").write_text(SCRIPT)
        (folder / "page").write_bytes(bytes(PAGE.size))
        with (folder / "page").open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), PAGE.size)

    def first_step(self, not_pid: int, timeout_s: float = 600.0) -> tuple[int, float, float]:
        """Wait for a step of another process; return its pid, when its first was, and what that took."""

        def found() -> tuple[int, float, float] | None:
            step, pid, first_s, spent_s, _ = PAGE.unpack(self._page[: PAGE.size])
            return (pid, first_s, spent_s) if step and pid != not_pid else None

        return wait_for(found, timeout_s)

    def kills(self, rounds: int, ready: Callable[[int], object] = bool) -> list[tuple[float, float]]:
        """Kill again and again; return seconds to the next step, and processor seconds of the script."""
        took = []
        pid, _, _ = self.first_step(0)
        for _ in range(rounds):
            time.sleep(TRAINS_S)
            wait_for(lambda pid=pid: ready(pid))
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                pid, first_s, spent_s = self.first_step(pid, STUCK_S)
                took.append((first_s - killed_s, spent_s))
                continue
            took.append((math.inf, math.nan))
            shutil.rmtree(self.folder / "backup", ignore_errors=True)
            pid, _, _ = self.first_step(pid)
        return took


def wait_for(what: Callable[[], T | None], timeout_s: float = 600.0) -> T:
    """Wait until something is there; return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it never came")
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def running(argv: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the time of the block."""
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def plain(root: Path, rounds: int) -> list[tuple[float, float]]:
    """Start the script with nothing around it."""
    took = []
    for number in range(rounds):
        bench = Bench(root / f"plain-{number}")
        begun_s = time.monotonic()
        with running([sys.executable, "train.py"], cwd=bench.folder):
            _, first_s, spent_s = bench.first_step(0)
        took.append((first_s - begun_s, spent_s))
    return took


def runner(root: Path, rounds: int, spare: str) -> list[tuple[float, float]]:
    """Let the runner restart it."""
    home = Home(root / f"runner-{spare}")
    bench = Bench(home.folder("bench"))
    (bench.folder / "job.toml").write_text(f'[restart]\nspare = "{spare}"\n')
    (bench.folder / ".submitted.json").write_text('{"version": 1, "source": null}')

    def ready(_pid: int) -> bool:
        with contextlib.suppress(OSError):
            return bool(records.load_json(home.job("bench").spare.shim)["ready"])
        return spare == "none"

    with running([sys.executable, "-m", "runner.supervisor", "--home", str(home.root)]):
        return bench.kills(rounds, ready)


def supervisord(root: Path, rounds: int, program: str) -> list[tuple[float, float]]:
    """Let supervisord restart it."""
    bench = Bench(root / "supervisord")
    (bench.folder / "conf").write_text(SUPERVISORD.format(python=sys.executable, folder=bench.folder))
    argv = [program, "-c", str(bench.folder / "conf")]
    with running(argv, cwd=bench.folder, env={**os.environ, "KEEP": "1"}):
        return bench.kills(rounds)


def systemd(root: Path, rounds: int) -> list[tuple[float, float]]:
    """Let a unit of systemd restart it."""
    bench = Bench(root / "systemd")
    properties = [
        "Restart=always",
        "RestartSec=0",
        "StartLimitIntervalSec=0",
        f"WorkingDirectory={bench.folder}",
    ]
    options = [option for one in properties for option in ("-p", one)]
    unit = f"bench-recovery-{os.getpid()}"
    start = ["systemd-run", "--unit", unit, *options, "-E", "KEEP=1", sys.executable, "train.py"]
    subprocess.run(start, check=True, stderr=subprocess.DEVNULL)
    try:
        return bench.kills(rounds)
    finally:
        subprocess.run(["systemctl", "stop", unit], check=True)


def torchrun(root: Path, rounds: int, program: str) -> list[tuple[float, float]]:
    """Let torchrun restart it."""
    bench = Bench(root / "torchrun")
    argv = [program, "--standalone", "--max-restarts=1000000", "--monitor-interval=0.1", "train.py"]
    with running(argv, cwd=bench.folder, env={**os.environ, "KEEP": "1"}):
        return bench.kills(rounds)


def verdict(name: str, medians: dict[str, float]) -> str:
    """Say how a row's median compares with its target; "" where it has none."""
    target, beside = TARGETS.get(name, (math.nan, ""))
    if math.isnan(target) or (beside and beside not in medians):
        return ""
    share = medians[name] / (medians[beside] if beside else 1.0)
    return f"  {share:.2f} of {target:.2f}{'' if share <= target else '  MISSED'}"


def rows(supervisord_path: str | None, torchrun_path: str | None) -> dict[str, Measure | None]:
    """Return what there is to measure; None: what that needs is not here."""
    found: dict[str, Measure | None] = {
        PLAIN: plain,
        "runner, no spare": lambda root, rounds: runner(root, rounds, "none"),
        "runner, warm spare": lambda root, rounds: runner(root, rounds, "warm"),
        "runner, hot spare": lambda root, rounds: runner(root, rounds, "hot"),
        "supervisord": None,
        "systemd, RestartSec=0": systemd if Path("/run/systemd/system").is_dir() else None,
        "torchrun": None,
    }
    if supervisord_path:
        found["supervisord"] = lambda root, rounds: supervisord(root, rounds, supervisord_path)
    if torchrun_path:
        found["torchrun"] = lambda root, rounds: torchrun(root, rounds, torchrun_path)
    return found


def main() -> int:
    """Measure and print one table; return 1 where a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="three rounds of each")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", action="append", metavar="ROW", help="rows that begin so")
    parser.add_argument("--supervisord", default=shutil.which("supervisord"))
    parser.add_argument("--torchrun", default=shutil.which("torchrun"))
    options = parser.parse_args()
    left = 3 if options.quick else options.rounds
    chosen = {
        name: measure
        for name, measure in rows(options.supervisord, options.torchrun).items()
        if not options.only or name.startswith(tuple(options.only))
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors", flush=True)
    while left > 0:
        block, left = min(left, BLOCK), left - BLOCK
        for name, measure in chosen.items():
            if measure is not None:
                with tempfile.TemporaryDirectory() as folder:
                    took[name] += measure(Path(folder), block)
    rounds = max(map(len, took.values()))
    print(f"SIGKILL to the next completed step, {rounds} rounds (seconds); then processor seconds")
    print(f"{'':28}{'median':>9}{'min':>9}{'max':>9}{'script':>9}{'stuck':>7}")
    medians: dict[str, float] = {}
    for name, found in took.items():
        if not found:
            print(f"{name:28} not measured: it is not here")
            continue
        seconds = [one for one, _ in found]
        spent = statistics.median([one for _, one in found if not math.isnan(one)] or [math.nan])
        medians[name] = statistics.median(seconds)
        line = f"{medians[name]:9.2f}{min(seconds):9.2f}{max(seconds):9.2f}{spent:9.2f}"
        print(f"{name:28}{line}{sum(map(math.isinf, seconds)):7}{verdict(name, medians)}")
    return int(any("MISSED" in verdict(name, medians) for name in medians))


if __name__ == "__main__":
    sys.exit(main())
