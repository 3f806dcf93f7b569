"""What a lab finds on the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runner.cli import lab


def test_what_a_killed_program_has_left_of_its_clock_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "_SHARED", tmp_path)
    with subprocess.Popen(["true"]) as ended:
        pass
    for name in ("faketime_shm_{}", "sem.faketime_sem_{}", "other_{}"):
        for pid in (ended.pid, os.getpid()):
            (tmp_path / name.format(pid)).touch()
    lab.clocked(tmp_path / "said", tmp_path / "preload")
    left = {name.format(os.getpid()) for name in ("faketime_shm_{}", "sem.faketime_sem_{}", "other_{}")}
    assert {path.name for path in tmp_path.iterdir()} == left | {f"other_{ended.pid}"}
