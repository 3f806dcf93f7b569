"""Data and callbacks that share objects, classes and random generators: killed, they end as undisturbed."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.training import reach
from runner.training.ahead import ReadAhead, consume
from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def test_what_data_and_callbacks_share(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "entangled.py", nursery=nursery).run_through().results
    assert len(undisturbed) == 4
    job = Job(tmp_path / "killed", "entangled.py", nursery=nursery)
    kill = (
        "class/train:6@5 class/train:18@17 object/train:8@43 object/end:2@45 pieces/train:9@59"
        " pieces/end:2@67 held-back/train:10@92 both-draw/train:16@122"
    )
    killed = job.run_through(kill=kill, every=("steps", 1))
    assert set(lost_or_gained(undisturbed, killed.results)) <= {"object"}
    resumed = job.facts_of("resumed")
    # A death waits for the checkpoint of its step; the writer may have come one further by then.
    wanted = {5: True, 17: True, 43: False, 45: False, 59: True, 67: True, 92: True, 122: False}
    assert [fact["exact"] for fact in resumed] == list(wanted.values())
    assert all(fact["step"] - step in {0, 1} for fact, step in zip(resumed, wanted, strict=True))
    assert resumed[2]["reason"] == "callbacks have what making the data changes: Holding.before (callback 0)"
    assert "other code draws as well" in resumed[-1]["reason"]


# --- a generator that is read ahead -----------------------------------------------------------------------


def counting(until: int, gate: threading.Event | None = None) -> Iterator[int]:
    for number in range(until):
        if gate is not None and number == 3:
            gate.wait()
        yield number


def test_what_was_read_further_is_given_in_its_order() -> None:
    ahead = ReadAhead(counting(5))
    assert next(ahead) == 0
    assert ahead.reach(3)
    assert ahead.asked == 3
    assert list(ahead) == [1, 2, 3, 4]
    assert ahead.asked == 6, "the end was asked for"
    assert list(ahead) == []


def test_the_end_and_an_error_come_where_they_belong() -> None:
    def failing() -> Iterator[int]:
        yield 0
        raise KeyError("the script's")

    ahead = ReadAhead(failing())
    assert ahead.reach(9)
    assert ahead.asked == 2
    assert next(ahead) == 0
    with pytest.raises(KeyError):
        next(ahead)


def test_nobody_reads_further_than_allowed_and_what_waits_can_be_taken_meanwhile() -> None:
    gate, given = threading.Event(), queue.SimpleQueue[int]()

    def read() -> None:
        for one in ahead:
            given.put(one)

    ahead = ReadAhead(counting(6, gate))
    reader = threading.Thread(target=read)
    with ahead.limited(4):
        assert not ahead.reach(4, stuck_s=0.2), "it waits for the gate"
        reader.start()
        assert [given.get(timeout=9) for _ in range(3)] == [0, 1, 2]
        with ahead.still() as is_still:
            assert not is_still
        gate.set()
        assert ahead.reach(4)
        assert ahead.asked == 4
        with pytest.raises(queue.Empty):
            given.get(timeout=0.2)
    assert [given.get(timeout=9) for _ in range(3)] == [3, 4, 5]
    reader.join(9)


def test_what_is_consumed_is_not_kept_and_not_waited_for() -> None:
    source = counting(6)
    assert consume(source, 2)
    assert list(source) == [2, 3, 4, 5]
    assert consume(counting(3), None)
    assert not consume(counting(6, threading.Event()), 5, stuck_s=0.2)


# --- what code reaches ------------------------------------------------------------------------------------

CLASSES = """
class Ledger:
    entries = {}
    total = 0
    unused = []
    small = 5
    large = bytearray(8)
    def enter(self, e):
        Ledger.entries[e] = 1
        Ledger.last = e
        Ledger.total += 1
    def never(self):
        self.unused.append(unreached)
class Base:
    seen = []
    count = 0
    @classmethod
    def bump(klass):
        klass.count += 1
    def up(self):
        type(self).named = 1
        self.__class__.other = 2
        self.own = 3
        self.mine += 1
        self.seen.append(1)
        self.bump()
class Sub(Base):
    def on(self):
        ledger.enter(3)
        batch = Thing()
        batch.small = 3
        record(Ledger, 1)
class Thing:
    pass
def record(kind, v):
    kind.total = kind.total + v
ledger, unreached = Ledger(), []
"""


def test_attributes_of_classes_are_those_that_the_code_mentions_or_gives(tmp_path: Path) -> None:
    script: Any = ModuleType("the_script")
    script.__file__ = str(tmp_path / "the_script.py")
    sys.modules["the_script"] = script
    try:
        exec(compile(CLASSES, script.__file__, "exec"), script.__dict__)
        found = reach.by_name(reach.reached(reach.functions_of([script.Sub()]), [script.Sub]))
        classes = {
            name.removeprefix("the_script."): place for name, place in found.items() if name.count(".") > 1
        }
        given = {name for name, place in classes.items() if place.is_bound}
        assert given == {
            *("Ledger.last", "Ledger.total", "Base.count", "Base.named", "Base.other"),
            *("Sub.count", "Sub.named", "Sub.other"),
        }
        # Something, nobody knows what, is given `small`; a method of an object in reach mentions `unused`.
        assert set(classes) - given == {"Ledger.entries", "Ledger.small", "Ledger.unused", "Base.seen"}
        assert [name for name, place in classes.items() if place.value is reach.ABSENT] == [
            *("Sub.count", "Sub.named", "Sub.other", "Base.named", "Base.other", "Ledger.last")
        ]
        classes["Ledger.last"].put(7)
        classes["Sub.count"].put(8)
        assert (script.Ledger.last, script.Sub.count, script.Base.count) == (7, 8, 0)
        classes["Sub.count"].clear()
        assert script.Sub.count == 0
    finally:
        del sys.modules["the_script"]
