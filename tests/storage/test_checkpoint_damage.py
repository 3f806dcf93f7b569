"""Checkpoints that were damaged at rest: flipped bytes, every other length, pages in the wrong place.

Random mutants by the thousand, and what can happen to a commit, are in the fault campaign (`tests.faults`).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from runner.errors import BadCheckpointError
from runner.storage import checkpoint
from runner.storage.layout import JobPaths
from tests.storage.snapshots import CREATED, small

SEED = 20260102


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
