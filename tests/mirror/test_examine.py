"""A checkpoint is examined as it streams by: whatever is wrong with it is noticed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import BadCheckpointError
from runner.mirror.examine import check_name, examine
from runner.storage import checkpoint, userblock
from tests.storage.snapshots import CREATED, small

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("examined") / "step-000000000012.weights.h5"
    checkpoint.write(path, small(12), created=CREATED)
    return path.read_bytes()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 511, 4096, 5000, 10**9])
def test_it_does_not_matter_in_what_pieces_it_comes(data: bytes, size: int) -> None:
    found = examine(pieces(data, size), "a.weights.h5")
    assert found.info is not None
    assert (found.info.step, found.size_bytes) == (12, len(data))
    assert found == examine([data], "a.weights.h5")


@pytest.mark.parametrize("name", ["checkpoint.v1.weights.h5", "checkpoint.v2.weights.h5"])
def test_each_format_there_was_is_known(name: str) -> None:
    found = examine([(DATA / name).read_bytes()], name)
    assert found.info is not None
    assert found.info.format == int(name[len("checkpoint.v")])


def test_a_flipped_bit_anywhere_is_noticed(data: bytes) -> None:
    places = [*range(0, userblock.SIZE, 97), *random.Random(7).sample(range(len(data)), 200)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(BadCheckpointError):
            examine([bytes(damaged)], "a.weights.h5")


@pytest.mark.parametrize("length", [0, 1, 100, 4095, 4096, 4097, -1])
def test_what_is_cut_off_is_noticed(data: bytes, length: int) -> None:
    with pytest.raises(BadCheckpointError):
        examine(pieces(data[:length], 1000), "a.weights.h5")
    with pytest.raises(BadCheckpointError):
        examine([data, b"more"], "a.weights.h5")


def test_another_file_is_what_it_is() -> None:
    assert examine([b"a", b"b"], "best.json") == examine([b"ab"], "best.json")
    assert examine([b"a"], "best.json") != examine([b"b"], "best.json")


def test_a_checkpoint_is_of_the_step_that_it_is_named_for(data: bytes) -> None:
    info = examine([data], "a.weights.h5").info
    check_name(info, 12, "a")
    check_name(info, None, "a")
    with pytest.raises(BadCheckpointError, match="holds step 12"):
        check_name(info, 13, "a")
