"""A resumable worker that needs no Keras: it counts, its count is its checkpoint, and it says so as facts.

Usage: counter.py TARGET [PAUSE_S] [--ignore-term] [--stall-at N] [--fail-at N CODE] [--fork]
    [--hold-at N FILE]...

`--hold-at`: at N it counts no further until there is such a file; it may be given for several counts.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

target, pause_s = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.01
options = sys.argv[3:]
state = Path(os.environ["RUNNER_STATE"])
attempt = int(os.environ["RUNNER_ATTEMPT"])
facts = state / "attempts" / f"{attempt:04d}" / "facts.jsonl"
count_file = Path("count")
stop = False
holds = {int(options[at + 1]): Path(options[at + 2]) for at, one in enumerate(options) if one == "--hold-at"}


def value(option: str, default: int = -1) -> int:
    return int(options[options.index(option) + 1]) if option in options else default


def on_term(*_: object) -> None:
    global stop
    stop = "--ignore-term" not in options


def report(**fact: object) -> None:
    with contextlib.suppress(OSError), facts.open("a") as out:
        out.write(json.dumps(fact) + "\n")


def save(count: int) -> None:
    temporary = count_file.with_suffix(".tmp")
    try:
        temporary.write_text(str(count))
    except OSError:
        return  # a full disk: count on
    temporary.rename(count_file)
    report(event="checkpoint", path="checkpoints/count", step=count, epoch=0, stall_s=0.0)


def progress(count: int) -> None:
    temporary = state / f".progress.{os.getpid()}"
    fields = {"version": 1, "attempt": attempt, "pid": os.getpid(), "step": count}
    fields["phase"] = "train" if count > first else "import"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(fields))
        temporary.rename(state / "progress.json")


signal.signal(signal.SIGTERM, on_term)
if "--fork" in options:
    # A double-forked daemon in a session of its own, without the environment that names the job.
    subprocess.run(["sh", "-c", "setsid env -i sleep 600 & echo $! > stray"], check=True)
first = count = int(count_file.read_text()) if count_file.exists() else 0
if count:
    report(event="resumed", path="checkpoints/count", step=count, epoch=0, exact=True)
with Path("trace").open("a") as trace:
    trace.write(f"{attempt} {os.getpid()} {count}\n")
while count < target:
    if stop:
        save(count)
        sys.exit(75)
    if count == value("--stall-at") and attempt == 1:
        time.sleep(600)
    if count in holds:
        while not holds[count].exists() and not stop:
            time.sleep(0.01)
        if stop:
            continue
    if count == value("--fail-at"):
        sys.exit(int(options[options.index("--fail-at") + 2]))
    time.sleep(pause_s)
    count += 1
    if count % 10 == 0 or count == target:
        save(count)
    progress(count)
sys.stdout.write(f"counted to {count}\n")
