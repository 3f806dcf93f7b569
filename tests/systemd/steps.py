"""A worker that needs nothing: it counts, saves its count, and uses /tmp as training scripts do.

Usage: steps.py TARGET. Leaves count (its checkpoint), beats (a byte a step) and starts (attempt, pid, count).
STOP_TAKES_S in the environment makes it slow to stop.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

target = int(sys.argv[1])
attempt = os.environ["RUNNER_ATTEMPT"]
facts = Path(os.environ["RUNNER_STATE"], "attempts", f"{int(attempt):04d}", "facts.jsonl")
count_file = Path("count")
stop = False


def on_term(*_: object) -> None:
    global stop
    stop = True


def save(count: int) -> None:
    with tempfile.NamedTemporaryFile("w") as scratch:  # fails where /tmp is taken away under the worker
        scratch.write(str(count))
    Path("count.tmp").write_text(str(count))
    Path("count.tmp").rename(count_file)
    with facts.open("a") as out:
        fact = {"event": "checkpoint", "path": "checkpoints/count", "step": count, "epoch": 0, "stall_s": 0.0}
        out.write(json.dumps(fact) + "\n")


signal.signal(signal.SIGTERM, on_term)
count = int(count_file.read_text()) if count_file.exists() else 0
with Path("starts").open("a") as starts:
    starts.write(f"{attempt} {os.getpid()} {count}\n")
while count < target:
    time.sleep(0.01)
    count += 1
    with Path("beats").open("a") as beats:
        beats.write(".")
    if stop or count % 10 == 0 or count == target:
        save(count)
    if stop:
        time.sleep(float(os.environ.get("STOP_TAKES_S", "0")))
        sys.exit(75)
