"""The process that copies is killed in the middle: nothing half-published, and the next one goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runner.core.job import Job, State
from runner.core.spec import CheckpointSpec, JobSpec
from runner.storage import checkpoint, mirrored, records
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import Home
from tests.mirror.servers import Place, SftpServer
from tests.system.conftest import wait_for


def make_home(root: Path, url: str, size: int, steps: tuple[int, ...]) -> Home:
    """A home with one job that has ended, and nothing on its mirror yet."""
    home = Home(root)
    home.create()
    spec = JobSpec(command=("true",), entry=None, checkpoint=CheckpointSpec(keep=2, mirror=url))
    records.save_job(
        home.job("job").record, Job("job", State.SUCCEEDED, "2026-01-01T00:00:00", 1, spec, seed=3)
    )
    for step in steps:
        path = home.job("job").checkpoint(step)
        path.parent.mkdir(exist_ok=True)
        weights = np.random.default_rng(step).random(size // 8)
        checkpoint.write(path, Snapshot(step, 0, {}, {"variables/0": weights}), created="now")
    return home


def copier(home: Home) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "runner.mirror", "--home", str(home.root)])


def assert_nothing_half(home: Home, place: Place) -> None:
    """What the medium shows is, file by file, what the home has; what it is said to hold is there."""
    there = place.files("job")
    there.pop("identity.json", None)
    for name, data in there.items():
        assert data == (home.job("job").dir / name).read_bytes(), name
    assert mirrored.load(home.job("job")).files.keys() <= there.keys()


def kill_while_copying(home: Home, place: Place, later_s: float) -> None:
    """Start copying, and kill that some time after a file has begun to arrive."""
    process = copier(home)
    wait_for(lambda: list(place.root.rglob("*.tmp")) or process.poll() is not None, "a copy to begin")
    time.sleep(later_s)  # the moments are spread, not waited for
    process.kill()
    process.wait()


@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_killed_while_it_copies(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(kind)
    home = make_home(tmp_path / "home", place.url, 16_000_000, (1, 2))
    for later_s in (0.0, 0.02, 0.1):
        kill_while_copying(home, place, later_s)
        assert_nothing_half(home, place)
    assert copier(home).wait(60) == 0
    assert_nothing_half(home, place)
    assert mirrored.behind(home.job("job"), mirrored.load(home.job("job"))) == []
    assert not list(place.root.rglob("*.tmp"))


def test_a_copy_that_stands_still_can_be_killed_and_done_again(tmp_path: Path, sftp: SftpServer) -> None:
    home = make_home(tmp_path / "home", sftp.url, 4_000_000, (1,))
    process = copier(home)
    sessions = wait_for(lambda: list(sftp.root.rglob("*.tmp")) and sftp.sessions(), "a copy to begin")
    for pid in sessions:
        os.kill(pid, 19)
    process.kill()
    process.wait()
    assert_nothing_half(home, sftp)
    sftp.down()
    sftp.up()
    assert copier(home).wait(60) == 0
    assert_nothing_half(home, sftp)
    assert mirrored.load(home.job("job")).files.keys() == {"checkpoints/step-000000000001.weights.h5"}


def test_a_local_file_that_is_damaged_is_not_mirrored(tmp_path: Path, folder: Place) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (1, 2))
    path = home.job("job").checkpoint(2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert copier(home).wait(60) == 0
    status = mirrored.load(home.job("job"))
    assert "step-000000000002.weights.h5: not an intact checkpoint" in status.error
    assert status.files.keys() == {"checkpoints/step-000000000001.weights.h5"}
    assert folder.files("job").keys() == {*status.files, "identity.json"}


def test_only_one_copies(tmp_path: Path, folder: Place) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (1,))
    from runner.storage import lock

    fd = lock.try_lock(home.mirror_lock)
    assert fd is not None
    assert copier(home).wait(60) == 5
    os.close(fd)
    assert folder.files("job") == {}
