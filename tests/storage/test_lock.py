"""Locks end with their holders, and with nothing less."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.storage.lock import is_locked, try_lock

ROOT = Path(__file__).parents[2]
HOLD = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from runner.storage.lock import try_lock
fd = try_lock(Path(sys.argv[2]), shared="shared" in sys.argv)
if fd is None:
    sys.exit("held by another")
if "inherit" in sys.argv:
    child = subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, pass_fds=[fd])
print("held", flush=True)
sys.stdin.read() if "inherit" not in sys.argv else child.wait()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / ".lock"


@contextmanager
def holder(path: Path, *how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock until its stdin ends; with "inherit" it leaves it to a child as well."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLD, str(ROOT), str(path), *how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_one_holder(path: Path) -> None:
    fd = try_lock(path)
    assert fd is not None
    assert is_locked(path)
    assert try_lock(path) is None
    assert try_lock(path, shared=True) is None
    os.close(fd)
    assert not is_locked(path)


def test_looking_neither_makes_nor_takes_the_lock(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    path.parent.mkdir()
    path.touch()
    assert not is_locked(path)
    fd = try_lock(path)
    assert fd is not None
    os.close(fd)


def test_many_may_share_and_then_none_may_have_it_alone(path: Path) -> None:
    first, second = try_lock(path, shared=True), try_lock(path, shared=True)
    assert first is not None
    assert second is not None
    assert is_locked(path)
    os.close(first)
    assert try_lock(path) is None
    os.close(second)
    assert not is_locked(path)


def test_a_failed_try_leaves_no_descriptor(path: Path) -> None:
    fd = try_lock(path)
    assert fd is not None
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
    for _ in range(10):
        assert try_lock(path) is None
        assert is_locked(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - a count
    os.close(fd)


@pytest.mark.parametrize("how", [(), ("shared",)], ids=str)
def test_the_lock_dies_with_its_holder(how: tuple[str, ...], path: Path) -> None:
    with holder(path, *how) as process:
        assert try_lock(path) is None
        process.kill()
        process.wait()
        assert not is_locked(path)


def test_who_inherited_the_descriptor_keeps_the_lock(path: Path) -> None:
    with holder(path, "inherit") as process:
        process.kill()
        process.wait()
        assert is_locked(path), "the child lives"
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # the child's too: it ends
        wait_for_free(path)


def wait_for_free(path: Path) -> None:
    """Wait as anyone would who must have the lock; pytest's time limit ends it."""
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def test_a_program_that_is_started_does_not_inherit_it_by_accident(path: Path) -> None:
    fd = try_lock(path)
    assert fd is not None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        os.close(fd)
        assert not is_locked(path)


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        try_lock(tmp_path / "file" / "lock")
