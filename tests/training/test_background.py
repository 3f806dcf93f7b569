"""Standing back: what is lowered comes back, and short memory is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runner.training.background import shortage

LIVES = """
import os, threading, time
from pathlib import Path
from runner.training.background import Background, may_return

def told():
    nice = {os.getpriority(os.PRIO_PROCESS, int(one.name)) for one in Path("/proc/self/task").iterdir()}
    return sorted(nice), Path("/proc/self/oom_score_adj").read_text().strip()

threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
background = Background(lambda rest_s: False)
print(may_return(), told(), sep="|")
background.enter()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # it begins as low
print(told())
background.leave()
print(told())
"""


def test_what_is_lowered_comes_back_to_all_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIVES], capture_output=True, text=True, check=True, timeout=30
    )
    first, within, after = done.stdout.splitlines()
    may_return, before = first.split("|")
    niceness = os.nice(0)
    assert after == before
    assert str([niceness]) in before
    assert "'1000'" in within, "the first to go where memory runs out"
    assert (f"{niceness + 10}]" in within) == (may_return == "True")


def test_short_memory_is_seen() -> None:
    total_kb = Path("/proc/meminfo").read_text().split()[1]
    assert "MiB of memory are free" in shortage(1024 * int(total_kb) + 1)
