"""What the daemon costs: resident memory and processor time, idle and with jobs that run.

Usage: python benchmarks/bench_daemon.py [SECONDS]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Return the processor time that the process's threads have used, in seconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def rss_mb(pid: int) -> float:
    """Return the resident memory in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def share(pid: int, seconds: float) -> float:
    """Return how much of one core the process uses over `seconds`, in percent."""
    before = cpu_s(pid)
    time.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / seconds


def submit(home: Path, name: str) -> None:
    """Put in place a job that does nothing for a long time."""
    staged = home / "jobs" / f".{name}.tmp"
    staged.mkdir(parents=True)
    (staged / "job.toml").write_text('command = ["sleep", "600"]\n[resources]\ncpus = 0.01\n')
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(home / "jobs" / name)


def main(seconds: float) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        submit(home, "first")
        command = [sys.executable, "-m", "runner.supervisor", "--home", folder]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not (home / "state" / "first" / "attempts" / "0001" / "shim.json").exists():
                time.sleep(0.05)
            running = share(daemon.pid, seconds)
            subprocess.run(
                [sys.executable, "-m", "runner.cli", "cancel", "first", "--home", folder], check=True
            )
            time.sleep(1)
            idle = share(daemon.pid, seconds)
            print(f"daemon over {seconds:g} s each: {rss_mb(daemon.pid):.1f} MB resident")
            print(f"{'one job runs':16}{running:8.3f} % of a core")
            print(f"{'idle':16}{idle:8.3f} % of a core")
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
