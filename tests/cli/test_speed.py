"""`status` answers at once, and commands load only what they need."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("tensorflow", "keras", "h5py", "numpy", "watchdog", "psutil", "rich")


@pytest.mark.parametrize("words", [["status", "digits"], ["ls"], ["status", "digits", "--json"]])
def test_looking_loads_nothing_heavy(runner, words):
    runner("submit", str(runner.folder("digits")))
    script = (
        "import sys; from runner.cli import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--home", str(runner.home.root)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_status_answers_in_under_300_ms(runner):
    runner("submit", str(runner.folder("digits")))
    took_s = []
    for _ in range(5):
        started = time.perf_counter()
        assert runner("status", "digits").code == 0
        took_s.append(time.perf_counter() - started)
    assert min(took_s) < 0.3, f"median {statistics.median(took_s):.3f} s"
