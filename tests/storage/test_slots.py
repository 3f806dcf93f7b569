"""Snapshots in shared memory: what was committed comes back, whatever kills the process that filled it."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.storage import blocks, checkpoint, durable
from runner.storage import memory as memory_file
from runner.storage.checkpoint import Snapshot
from runner.storage.slots import Kind, Slot, Slots, size_of
from tests.storage.faults import ROOT
from tests.storage.snapshots import assert_same, every_kind, small

SEED = 20261121
#: Fills slots until it is killed; every array of a snapshot holds its step. "careless" commits first.
VICTIM = """
import sys
import numpy as np
from runner.storage import slots
from runner.storage.checkpoint import Snapshot

memory, careless, step = slots.Slots(int(sys.argv[1])), sys.argv[2] == "careless", 0
if careless:
    begin, set_ = memory._set, memory._set
    def commit_at_once(index, **values):
        set_(index, **values)
        if "begun" in values:
            set_(index, committed=values["begun"], kind=1)
    memory._set = commit_at_once
print("ready", flush=True)
while True:
    step += 1
    assert memory.lend(9_000_000)
    arrays = {str(n): memory.room((1_000_000,), np.dtype("f8")) for n in range(1)}
    for array in arrays.values():
        array.fill(step)
    arrays["other"] = np.full(1000, step)
    memory.commit(Snapshot(step, 0, {"step": step}, arrays), slots.Kind.SNAPSHOT)
