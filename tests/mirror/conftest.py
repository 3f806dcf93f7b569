"""Homes, media, and a job that writes real checkpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.core.job import Job
from runner.storage import mirrored
from runner.supervisor import process
from tests.mirror.servers import KINDS, Place, opened
from tests.system.conftest import Site
from tests.waiting import wait_for

PACER = Path(__file__).with_name("pacer.py")
QUICK = '[restart]\nbackoff = "50ms..200ms"\n'


class Home(Site):
    """A home whose jobs have mirrors."""

    def pace(
        self, name: str, url: str, target: int, pause_s: float = 0.05, *more: str, toml: str = ""
    ) -> None:
        """Submit the pacer."""
        command = [sys.executable, str(PACER), str(target), str(pause_s), *more]
        self.submit(name, command=command, toml=f'[checkpoint]\nkeep = 2\nmirror = "{url}"\n{QUICK}{toml}')

    def status(self, name: str) -> mirrored.Status:
        return mirrored.load(self.home.job(name))

    def is_mirrored(self, name: str) -> bool:
        paths, status = self.home.job(name), self.status(name)
        here = {step for step, _ in paths.list_checkpoints()}
        there = {step for held in status.files if (step := mirrored.step_of(held)) is not None}
        return bool(here) and not mirrored.behind(paths, status) and here == there

    def wait_mirrored(self, name: str) -> None:
        wait_for(lambda: self.is_mirrored(name), f"{name} to be mirrored")

    def wait_held(self, name: str, from_step: int = 1) -> int:
        """Wait until the mirror of a job that runs has a checkpoint of this step or a later one."""

        def newest() -> int:
            steps = [step for held in self.status(name).files if (step := mirrored.step_of(held)) is not None]
            return max((step for step in steps if step >= from_step), default=0)

        return wait_for(newest, f"step {from_step} of {name} on its mirror")

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """Wait for the first event of a kind."""
        return wait_for(lambda: next((one for one in self.events(name) if one["event"] == kind), None), kind)

    def starts(self, name: str) -> list[list[int]]:
        """Attempt, seed and first step of every start of the pacer."""
        return self.trace(name)

    def has_started(self, name: str) -> bool:
        return (self.home.folder(name) / "trace").exists()

    def copier(self) -> int:
        """The pid of the process that copies."""

        def found() -> int | None:
            for pid in process.carrying(("RUNNER_HOME", str(self.home.root))):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"runner.mirror" in words and b"--fetch" not in words:
                        return pid
            return None

        return wait_for(found, "the process that copies")

    def job_of(self, name: str) -> Job:
        job = self.job(name)
        assert job is not None
        return job

    def close(self) -> None:
        super().close()
        for pid in process.carrying(("RUNNER_HOME", str(self.home.root))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Callable[[str], Home]]:
    """Makes homes, each on a machine of its own, as it were."""
    made: list[Home] = []

    def make(name: str) -> Home:
        made.append(Home(tmp_path / name))
        return made[-1]

    try:
        yield make
    finally:
        for home in made:
            home.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from opened("file", tmp_path, monkeypatch)


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from opened("sftp", tmp_path, monkeypatch)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each medium in turn."""
    yield from opened(request.param, tmp_path, monkeypatch)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from opened("s3", tmp_path, monkeypatch)
