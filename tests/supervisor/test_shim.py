"""Pieces of the shim that no whole attempt shows."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.supervisor.attemptgroup import Group

SHIM = Path(runner.__file__).parent / "supervisor" / "shim.py"


@pytest.fixture
def shim() -> dict[str, Any]:
    return runpy.run_path(str(SHIM))


def test_a_worker_that_its_group_does_not_take_is_told_of_once_and_taken_in_later(
    shim: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a spare's worker, which was there before the group."""
    attempt = shim["Attempt"](0, str(tmp_path), 1.0)
    attempt.group, attempt.worker = Group({"path": str(tmp_path / "group")}), os.getpid()
    for _ in range(2):
        attempt.take_in()
        assert attempt.deadlines.pop("take_in") > 0, "it is tried again"
    assert capsys.readouterr().err.count("the worker is in no control group, and has no limits yet") == 1
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "cgroup.procs").touch()  # as the kernel has it
    attempt.take_in()
    assert (tmp_path / "group" / "cgroup.procs").read_text() == str(os.getpid())
    assert not attempt.deadlines
