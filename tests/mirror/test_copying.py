"""The process that copies, without a daemon: killed in the middle, and what it keeps and removes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.core.job import Job, State
from runner.core.spec import CadenceUnit, CheckpointSpec, Every, JobSpec
from runner.storage import checkpoint, lock, mirrored, records
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import Home
from tests.mirror.servers import Place, SftpServer
from tests.waiting import wait_for

#: So often a test begins again that looked too late.
TURNS = 10


def make_home(root: Path, url: str, size: int, steps: tuple[int, ...], **checkpoint: Any) -> Home:
    """A home with one job that has ended, and nothing on its mirror yet."""
    home = Home(root)
    home.create()
    asked = CheckpointSpec(**{"keep": 2, **checkpoint}, mirror=url)
    spec = JobSpec(command=("true",), entry=None, checkpoint=asked)
    records.save_job(
        home.job("job").record, Job("job", State.SUCCEEDED, "2026-01-01T00:00:00", 1, spec, seed=3)
    )
    for step in steps:
        save(home.job("job").checkpoint(step), step, size)
    return home


def save(path: Path, step: int, size: int = 4096) -> None:
    path.parent.mkdir(exist_ok=True)
    weights = np.random.default_rng(step).random(size // 8)
    checkpoint.write(path, Snapshot(step, step // 10, {}, {"variables/0": weights}), created="now")


def copier(home: Home, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "runner.mirror", "--home", str(home.root), *options])


def assert_nothing_half(home: Home, place: Place) -> None:
    """What the medium shows is, file by file, what the home has; what it is said to hold is there."""
    there = place.files("job")
    there.pop("identity.json", None)
    for name, data in there.items():
        assert data == (home.job("job").dir / name).read_bytes(), name
    assert mirrored.load(home.job("job")).files.keys() <= there.keys()


def kill_while_copying(home: Home, place: Place, later_s: float) -> None:
    """Start copying, and kill that some time after a file has begun to arrive."""
    left = {*place.root.rglob("*.tmp")}
    process = copier(home)
    wait_for(lambda: {*place.root.rglob("*.tmp")} - left or process.poll() is not None, "a copy to begin")
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


def copies_half(home: Home, sftp: SftpServer) -> bool:
    """Kill what copies while the server stands still; tell whether that was in the midst of a checkpoint."""
    process = copier(home)
    wait_for(lambda: list(sftp.root.rglob(".step-*.tmp")) or process.poll() is not None, "a copy to begin")
    sftp.halt()
    process.kill()
    process.wait()
    return bool(list(sftp.root.rglob(".step-*.tmp")))


def test_a_copy_that_stands_still_can_be_killed_and_done_again(tmp_path: Path, sftp: SftpServer) -> None:
    for turn in range(TURNS):
        home = make_home(tmp_path / f"home-{turn}", sftp.url, 4_000_000, (1,))
        if copies_half(home, sftp):
            break
        sftp.down()  # it was copied before anybody looked
        shutil.rmtree(sftp.root / "job", ignore_errors=True)
        sftp.up()
    assert list(sftp.root.rglob(".step-*.tmp"))
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
    fd = lock.try_lock(home.mirror_lock)
    assert fd is not None
    assert copier(home).wait(60) == 5
    os.close(fd)
    assert folder.files("job") == {}


def kill_while_fetching(home: Home, *fetch: str) -> None:
    """Start fetching, and kill that once a checkpoint has begun to arrive."""
    folder, process = home.job("job").checkpoints, copier(home, *fetch)
    wait_for(lambda: list(folder.glob(".step-*.tmp")) or process.poll() is not None, "a fetch")
    process.kill()
    process.wait()


def test_a_fetch_that_is_killed_is_done_again(tmp_path: Path, sftp: SftpServer) -> None:
    """The checkpoint comes last: with the rest alone the job would begin anew."""
    first = make_home(tmp_path / "first", sftp.url, 16_000_000, (1,))
    paths = first.job("job")
    save(paths.fit(0), 1)
    paths.metrics.write_text("{}\n")
    assert copier(first).wait(60) == 0
    fetch = "--fetch", "job", "--attempt", "1"
    for turn in range(TURNS):
        second = make_home(tmp_path / f"second-{turn}", sftp.url, 0, ())
        paths = second.job("job")
        paths.attempt(1).dir.mkdir(parents=True)
        kill_while_fetching(second, *fetch)
        if not paths.list_checkpoints():
            break  # else all was fetched before anybody looked
    assert paths.list_fits()
    assert not paths.list_checkpoints()
    assert mirrored.must_fetch(paths, sftp.url, "job")
    assert copier(second, *fetch).wait(60) == 0
    assert not mirrored.must_fetch(paths, sftp.url, "job")
    assert paths.checkpoint(1).read_bytes() == first.job("job").checkpoint(1).read_bytes()
    assert mirrored.behind(paths, mirrored.load(paths)) == []
    assert [json.loads(line)["event"] for line in paths.attempt(1).facts.read_text().splitlines()] == [
        "restored"
    ]


@pytest.mark.parametrize(
    ("archive", "left"),
    [(None, {25}), (Every(CadenceUnit.STEPS, 10), {10, 20, 25}), (Every(CadenceUnit.EPOCHS, 2), {20, 25})],
)
def test_what_is_kept_for_ever_stays_on_the_mirror(
    archive: Every | None, left: set[int], tmp_path: Path, folder: Place
) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (5, 10, 15, 20), keep=1, archive=archive)
    assert copier(home).wait(60) == 0
    paths = home.job("job")
    assert len(mirrored.load(paths).files) == 4, "what is here stays there"
    for step in (5, 10, 15, 20):
        paths.checkpoint(step).unlink()
    save(paths.checkpoint(25), 25)
    assert copier(home).wait(60) == 0
    assert {mirrored.step_of(name) for name in folder.files("job")} - {None} == left


@pytest.mark.parametrize("best_keep", [None, 2])
def test_best_models_that_are_no_longer_kept_go(best_keep: int | None, tmp_path: Path, folder: Place) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (1,), best_keep=best_keep)
    best = home.job("job").best
    for step in (1, 2):
        save(best / f"{step}.weights.h5", step)
    assert copier(home).wait(60) == 0
    (best / "1.weights.h5").unlink()
    save(best / "3.weights.h5", 3)
    assert copier(home).wait(60) == 0
    assert ("best/1.weights.h5" in folder.files("job")) == (best_keep is None)
    assert {"best/2.weights.h5", "best/3.weights.h5"} <= folder.files("job").keys()
