"""Values into nodes and back, where nothing is there yet: the script's own classes, and what is not made."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import subprocess
from collections import deque
from typing import Any

import numpy as np
import pytest

from runner.training.codec import Encoder, Uncapturable, encode_members
from runner.training.decode import Decoder

ran: list[str] = []


@dataclasses.dataclass
class Record:
    epoch: int
    losses: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        ran.append("init")


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: np.ndarray | None = None

    def __hash__(self) -> int:
        return hash(self.x)


class Chain:
    def __init__(self, following: Any = None):
        self.following = following


class Phase(enum.Enum):
    WARM = "warm"
    MAIN = "main"


class Flags(enum.Flag):
    A = 1
    B = 2


class Noisy:
    """Would run code when made or dropped."""

    def __new__(cls) -> Noisy:
        ran.append("new")
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        ran.append("set")
        super().__setattr__(name, value)

    def __setstate__(self, state: Any) -> None:
        ran.append("state")


class Dropped:
    def __del__(self) -> None:
        ran.append("del")


def there_and_back(value: Any, present: Any = None) -> tuple[Any, Decoder]:
    arrays: dict[str, np.ndarray] = {}
    node = json.loads(json.dumps(Encoder(arrays, "a").encode(value)))
    decoder = Decoder(arrays)
    return decoder.merge(present, node), decoder


def test_objects_of_the_scripts_classes_are_made_again() -> None:
    shared = Record(2, [0.5])
    value = {
        "list": [Record(1), shared],
        "best": shared,
        "phase": Phase.MAIN,
        Phase.WARM: (Phase.MAIN, {Phase.WARM}),
        "points": {Point(1.0), Point(2.0)},
        Point(3.0): deque([Point(4.0, np.arange(3))]),
    }
    ran.clear()
    found, decoder = there_and_back(value)
    assert ran == []
    assert decoder.lost == []
    assert found["list"][1] is found["best"]
    assert np.array_equal(found.pop(Point(3.0))[0].y, np.arange(3))
    del value[Point(3.0)]
    assert found == value


def test_a_ring_is_closed() -> None:
    ring = Chain()
    ring.following = [Chain(ring)]
    found, _ = there_and_back(ring)
    assert found.following[0].following is found


def test_two_do_not_become_one_where_the_script_begins_with_one() -> None:
    first, second = Record(1), Record(2)
    begun = Record(0)
    found, _ = there_and_back({"now": second, "all": [first, second]}, {"now": begun, "all": [begun]})
    assert found == {"now": second, "all": [first, second]}
    assert found["now"] is begun is found["all"][1]


def test_what_runs_code_is_not_made_and_not_left_out_in_silence() -> None:
    class Local:
        pass

    for one in (Noisy(), Dropped(), Local()):
        ran.clear()
        encoder, doubtful = Encoder({}, "a"), dict[str, str]()
        nodes, missed = encode_members(encoder, [("one", one), ("other", 3)], doubtful)
        assert (list(doubtful), missed) == (["one"], {})
        assert type(one).__qualname__.rpartition(".")[2] in doubtful["one"]
        inside, missed = encode_members(Encoder({}, "b"), [("several", [one, 3])], doubtful)
        assert (list(doubtful), missed) == (["one", "several"], {})
        decoder = Decoder({})
        assert decoder.merge({"is": "kept"}, {"t": "dict", "v": [["one", nodes["one"]]]}) == {}
        assert len(decoder.lost) == 2
        assert ran == []
        same = type(one)()
        assert Decoder({}).merge(same, nodes["one"]) is same
        assert Decoder({}).merge([same], inside["several"]) == [same, 3], "what the script has made is filled"


@pytest.mark.parametrize(
    "name", ["builtins.eval", "subprocess.Popen", "argparse.Namespace", "os.system", "x"]
)
def test_a_file_cannot_name_other_classes(name: str) -> None:
    assert subprocess.Popen
    assert argparse.Namespace
    for kind, content in (("object", []), ("enum", "A")):
        decoder = Decoder({})
        assert decoder.merge([], {"t": "list", "v": [1, {"t": kind, "class": name, "v": content}]}) == [1]
        assert decoder.lost[0] == f"a {name}"


def test_functions_in_lists_are_those_that_are_there() -> None:
    found, decoder = there_and_back([1, print, [print]], [0, repr])
    assert found == [1, repr, []]
    assert decoder.lost == ["1 of 1 elements"]
    found, decoder = there_and_back(Record(1, [print]))
    assert (found.losses, decoder.lost) == ([], ["1 of 1 elements"])


@pytest.mark.parametrize(
    "value", [{print: 1}, {print}, {Chain(): 1}, frozenset([Chain()]), [Flags.A | Flags.B]]
)
def test_what_is_not_found_again_by_its_value(value: Any) -> None:
    with pytest.raises(Uncapturable):
        Encoder({}, "a").encode(value)


def test_an_alias_of_nothing_is_left_out() -> None:
    decoder = Decoder({})
    assert decoder.merge([], {"t": "list", "v": [{"t": "alias", "v": 7}, 1]}) == [1]
    assert decoder.lost == ["what is held twice", "1 of 2 elements"]
