"""Pieces of the shim that no whole attempt shows."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.core.events import Ended
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import ends, vacancy
from runner.supervisor.attemptgroup import Group
from runner.supervisor.loop import Loop

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


WAITS_FOR_A_GPU = """
import os, runpy, sys
loaded = runpy.run_path(sys.argv[1])
attempt = loaded["Attempt"](0, sys.argv[2], 1.0)
attempt.await_gpu.__globals__["GPU_S"] = 0.5
attempt.worker, attempt.status, attempt.members = 7, 9, {7}
attempt.await_gpu(os.pipe()[0])
loaded["jsonfile"].write_outcome(sys.argv[2], attempt.outcome("", 1.0))
"""


def test_gpu_memory_that_stays_is_told_with_the_end(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 7\n")
    tool.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", WAITS_FOR_A_GPU, SHIM, tmp_path], env=environ, check=True)
    ended = ends.read_outcome(AttemptPaths(tmp_path))
    assert isinstance(ended, Ended)
    assert ended.warning == "GPU memory of the attempt is not free 0.5 s after its end"


def test_gpu_memory_that_stays_after_a_killed_shim_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 7\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(vacancy, "GPU_S", 0.5)
    assert vacancy.had_gpus(AttemptPaths(tmp_path))
    loop, told = Loop(), list[str]()

    def then(warning: str) -> None:
        told.append(warning)
        loop.after(0.2 if warning else 0.0, loop.stop)  # so that who looked is reaped

    try:
        vacancy.await_vacated(Home(tmp_path), loop, [7], then)
        loop.run()
    finally:
        loop.close()
    assert told == ["GPU memory of the attempt is not free 0.5 s after its end"]
