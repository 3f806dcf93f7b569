"""Checkpoints under fire: every call fails, the process dies at every call, bits flip, files end early.

What must hold: no torn file is published, no failure is told as success, no bad file is loaded, no good one
is lost, and the process lives on. Three controls break it, which shows that the harness sees it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from runner.core.spec import CheckpointSpec
from runner.errors import BadCheckpointError
from runner.storage import checkpoint
from runner.storage.layout import JobPaths
from runner.training.saver import Saver
from tests.storage import faults
from tests.storage.snapshots import CREATED, assert_same, small

#: All calls that may fail on a disk: each does in turn.
CALLS = frozenset(
    {"openat", "read", "pread64", "preadv", "write", "pwrite64", "writev", "pwritev", "lseek", "ftruncate"}
    | {"fstat", "newfstatat", "fsync", "close", "rename", "mkdir", "unlink", "getdents64"}
)
INERT = {"brk", "mmap", "munmap", "mprotect", "getrandom", "getpid", "rt_sigaction", "futex", "madvise"}
SEED = 20260102
_CALL = re.compile(r"^(\w+)\(")


class Zygote:
    """Runs scenarios in children of `zygote.py`, with strace attached where a fault is wanted."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.zygote"],
            cwd=faults.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def run(self, scenario: str, folder: Path, *options: str) -> int:
        """Run a scenario, under strace with `options` when there are any; return the exit code."""
        stdin, stdout = self._pipes
        stdin.write(f"{scenario}\t{folder}\n")
        stdin.flush()
        pid = int(stdout.readline())
        tracer = self._attach(pid, options) if options else None
        os.kill(pid, signal.SIGCONT)
        code = int(stdout.readline())
        if tracer is not None:
            tracer.wait(timeout=60)
        return code

    def _attach(self, pid: int, options: tuple[str, ...]) -> subprocess.Popen[str]:
        program = faults.strace()[0]
        tracer = subprocess.Popen(
            [program, "-o", str(self._log), "-p", str(pid), *options], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        assert "attached" in said, said
        return tracer

    def trace(self, scenario: str, folder: Path) -> list[tuple[str, int]]:
        """Run a scenario undisturbed; list its calls as (name, its number among those of that name)."""
        assert self.run(scenario, folder, "-e", "trace=all") == 0
        seen: Counter[str] = Counter()
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            if (match := _CALL.match(line)) and match[1] not in INERT | {"exit_group"}:
                seen[match[1]] += 1
                found.append((match[1], seen[match[1]]))
        return found

    def disturb(self, scenario: str, folder: Path, call: tuple[str, int], fault: str) -> int:
        """Run a scenario with a fault at one call; `{when}` in it stands for the call's number."""
        name, when = call
        inject = f"inject={name}:{fault.format(when=when)}"
        code = self.run(scenario, folder, "-e", f"trace={name}", "-e", inject)
        injected = "INJECTED" in self._log.read_text(errors="replace")
        assert code == -9 or injected, f"nothing was injected at {call}"
        return code

    def close(self) -> None:
        self._pipes[0].close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    one = Zygote(tmp_path_factory.mktemp("zygote") / "trace")
    yield one
    one.close()


def fresh(folder: Path) -> Path:
    """A job's state folder with one good checkpoint, of step 10."""
    shutil.rmtree(folder, ignore_errors=True)
    paths = JobPaths(folder)
    paths.checkpoints.mkdir(parents=True)
    checkpoint.write(paths.checkpoint(10), small(10), created=CREATED)
    return folder


def found_after(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Start as a worker does; return the step that it finds, and what it reports."""
    facts: list[dict[str, Any]] = []
    paths = JobPaths(folder)
    latest = Saver(paths, CheckpointSpec(), facts.append).latest()
    assert latest is not None, "the good checkpoint was lost"
    step = latest[1].step
    assert_same(latest[1], small(step))
    checkpoint.verify(latest[0])
    assert not [path.name for path in paths.checkpoints.iterdir() if path.name.startswith(".")]
    return step, facts


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("times", ["{when}", "{when}+"], ids=["once", "sticky"])
def test_a_failure_is_told_and_loses_nothing(zygote: Zygote, tmp_path: Path, error: str, times: str) -> None:
    folder = tmp_path / "state"
    told = 0
    for call in zygote.trace("save", fresh(folder)):
        if call[0] not in CALLS:
            continue
        code = zygote.disturb("save", fresh(folder), call, f"error={error}:when={times}")
        assert code in {0, 3}, f"{call} failed, exit {code}"
        step, facts = found_after(folder)
        assert facts == [], (call, facts)
        assert code == 3 or step == 20, f"{call} failed and success was told, but step {step} is there"
        told += code == 3
    assert told > 10


def test_a_retry_after_any_single_failure_succeeds(zygote: Zygote, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    for call in zygote.trace("save", fresh(folder)):
        if call[0] in CALLS:
            assert zygote.disturb("save again", fresh(folder), call, "error=EIO:when={when}") == 0, call
            assert found_after(folder) == (20, [])


def test_a_kill_at_any_call_leaves_the_old_or_the_new(zygote: Zygote, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    steps = set()
    for call in zygote.trace("save", fresh(folder)):
        assert zygote.disturb("save", fresh(folder), call, "signal=SIGKILL:when={when}") == -9
        step, facts = found_after(folder)
        assert facts == [], (call, facts)
        steps.add(step)
    assert steps == {10, 20}


def test_control_in_place_tears_the_file(zygote: Zygote, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    torn = 0
    for call in zygote.trace("in place", fresh(folder)):
        if call[0] in {"write", "fsync"}:
            assert zygote.disturb("in place", fresh(folder), call, "signal=SIGKILL:when={when}") == -9
            torn += any(fact["event"] == "quarantined" for fact in found_after(folder)[1])
    assert torn > 0


def test_control_deaf_tells_failure_as_success(zygote: Zygote, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    false_successes = 0
    for call in zygote.trace("deaf", fresh(folder)):
        if call[0] == "pwrite64":
            code = zygote.disturb("deaf", fresh(folder), call, "error=EIO:when={when}")
            false_successes += code == 0 and found_after(folder)[0] != 20
    assert false_successes > 0


def test_control_bare_h5py_crashes_or_tells_failure_as_success(zygote: Zygote, tmp_path: Path) -> None:
    """Which of the two depends on the versions of h5py and HDF5: both end a training or its trust."""
    folder = tmp_path / "state"
    broken = 0
    for call in zygote.trace("bare", fresh(folder)):
        if call[0] == "pwrite64":
            code = zygote.disturb("bare", fresh(folder), call, "error=EIO:when={when}")
            broken += code < 0 or (code == 0 and zygote.run("check bare", folder) != 0)
    assert broken > 0


# Damage at rest.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = JobPaths(tmp_path).checkpoint(10)
    path.parent.mkdir()
    checkpoint.write(path, small(10), created=CREATED)
    return path


def assert_bad(path: Path, what: str) -> None:
    for use in (checkpoint.read, checkpoint.verify):
        try:
            use(path)
        except BadCheckpointError:
            continue
        pytest.fail(f"{what} went unnoticed by {use.__name__}")


def flip(path: Path, offset: int, bit: int) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1 << bit]), offset)
    os.close(fd)


def test_every_flipped_byte_of_the_header_is_noticed(file: Path) -> None:
    for offset in range(512):
        for bit in (0, 5, 7):  # 5: upper and lower case
            flip(file, offset, bit)
            assert_bad(file, f"bit {bit} of byte {offset}")
            flip(file, offset, bit)
    checkpoint.verify(file)


def test_flipped_bits_anywhere_are_noticed(file: Path) -> None:
    chance, size = random.Random(SEED), file.stat().st_size
    for _ in range(400):
        offset, bit = chance.randrange(512, size), chance.randrange(8)
        flip(file, offset, bit)
        assert_bad(file, f"bit {bit} of byte {offset} (seed {SEED})")
        flip(file, offset, bit)
    checkpoint.verify(file)


def test_every_shorter_or_longer_file_is_noticed(file: Path) -> None:
    size = file.stat().st_size
    with file.open("ab") as end:
        end.write(b"\0")
    assert_bad(file, "a byte more")
    for length in reversed(range(size)):
        os.truncate(file, length)
        with pytest.raises(BadCheckpointError):
            checkpoint.read(file)
    assert_bad(file, "an empty file")


def test_zeroed_and_exchanged_pages_are_noticed(file: Path) -> None:
    data = file.read_bytes()
    for start in range(0, len(data), 512):
        page = data[start : start + 512]
        other = data[512:1024]
        for new in (bytes(len(page)), other[: len(page)]):
            if new != page:
                file.write_bytes(data[:start] + new + data[start + 512 :])
                assert_bad(file, f"page at {start}")
