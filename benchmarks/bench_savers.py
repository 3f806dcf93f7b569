"""What a save costs training: the runner beside what Keras and TensorFlow have, in one table.

    python benchmarks/bench_savers.py [--params 0.07 1 10 100] [--rounds 1] [--quick] [--untraced]
        [--savers NAME ...] [--folder .]

Each saver saves the same training (`saved_training.py`) with Adam, in processes of its own that follow each
other by turns; within one, every other stretch of training has a save in it. All is in milliseconds, medians
over all saves:

- stall: training stands still, as the gap between two steps has it, and (own) as the saver itself has it;
- cost: how much longer a window of training takes with a save in it than its neighbours without, so that
  slower steps after it and processor time beside it count; and half of all saves lie between the two numbers
  behind it;
- "of s_w": the same in parts of the time that `save_weights` and fsync take in the same run;
- restore: from a cold file into the model's variables. MB: on the disk. RSS: the process's peak, in MB;
- durable: whether every file of a save, and its folder, had been fsynced when it was reported as saved, as
  strace(1) saw it in a run of its own.

`runner` is as the supervisor starts it with a keeper beside; `alone`: the training process writes by itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TRAINING = Path(__file__).with_name("saved_training.py")
BOOTSTRAP, KEEPER = (ROOT / "runner" / "training" / name for name in ("bootstrap.py", "keeper.py"))
SHIM = ROOT / "runner" / "supervisor" / "shim.py"
MARK = "/reported-as-saved"

#: What a row is called -> the saver's name in the training.
SAVERS = {
    "save_weights + fsync": "save_weights",
    "ModelCheckpoint": "ModelCheckpoint",
    "BackupAndRestore": "BackupAndRestore",
    "OrbaxCheckpoint": "OrbaxCheckpoint",
    "tf CheckpointManager": "CheckpointManager",
    "runner, alone": "runner",
    "runner": "runner",
}
BASE = "save_weights + fsync"
NEEDS = {"OrbaxCheckpoint": ("orbax.checkpoint", "pip install 'orbax-checkpoint' (or: -e '.[bench]')")}
#: Millions of parameters -> steps between a save and none, saves in a fit, fits in a process.
SIZES = {0.07: (400, 8, 2), 1: (200, 5, 2), 10: (40, 5, 2), 100: (8, 5, 1)}
QUICK = {0.07: (200, 3, 1), 1: (100, 3, 1), 10: (25, 3, 1), 100: (6, 3, 1)}
TIMEOUT_S = 540


# --- running one ------------------------------------------------------------------------------------------


def launch(root: Path, arguments: list[str], every: int, *, keeper: bool) -> list[str]:
    """Write down the orders of an attempt; return the command that runs it as the supervisor would."""
    job, state = root / "jobs" / "j", root / "state" / "j"
    attempt = state / "attempts" / "0001"
    for folder in (job, attempt):
        folder.mkdir(parents=True)
    shutil.copy(TRAINING, job / "train.py")
    environ = {"RUNNER_STATE": str(state), "RUNNER_ATTEMPT": "1", "RUNNER_JOB": "j"}
    orders = {
        "version": 1, "job": "j", "attempt": 1, "state": str(state), "cwd": str(job), "grace_s": 30.0,
        "argv": [sys.executable, str(BOOTSTRAP)], "env": environ,
        "seed": 1, "threads": os.cpu_count(), "entry": "train.py", "args": arguments, "from": None,
        "checkpoint": {
            "every": {"unit": "steps", "count": every}, "keep": 3, "monitor": "val_loss", "mode": "auto",
            "best": "best.weights.h5",
        },
        **({"keeper": [sys.executable, "-I", str(KEEPER)]} if keeper else {}),
    }  # fmt: skip
    (attempt / "launch.json").write_text(json.dumps(orders))
    # The shim holds the job's lock, inherited as descriptor 3.
    words = shlex.join([sys.executable, "-I", "-S", str(SHIM), str(attempt)])
    return ["bash", "-c", f"exec 3>{shlex.quote(str(state / '.lock'))}; exec {words}"]


def run(
    row: str, millions: float, numbers: tuple[int, int, int], folder: Path, trace: Path | None = None
) -> Any:
    """Let one process train with one saver; return what it measured."""
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        arguments = [SAVERS[row], str(millions), *map(str, numbers), str(root)]
        if SAVERS[row] == "runner":
            command = launch(root, arguments, 2 * numbers[0], keeper=row == "runner")
        else:
            command = [sys.executable, str(TRAINING), *arguments]
        if trace is not None:
            command = [
                "strace",
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-y",
                "-e",
                f"trace={CALLS}",
                "-o",
                str(trace),
                *command,
            ]
        environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        environ |= {"TF_NUM_INTRAOP_THREADS": str(os.cpu_count()), "PYTHONUNBUFFERED": "1"}
        with (root / "output").open("w") as output:
            subprocess.run(command, env=environ, stdout=output, stderr=output, timeout=TIMEOUT_S, check=False)
        measured = root / "measured.json"
        if not measured.exists():
            log = root / "state" / "j" / "attempts" / "0001" / "log"
            text = (log if log.exists() else root / "output").read_text(errors="replace")
            print(f"{row} failed:\n{text[-2000:]}", file=sys.stderr)
            return None
        return json.loads(measured.read_text())
    finally:
        shutil.rmtree(root)


# --- durable, or not --------------------------------------------------------------------------------------

#: What strace(1) is to show: all that makes, names and syncs files, and the question that marks the report.
CALLS = (
    "openat,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,fsync,fdatasync,access,faccessat,faccessat2"
)
_CALL = re.compile(r"^\d+ +(\w+)\(")
_NAME = re.compile(r'(?:\w+<([^>]*)>, )?"([^"]*)"')
_SYNCED = re.compile(r"sync\(\d+<([^>]*)>")


def durability(row: str, folder: Path) -> str:
    """Say what a saver had brought to the disk when it reported its first save as done."""
    if shutil.which("strace") is None:
        return "?"
    trace = folder / "trace"
    if run(row, 1, (4, 1, 1), folder, trace) is None:
        return "?"
    with trace.open(errors="replace") as lines:
        files, folders = unsynced(lines)
    return "yes" if not files | folders else "no" if files else "file only"


def unsynced(lines: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the files of the first save that were not synced when it was reported, and such folders."""
    files: dict[str, bool] = {}
    folders: dict[str, bool] = {}
    for line in lines:
        call = found[1] if (found := _CALL.match(line)) else ""
        names = [str(Path(*pair)) for pair in _NAME.findall(line)]
        if MARK in names:
            break
        names = [name for name in names if "/saves/" in name or "/checkpoints/" in name]
        if names and call in ("openat", "creat") and "O_CREAT" in line:
            files[names[0]] = folders[str(Path(names[0]).parent)] = False
        elif call.startswith("rename") and len(names) == 2:
            for seen in (files, folders):
                moved = [one for one in seen if f"{one}/".startswith(f"{names[0]}/")]
                seen.update({names[1] + one.removeprefix(names[0]): seen.pop(one) for one in moved})
            folders[str(Path(names[1]).parent)] = False
        elif names and call.startswith(("unlink", "rmdir")):
            files.pop(names[0], None)
            folders.pop(names[0], None)
        elif found := _SYNCED.search(line):
            for seen in (files, folders):
                if found[1] in seen:
                    seen[found[1]] = True
    gone = [one for one in folders if not any(name.startswith(f"{one}/") for name in files)]
    return {f for f in files if not files[f]}, {f for f in folders if not folders[f]} - set(gone)


