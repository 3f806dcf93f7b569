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


PACES = """
import time
from runner.training import background
background.may_return = lambda: False  # whoever runs this may
rests = []
def is_wanted(rest_s):
    rests.append(rest_s)
    return len(rests) == 2
stands_back = background.Background(is_wanted)
stands_back.enter()
for _ in range(4):
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass
    stands_back.pace()
print(*rests)
"""


def test_who_may_not_take_a_priority_back_rests_until_it_is_wanted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PACES], capture_output=True, text=True, check=True, timeout=30
    )
    rests = [float(word) for word in done.stdout.split()]
    assert len(rests) == 2, "it is wanted then"
    assert min(rests) >= 0.3, "three times as long as it has worked"


def test_short_memory_is_seen() -> None:
    total_kb = Path("/proc/meminfo").read_text().split()[1]
    assert "MiB of memory are free" in shortage(1024 * int(total_kb) + 1)
