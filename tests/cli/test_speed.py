"""Commands that look load only what they need; `benchmarks/bench_status.py` measures what that gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "keras", "h5py", "numpy", "watchdog", "psutil", "rich")


@pytest.mark.parametrize("words", [["status", "digits"], ["ls"], ["top"], ["status", "digits", "--json"]])
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