"""


@pytest.fixture
def memory() -> Iterator[Slots]:
    fd = memory_file.create()
    yield Slots(fd)
    os.close(fd)


def put(memory: Slots, snapshot: Snapshot, kind: Kind = Kind.SNAPSHOT) -> Slot:
    assert memory.lend(sum(array.nbytes for array in snapshot.arrays.values()))
    return memory.commit(snapshot, kind)


def test_what_is_committed_comes_back_bit_by_bit(memory: Slots) -> None:
    given = replace(small(), arrays=every_kind(), links={"a/vars/0": "foreign/bfloat16"})
    slot = put(memory, given)
    assert (slot.whole, slot.step, slot.epoch) == (True, given.step, given.epoch)
    other = Slots(memory._fd)  # as another process sees it
    assert_same(other.snapshot(other.newest(Kind.SNAPSHOT)[0]), given)


def test_an_empty_snapshot_comes_back(memory: Slots) -> None:
    slot = put(memory, Snapshot(0, 0, {}, {}))
    assert_same(memory.snapshot(slot), Snapshot(0, 0, {}, {}))


def test_arrays_that_lie_in_the_slot_are_not_copied(memory: Slots) -> None:
    assert memory.lend(8000)
    array = memory.room((1000,), np.dtype("f8"))
    array[:] = 7.0
    slot = memory.commit(Snapshot(1, 0, {}, {"a": array, "b": np.arange(3)}), Kind.SNAPSHOT)
    assert slot.size < 16_000, "once 8000 bytes, the manifest, and little more"
    found = memory.snapshot(slot).arrays["a"]
    array[0] = 8.0
    assert found[0] == 8.0


def test_the_newest_is_told_and_never_lent(memory: Slots) -> None:
    for step in range(1, 20):
        slot = put(memory, small(step))
        assert memory.newest(Kind.SNAPSHOT)[0] == slot
        assert memory.snapshot(slot).step == step
        assert memory.lend(100)
        assert memory.newest(Kind.SNAPSHOT)[0] == slot, "while the next is being filled"


def test_a_slot_of_which_arrays_live_is_not_lent(memory: Slots) -> None:
    first = put(memory, small(1))
    array = memory.snapshot(first).arrays["variables/0"][1:]
    for step in range(2, 20):
        put(memory, small(step))
        np.testing.assert_array_equal(array, small(1).arrays["variables/0"][1:])
    assert memory.all()[first.index] == first
    del array
    for step in range(20, 24):
        put(memory, small(step))
    assert memory.all()[first.index] != first


def test_what_was_lent_and_never_committed_is_not_lent_again_while_it_lives(memory: Slots) -> None:
    put(memory, small(1))
    assert memory.lend(8000)
    array = memory.room((1000,), np.dtype("f8"))
    array[:] = 7.0
    for step in range(2, 9):
        if memory.lend(8000):
            memory.room((1000,), np.dtype("f8"))[:] = step
            memory.commit(small(step), Kind.SNAPSHOT)
    assert (array == 7.0).all()
    assert memory.newest(Kind.SNAPSHOT)[0].step == 8


def test_the_best_model_stays_until_it_is_dropped(memory: Slots) -> None:
    best = put(memory, small(1), Kind.BEST)
    for step in range(2, 20):
        put(memory, small(step))
        assert memory.newest(Kind.BEST) == [best]
    assert_same(memory.snapshot(best), small(1))
    held = [memory.snapshot(slot) for slot in memory.newest(Kind.SNAPSHOT)]
    assert not memory.lend(100), "all are in use"
    memory.drop(best)
    assert memory.newest(Kind.BEST) == []
    assert memory.lend(100)
    assert held


def test_a_newer_best_model_takes_the_place_of_one_that_waits(memory: Slots) -> None:
    put(memory, small(1), Kind.BEST)
    second = put(memory, small(2), Kind.BEST)
    put(memory, small(3))
    put(memory, small(4))
    assert memory.newest(Kind.BEST)[0] == second
    assert_same(memory.snapshot(second), small(2))


def test_a_slot_grows_with_what_it_is_to_hold_and_gives_its_former_memory_back(memory: Slots) -> None:
    for size in (1000, 4_000_000, 1_000_000, 8_000_000, 8_000_000, 8_000_000):
        array = np.full(size, 3, np.uint8)
        slot = put(memory, Snapshot(1, 0, {}, {"a": array}))
        np.testing.assert_array_equal(memory.snapshot(slot).arrays["a"], array)
    held = 512 * os.fstat(memory._fd).st_blocks
    assert held < 3 * 1.25 * 8_000_000 + 1_000_000


def test_the_smallest_slot_that_is_lent_for_arrays_holds_them() -> None:
    """Large ones begin with a page: what that takes must not be missing where a slot is used again."""
    layout = [((1024 * 1024 + 64,), np.dtype(np.uint8))] * 24

    def reused(former: int) -> bool:
        """Make a slot for something else; fill it with the layout, where it is lent for that."""
        fd = memory_file.create()
        try:
            memory = Slots(fd)
            assert memory.lend(former)
            capacity = memory.held_bytes()
            assert memory.lend(size_of(layout))
            again = memory.held_bytes() == capacity
            arrays = {str(number): memory.room(*one) for number, one in enumerate(layout)}
            memory.commit(Snapshot(1, 0, {}, arrays), Kind.SNAPSHOT)
            return again
        finally:
            os.close(fd)

    too_small, enough = size_of(layout) // 2, size_of(layout)
    assert reused(enough)
    assert not reused(too_small)
    while enough - too_small > mmap.PAGESIZE:
        middle = (too_small + enough) // 2
        too_small, enough = (too_small, middle) if reused(middle) else (middle, enough)


def test_what_does_not_fit_is_said_and_the_newest_stays(memory: Slots) -> None:
    slot = put(memory, small(1))
    assert memory.lend(100)
    with pytest.raises(MemoryError, match="do not fit"):
        memory.commit(replace(small(2), arrays={"a": np.zeros(10_000_000)}), Kind.SNAPSHOT)
    assert memory.newest(Kind.SNAPSHOT) == [slot]
    assert_same(memory.snapshot(slot), small(1))


def test_what_was_written_over_after_the_commit_is_noticed(memory: Slots) -> None:
    slot = put(memory, small(1))
    assert memory.intact(slot), "nobody has digested it"
    assert memory.note_digest(slot)
    slot = memory.newest(Kind.SNAPSHOT)[0]
    assert slot.digested == slot.committed
    assert memory.intact(slot)
    memory.snapshot(slot).arrays["variables/0"][0, 0] += 1
    assert not memory.intact(slot)


def test_a_digest_comes_too_late_for_a_slot_that_is_lent_again(memory: Slots) -> None:
    first = put(memory, small(1))
    put(memory, small(2))
    put(memory, small(3))
    put(memory, small(4))
    assert not memory.note_digest(first)


def test_what_is_no_memory_of_ours_is_refused() -> None:
    fd = os.memfd_create("other")
    os.truncate(fd, mmap.PAGESIZE)
    with pytest.raises(ValueError, match="no memory for snapshots"):
        Slots(fd)
    os.close(fd)


def killed(way: str, after_s: float) -> tuple[int, list[str]]:
    """Kill a process that fills slots; return the newest step found, and what is wrong with it."""
    fd = memory_file.create()
    command = [sys.executable, "-c", VICTIM, str(fd), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[fd], cwd=ROOT) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"ready\n"
        memory = Slots(fd)
        while not memory.newest(Kind.SNAPSHOT):
            assert victim.poll() is None
            time.sleep(0.001)
        time.sleep(after_s)  # any moment will do
        victim.send_signal(signal.SIGKILL)
    wrong = []
    found = memory.newest(Kind.SNAPSHOT)
    for slot in found:
        try:
            snapshot = memory.snapshot(slot)
        except ValueError as error:
            wrong.append(str(error))
            continue
        for key, array in snapshot.arrays.items():
            if not (array == slot.step).all():
                wrong.append(f"{key} of step {slot.step} holds {sorted(set(array.tolist()))}")
    os.close(fd)
    return found[0].step if found else 0, wrong


def test_large_arrays_go_to_the_disk_from_where_they_lie(
    memory: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {
        "small": np.arange(5),
        "odd": np.arange(9_000_001, dtype=np.uint8),
        "next": np.arange(3_000_001.0),
        "last": np.arange(1 << 18),
    }
    given = replace(small(), arrays={**small().arrays, **arrays})
    checkpoint.write(tmp_path / "usual", given, created="")
    slot = put(memory, given)
    held = memory.snapshot(slot)
    begin = memory.hold(slot).__array_interface__["data"][0]
    copied, straight, really = 0, 0, durable.write_at

    def noted(fd: int, data: bytes | memoryview, offset: int) -> int:
        nonlocal copied, straight
        written = really(fd, data, offset)
        inside = begin <= np.frombuffer(data, np.uint8).__array_interface__["data"][0] < begin + slot.size
        straight, copied = straight + inside * written, copied + (not inside) * written
        return written

    monkeypatch.setattr(durable, "write_at", noted)
    checkpoint.write(tmp_path / "held", held, created="")
    assert (tmp_path / "held").read_bytes() == (tmp_path / "usual").read_bytes()
    large = {key for key, array in arrays.items() if array.nbytes >= blocks.PIECE}
    assert straight == sum(arrays[key].nbytes // blocks.BLOCK * blocks.BLOCK for key in large) > 5 * copied
    assert_same(checkpoint.read(tmp_path / "held"), given)


def test_what_a_killed_process_leaves_is_whole() -> None:
    chance = random.Random(SEED)
    for _ in range(12):
        step, wrong = killed("careful", 0.1 * chance.random())
        assert step > 0
        assert not wrong


def test_the_kills_would_notice_a_commit_that_comes_too_early() -> None:
    chance = random.Random(SEED)
    assert any(killed("careless", 0.1 * chance.random())[1] for _ in range(12))
