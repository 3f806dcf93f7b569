"""What is told of processes."""

from __future__ import annotations

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
            looks = [process._environment(child.pid) for _ in range(LOOKS)]
            assert process.carrying(mark) == [child.pid]
        finally:
            child.kill()
    assert [look for look in looks if "=".join(mark).encode() not in look] == []
    assert process.carrying(mark) == []
