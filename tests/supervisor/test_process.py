"""What is told of processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from pathlib import Path

from runner.supervisor import process

LOOKS = 3000


def test_a_process_is_found_at_whatever_moment(tmp_path: Path) -> None:
    """One that is in the midst of execve(2) has no environment to be read yet; it is no less there."""
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o755)
    mark = ("RUNNER_STATE", str(tmp_path))
    with subprocess.Popen([script], env=dict([mark])) as child:
        try:
            looks = [process._environment(child.pid, math.inf) for _ in range(LOOKS)]
            assert process.carrying(mark) == [child.pid]
        finally:
            child.kill()
    assert [look for look in looks if "=".join(mark).encode() not in look] == []
    assert process.carrying(mark) == []


def test_who_has_come_of_a_process() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        below = int(child.stdout.readline())
        try:
            assert process.descends(child.pid, child.pid)
            assert process.descends(below, child.pid)
            assert process.descends(below, os.getpid())
            assert not process.descends(child.pid, below)
            assert not process.descends(os.getpid(), child.pid)
            assert not process.descends(1, child.pid)
        finally:
            child.kill()
            os.kill(below, signal.SIGKILL)
    assert not process.descends(child.pid, os.getpid()), "it is gone"
