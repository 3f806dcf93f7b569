"""How long `runner status NAME` takes, beside a bare start of the same Python.

Usage: python benchmarks/bench_status.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def took_s(command: list[str]) -> float:
    """Run a command; return its seconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(rounds: int) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "jobs" / "bench"
        job.mkdir(parents=True)
        (Path(folder) / "state").mkdir()
        (job / "job.toml").write_text('command = ["true"]\n')
        status = [sys.executable, "-m", "runner.cli", "status", "bench", "--home", folder]
        bare = [sys.executable, "-c", "pass"]
        pairs = [(took_s(status), took_s(bare)) for _ in range(rounds)]
    print(
        f"{rounds} rounds, medians: runner status {statistics.median(p[0] for p in pairs):.3f} s, "
        f"python -c pass {statistics.median(p[1] for p in pairs):.3f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
