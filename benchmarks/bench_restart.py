"""From SIGKILL of the worker to the start of its successor: the supervisor's and the shim's own time.

The job is a shell that notes the time at which it starts, and reports progress so that it is restarted at
once. What is measured is detection, clearing the tree, the durable outcome, the decision, the durable record,
the new shim and the new process; no Python and no Keras of the job's. Beside it, in the same run, what such a
process costs to start without any supervisor.

Usage: python benchmarks/bench_restart.py [ROUNDS]
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = 'command = ["sh", "work.sh"]\n'
WORK = """
now=$(date +%s%N)
facts=$RUNNER_STATE/attempts/$(printf %04d "$RUNNER_ATTEMPT")/facts.jsonl
echo '{"event": "checkpoint", "path": "none", "step": '$now', "epoch": 0}' >> "$facts"
echo $now >> starts
exec sleep 600
"""


def starts(folder: Path) -> list[int]:
    """Read when the worker started, each time, in nanoseconds since the epoch."""
    path = folder / "starts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_starts(folder: Path, count: int) -> list[int]:
    """Wait for the `count`-th start."""
    deadline = time.monotonic() + 30
    while len(found := starts(folder)) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"no start {count} within 30 s")
        time.sleep(0.001)
    return found


def bare_start_ms(folder: Path) -> float:
    """Start the same program without a supervisor; return milliseconds to its first action."""
    begin = time.time_ns()
    subprocess.run(["sh", "-c", "date +%s%N >> bare"], cwd=folder, check=True)
    return (int((folder / "bare").read_text().split()[-1]) - begin) / 1e6


def worker_pid(home: Path, attempt: int) -> int:
    """Return the pid of the job's worker in `attempt`."""
    from runner.storage.layout import Home
    from runner.supervisor.traces import read_identity

    while (identity := read_identity(Home(home).job("bench").attempt(attempt), "worker")) is None:
        time.sleep(0.001)
    return identity.pid


def measure(home: Path, job: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Kill and restart `rounds` times; return milliseconds with and without the supervisor."""
    wait_starts(job, 1)
    took_ms, bare_ms = [], []
    for number in range(1, rounds + 1):
        bare_ms.append(bare_start_ms(job))
        pid = worker_pid(home, number)
        killed = time.time_ns()
        os.kill(pid, signal.SIGKILL)
        took_ms.append((wait_starts(job, number + 1)[number] - killed) / 1e6)
    return took_ms, bare_ms


def main(rounds: int) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        job = home / "jobs" / "bench"
        job.mkdir(parents=True)
        (job / "job.toml").write_text(SETTINGS)
        (job / "work.sh").write_text(WORK)
        (job / ".submitted.json").write_text('{"version": 1, "source": null}')
        daemon = subprocess.Popen(
            [sys.executable, "-m", "runner.supervisor", "--home", folder], stderr=subprocess.DEVNULL
        )
        try:
            took_ms, bare_ms = measure(home, job, rounds)
        finally:
            daemon.terminate()
            daemon.wait()
    ours = statistics.median(took_ms) - statistics.median(bare_ms)
    print(f"SIGKILL to the new worker's start, {rounds} rounds (ms)")
    print(f"{'':24}{'median':>9}{'p90':>9}{'max':>9}")
    for name, values in (("killed and restarted", took_ms), ("bare process start", bare_ms)):
        p90 = statistics.quantiles(values, n=10)[-1]
        print(f"{name:24}{statistics.median(values):9.1f}{p90:9.1f}{max(values):9.1f}")
    print(f"ours: {ours:.1f} ms at the median")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
