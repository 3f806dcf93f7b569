"""`runner doctor` without a job: what it says of machines that lack something, and that it leaves nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.cli import disktest, machine
from tests.cli.conftest import ENVIRON, Answer, Bench

QUICK = """
class config:
    @staticmethod
    def list_physical_devices(kind):
        return []
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of packages that come before the installed ones: a TensorFlow that imports at once."""
    folder = tmp_path / "packages" / "tensorflow"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(QUICK)
    return folder.parent


def doctor(home: Path, packages: Path, **options: Any) -> Answer:
    environ = ENVIRON | {"PYTHONPATH": f"{packages}:{Path.cwd()}"} | options.pop("environ", {})
    done = subprocess.run(
        [sys.executable, "-m", "runner.cli", "doctor", "--json", "--home", str(home)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def of(answer: Answer, what: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in answer.json if one["what"] == what]
    assert len(found) == 1, answer.out + answer.err
    return found[0]


def test_everything_is_looked_at_and_nothing_left(tmp_path: Path, packages: Path) -> None:
    answer = doctor(tmp_path / "home", packages)
    assert not (tmp_path / "home").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages"], "what was measured with is gone"
    assert [one["what"] for one in answer.json] == [
        *("python", "packages", "tensorflow", "gpus", "memory", "processors"),
        *("home", "file system", "room", "disk", "inotify", "open files"),
        *("kernel", "clock", "service", "supervisor"),
    ]
    assert of(answer, "tensorflow")["found"].endswith("sees 0 GPUs")
    assert of(answer, "home")["level"] == "note"
    assert answer.code == int(any(one["level"] == "bad" for one in answer.json))
    assert all(one["advice"] for one in answer.json if one["level"] == "bad")


def test_a_home_in_memory_is_no_home(packages: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        answer = doctor(folder, packages)
    finally:
        shutil.rmtree(folder)
    assert of(answer, "file system")["level"] == "bad"
    assert "a reboot takes all checkpoints" in of(answer, "file system")["advice"]
    assert answer.code == 1


def test_a_tensorflow_that_cannot_be_imported(tmp_path: Path, packages: Path) -> None:
    (packages / "tensorflow" / "__init__.py").write_text("raise ImportError('libcuda is not there')")
    answer = doctor(tmp_path / "home", packages)
    assert of(answer, "tensorflow")["found"] == "does not import: ImportError: libcuda is not there"
    assert answer.code == 1


@pytest.mark.parametrize(
    ("script", "level", "found"),
    [
        ("echo 'H100, GPU-1, 81559 MiB, 3 MiB'", "good", "H100, GPU-1, 81559 MiB, 3 MiB"),
        ("exit 9", "bad", "nvidia-smi fails"),
    ],
)
def test_gpus_as_their_tool_tells_of_them(
    tmp_path: Path, packages: Path, script: str, level: str, found: str
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    answer = doctor(tmp_path / "home", packages, environ={"PATH": f"{tool.parent}:{os.environ['PATH']}"})
    assert (of(answer, "gpus")["level"], of(answer, "gpus")["found"]) == (level, found)


@pytest.mark.parametrize(
    ("shown", "advice"),
    [({"CUDA_VISIBLE_DEVICES": ""}, 'CUDA_VISIBLE_DEVICES="" hides'), ({}, "jobs would train on processors")],
)
def test_gpus_that_tensorflow_does_not_see(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, str], advice: str
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'H100, GPU-1, 81559 MiB, 3 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.delitem(ENVIRON, "CUDA_VISIBLE_DEVICES", raising=False)
    environ = {"PATH": f"{tool.parent}:{os.environ['PATH']}", **shown}
    found = of(doctor(tmp_path / "home", packages, environ=environ), "tensorflow")
    assert found["found"].endswith("sees 0 GPUs, nvidia-smi lists 1")
    assert found["level"] == "note"
    assert found["advice"].startswith(advice)


def test_few_open_files(tmp_path: Path, packages: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))

    answer = doctor(tmp_path / "home", packages, preexec_fn=limit)
    assert of(answer, "open files")["found"] == "256 a process (512 at most)"
    assert of(answer, "open files")["level"] == "note"


def test_a_disk_that_answers_too_fast_is_doubted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    measured = disktest.measure(tmp_path)
    assert measured.fsync_s < disktest.HONEST_S, "nobody was asked"
    level, advice = machine.verdict_of_disk(measured)
    assert (level, "power cut" in advice) == (machine.Level.NOTE, True)
    assert machine.verdict_of_disk(replace(measured, fsync_s=0.003)) == (machine.Level.GOOD, "")
    assert "slow" in machine.verdict_of_disk(replace(measured, fsync_s=0.5))[1]


def test_a_supervisor_is_seen(runner: Bench, packages: Path) -> None:
    daemon = runner.supervise()
    answer = doctor(runner.home.root, packages)
    assert of(answer, "supervisor")["found"] == f"runs, pid {daemon.pid}"
    assert of(answer, "home")["level"] == "good"