# --- the table --------------------------------------------------------------------------------------------

COLUMNS = ("stall", "own", "of s_w", "cost", "(quartiles)", "of s_w", "restore", "MB", "RSS", "durable")
WIDTHS = (9, 9, 8, 9, 18, 8, 9, 8, 7, 10)


class Found:
    """What was measured of one saver, at one size."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def all(self, name: str) -> list[float]:
        """Return every value of a name, of all processes."""
        return [value for one in self.runs for value in one[name]]

    def middle(self, name: str) -> float:
        """Return their median."""
        return statistics.median(self.all(name))

    def cells(self, base: Found) -> list[str]:
        """Return the row; `base` is what it is compared with."""
        low, _, high = statistics.quantiles(self.all("costs_s"), n=4)
        return [
            f"{1000 * self.middle('gaps_s'):.1f}",
            f"{1000 * self.middle('told_s'):.1f}",
            f"{self.middle('gaps_s') / base.middle('gaps_s'):.2f}" if base.runs else "",
            f"{1000 * self.middle('costs_s'):.0f}",
            f"({1000 * low:.0f} to {1000 * high:.0f})",
            f"{self.middle('costs_s') / base.middle('gaps_s'):.2f}" if base.runs else "",
            f"{1000 * self.middle('restores_s'):.0f}",
            f"{statistics.median(one['bytes'] for one in self.runs) / 1e6:.1f}",
            f"{max(one['peak_bytes'] for one in self.runs) / 1e6:.0f}",
        ]


def row_of(name: str, cells: Iterable[str]) -> str:
    return f"{name:22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def bench(millions: float, rows: list[str], numbers: tuple[int, int, int], rounds: int, folder: Path) -> None:
    """Measure and print one size."""
    found = {row: Found() for row in rows}
    for _ in range(rounds):
        for row in list(found):
            measured = run(row, millions, numbers, folder)
            if measured is not None:
                found[row].runs.append(measured)
    found = {row: one for row, one in found.items() if one.runs}
    if not found:
        return
    step_s = statistics.median(one["step_s"] for all_of in found.values() for one in all_of.runs)
    window, saves, fits = numbers
    print(
        f"\n{millions} M parameters with Adam: a save every {2 * window} steps of {1000 * step_s:.1f} ms,"
        f" {saves * fits * rounds} saves each (ms, medians)"
    )
    print(row_of("", COLUMNS))
    base = found.get(BASE, Found())
    for row, one in found.items():
        print(row_of(row, [*one.cells(base), DURABLE[row]]), flush=True)


#: What a row's saves are when they are reported; found out once.
DURABLE: dict[str, str] = {}


def missing(row: str) -> str:
    """Say what a row needs that is not there."""
    package, remedy = NEEDS.get(row, ("", ""))
    try:
        there = not package or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        there = False
    return "" if there else f"{row}: not installed: {remedy}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--params", type=float, nargs="+", choices=list(SIZES), default=list(SIZES), help="millions"
    )
    parser.add_argument("--rounds", type=int, default=1, help="processes for each saver and size")
    parser.add_argument("--quick", action="store_true", help="one round of few steps: to see that it works")
    parser.add_argument(
        "--untraced", action="store_true", help="do not find out what is durable: minutes less"
    )
    parser.add_argument("--savers", nargs="+", choices=list(SAVERS), default=list(SAVERS), metavar="NAME")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk to be measured; default: here"
    )
    options = parser.parse_args()
    rows = []
    for row in options.savers:
        if why := missing(row):
            print(why)
        else:
            rows.append(row)
    with tempfile.TemporaryDirectory(dir=options.folder.resolve(), prefix=".savers-") as folder:
        DURABLE.update({row: "" if options.untraced else durability(row, Path(folder)) for row in rows})
        for millions in options.params:
            numbers = (QUICK if options.quick else SIZES)[millions]
            bench(millions, rows, numbers, 1 if options.quick else options.rounds, Path(folder))


if __name__ == "__main__":
    main()
