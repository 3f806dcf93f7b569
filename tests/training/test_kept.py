"""Snapshots in memory and the keeper beside the worker: what a killed worker leaves becomes a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner.core.best import Best
from runner.core.spec import CadenceUnit, CheckpointSpec, Every, Mode
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.storage.slots import Kind, Slots
from runner.supervisor.traces import snapshots_bytes
from runner.training import kept, launch, room, shelf
from runner.training.best import BestKeeper
from runner.training.identity import identity
from runner.training.kept import KeptSaver
from runner.training.report import Facts
from runner.training.saver import Saver
from runner.training.shelf import Shelf
from runner.training.unhurried import Unhurried
from tests.storage.snapshots import CREATED, assert_same, small
from tests.training.harness import BOOTSTRAP, Job
from tests.training.keeping import KEEPER, Beside
from tests.training.test_saver import Clock


class Bench:
    """A worker's side of an attempt, with a real keeper beside it."""

    def __init__(
        self, root: Path, *, limit: Callable[[], None] | None = None, program: Path = KEEPER, **spec: Any
    ) -> None:
        self.job = Job(root, "train.py", text="")
        environ = self.job.environment(self.job.prepare())
        self.paths: JobPaths = self.job.paths
        self.beside = Beside(environ, self.job.folder, limit=limit, program=program)
        self.told: list[dict[str, Any]] = []
        self.clock = Clock()
        self.facts = Facts(self.paths.attempt(1).facts)
        self.shelf = Shelf(self.beside.channel, self.beside.memory, None, self.warn)
        self.saver = KeptSaver(
            self.paths, CheckpointSpec(**spec), self.report, self.clock, lambda: None, shelf=self.shelf
        )

    def report(self, fact: dict[str, Any]) -> None:
        self.told.append(fact)
        self.facts.append(fact)

    def warn(self, message: str) -> None:
        self.report({"event": "warning", "message": message})

    def die(self) -> list[dict[str, Any]]:
        """Be gone as a killed worker is; return what the keeper told then."""
        assert self.shelf._channel is not None
        self.shelf._channel.close()
        assert self.beside.wait() == 0
        facts = self.job.facts()
        assert facts[: len(self.told)] == self.told
        return facts[len(self.told) :]

    def slots(self) -> Slots:
        found = self.shelf.slots()
        assert found is not None
        return found

    def steps(self) -> list[int]:
        return [step for step, _ in self.paths.list_checkpoints()]

    def events(self) -> list[str]:
        return [fact["event"] for fact in self.told]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path)
    yield one
    one.beside.process.kill()


def keep(bench: Bench, snapshot: Snapshot) -> None:
    """Have a snapshot kept in memory alone."""
    bench.saver._disk_due = False
    bench.saver.submit(snapshot, 0.001)


def save(bench: Bench, snapshot: Snapshot) -> None:
    """Have it written too, and wait for that."""
    bench.saver._disk_due = True
    bench.saver.submit(snapshot, 0.001)
    assert bench.saver.flush(30)


def best_of(step: int, value: float, metric: str = "val_loss") -> Snapshot:
    """A best model, as it waits."""
    best = Best(metric, Mode.MIN, value, 1, step, "best.weights.h5")
    return replace(small(step), state={"best": identity(best)})


def test_the_keeper_writes_what_the_worker_has_in_memory(bench: Bench) -> None:
    save(bench, small(12))
    assert bench.steps() == [12]
    assert_same(checkpoint.read(bench.paths.checkpoint(12)), small(12))
    checkpoint.verify(bench.paths.checkpoint(12))
    (fact,) = bench.told
    assert (fact["event"], fact["step"]) == ("checkpoint", 12)
    assert fact["size_bytes"] == bench.paths.checkpoint(12).stat().st_size
    assert bench.die() == [], "there was nothing left to do"


def test_what_only_the_memory_has_becomes_a_checkpoint_when_the_worker_dies(bench: Bench) -> None:
    save(bench, small(3))
    for step in range(4, 30):
        keep(bench, small(step))
    assert bench.steps() == [3]
    (fact,) = bench.die()
    assert (fact["event"], fact["step"]) == ("checkpoint", 29)
    assert bench.steps() == [3, 29]
    assert_same(checkpoint.read(bench.paths.checkpoint(29)), small(29))


def test_the_next_attempt_finds_in_memory_what_the_disk_would_not_take(bench: Bench) -> None:
    save(bench, small(3))
    keep(bench, small(29))
    bench.paths.checkpoints.rename(bench.paths.dir / "elsewhere")
    bench.paths.checkpoints.write_text("")  # no folder, as root too
    memory = os.dup(bench.beside.memory)
    assert [fact["event"] for fact in bench.die()] == ["save-failed"]
    bench.paths.checkpoints.unlink()
    (bench.paths.dir / "elsewhere").rename(bench.paths.checkpoints)
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()  # without a keeper of its own
    with channel:
        following = Shelf(channel.fileno(), memory, None, bench.warn)

        def latest() -> tuple[Path | None, Snapshot]:
            saver = KeptSaver(
                bench.paths, CheckpointSpec(), bench.report, bench.clock, lambda: None, shelf=following
            )
            found = saver.latest()
            assert found is not None
            assert saver.verified_step == (3 if found[0] is None else found[1].step), "of the disk"
            return found

        path, snapshot = latest()
        assert path is None
        assert_same(snapshot, small(29))
        # What the disk has as well is taken from there.
        checkpoint.write(bench.paths.checkpoint(29), small(29), created=CREATED)
        assert latest()[0] == bench.paths.checkpoint(29)
        bench.paths.checkpoint(29).unlink()
        # What was damaged is dropped, and said.
        (slot,) = Slots(memory).newest(Kind.SNAPSHOT)[:1]
        os.pwrite(memory, b"\xff", slot.offset)
        assert latest()[1].step == 3
        assert "was damaged" in bench.told[-1]["message"]
    os.close(memory)


def test_what_the_disk_has_already_is_not_written_again(bench: Bench) -> None:
    keep(bench, small(3))
    save(bench, small(4))
    assert bench.die() == []
    assert bench.steps() == [4]


def test_what_comes_after_the_snapshots_outdates_them(bench: Bench) -> None:
    keep(bench, small(3))
    bench.saver.outdate()
    assert bench.die() == []
    assert bench.steps() == []


def test_a_best_model_that_waits_becomes_a_file_when_the_worker_dies(bench: Bench) -> None:
    for step, value in ((10, 0.5), (20, 0.25)):
        bench.saver.keep_best(best_of(step, value))
        keep(bench, small(step + 1))
    facts = bench.die()
    assert [fact["event"] for fact in facts] == ["best", "checkpoint"], "the best one first"
    assert (facts[0]["value"], facts[0]["step"]) == (0.25, 20)
    found = checkpoint.read(bench.paths.best / "best.weights.h5")
    assert (found.step, found.state["best"]["value"]) == (20, 0.25)
    record = json.loads((bench.paths.best / "best.json").read_text())
    assert record["value"] == 0.25


def test_a_best_model_that_no_snapshot_follows_is_not_copied(bench: Bench) -> None:
    """The epochs since the last snapshot are trained again, and it is found again."""
    keep(bench, small(5))
    bench.saver.keep_best(best_of(10, 0.5))
    assert [fact["event"] for fact in bench.die()] == ["checkpoint"]


def test_a_large_best_model_is_in_memory_at_once_and_written_by_the_keeper(bench: Bench) -> None:
    assert bench.saver.lend_best([((7,), np.dtype("i8"))]) is None, "a small one is copied later"
    best, path = large_best(bench, 10, 0.5)
    (slot,) = bench.slots().newest(Kind.BEST)
    assert slot.step == 10
    size, elsewhere_s = bench.saver.write(path, best)
    assert elsewhere_s > 0
    assert size == path.stat().st_size
    assert_same(checkpoint.read(path), best)
    path.unlink()
    assert [fact["event"] for fact in bench.die()] == ["best"], "of the worker only the memory was left"
    assert_same(checkpoint.read(path), best)


def test_a_best_model_that_is_on_the_disk_is_not_written_again(bench: Bench) -> None:
    bench.saver.keep_best(best_of(10, 0.5))
    keep(bench, small(11))
    bench.saver.best_written()
    assert [fact["event"] for fact in bench.die()] == ["checkpoint"]


def test_a_best_model_by_another_metric_takes_the_place_of_the_former(bench: Bench) -> None:
    keeper = BestKeeper(bench.paths, CheckpointSpec(), bench.report)
    assert keeper.take(best_of(10, 0.1, "loss"))
    bench.saver.keep_best(best_of(20, 0.5))
    keep(bench, small(21))
    assert [fact["event"] for fact in bench.die()] == ["best", "checkpoint"]


def test_no_snapshot_is_taken_while_a_best_model_waits_that_nobody_else_has(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.saver.due(5, None, False) is False, "the first look begins the count"
    bench.clock.now_s += 0.5
    assert bench.saver.due(6, None, False)
    bench.saver.keep_best(best_of(6, 0.5))
    with monkeypatch.context() as patched:
        patched.setattr(Slots, "lend", lambda *_: False)
        assert not bench.saver.due(7, None, False)
        keep(bench, small(7))
    assert bench.slots().newest(Kind.SNAPSHOT) == []
    bench.saver.best_written()
    bench.clock.now_s += 0.5
    assert bench.saver.due(7, None, False)


def test_what_is_later_than_a_best_model_that_cannot_be_saved_is_not_saved_either(tmp_path: Path) -> None:
    soft = 8 * 1024
    bench = Bench(
        tmp_path,
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY)),
    )
    bench.saver.keep_best(best_of(10, 0.5))
    keep(bench, Snapshot(11, 0, {}, {}))
    assert [fact["event"] for fact in bench.die()] == ["save-failed"]
    assert bench.steps() == []


def test_a_damaged_snapshot_is_not_taken_for_one(bench: Bench) -> None:
    save(bench, small(4))
    keep(bench, small(5))
    keep(bench, small(6))
    slots = bench.slots()
    newest = slots.newest(Kind.SNAPSHOT)[0]
    assert newest.digested == newest.committed
    slots.snapshot(newest).arrays["variables/0"][0, 0] += 1
    facts = bench.die()
    assert "of step 6 was damaged" in facts[0]["message"]
    assert bench.steps() == [4, 5], "the one before it"


def test_what_is_later_than_a_damaged_best_model_is_not_saved(bench: Bench) -> None:
    bench.saver.keep_best(best_of(10, 0.5))
    keep(bench, small(11))
    slots = bench.slots()
    slots.snapshot(slots.newest(Kind.BEST)[0]).arrays["variables/0"][0, 0] += 1
    memory = os.dup(bench.beside.memory)
    assert [fact["event"] for fact in bench.die()] == ["warning"]
    assert bench.steps() == []
    assert next_attempt(bench, memory).latest() is None, "nor does the next attempt go on from it"


def next_attempt(bench: Bench, memory: int) -> KeptSaver:
    """Return the saver of an attempt that has the memory of the one before, and no keeper."""
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()
    with channel:
        following = Shelf(channel.fileno(), memory, None, bench.warn)
    arguments = bench.paths, CheckpointSpec(), bench.report, bench.clock, lambda: None
    return KeptSaver(*arguments, shelf=following)


@pytest.mark.parametrize(
    ("name", "value"), [("offset", 1 << 40), ("offset", -4096), ("capacity", -5), ("size", 1 << 40)]
)
def test_a_slot_whose_record_is_spoilt_hides_no_other(bench: Bench, name: str, value: int) -> None:
    for step in (5, 6):
        keep(bench, small(step))
    slots = bench.slots()
    for slot in slots.newest(Kind.SNAPSHOT):
        slots.note_digest(slot)
    slots._set(slots.newest(Kind.SNAPSHOT)[0].index, **{name: value})
    memory = os.dup(bench.beside.memory)
    bench.die()
    assert bench.steps() == [5], "the keeper has found the one before"
    bench.paths.checkpoint(5).unlink()
    found = next_attempt(bench, memory).latest()
    assert found is not None
    assert found[1].step == 5


def of_many(count: int, step: int) -> Snapshot:
    """A snapshot of many variables of four bytes, with all that is told of each."""
    names = [f"variables/{number:05d}" for number in range(count)]
    links = {f"optimizer/some/layer_{number}/vars/{number}": name for number, name in enumerate(names)}
    arrays = {name: np.full((1,), step, np.float32) for name in names}
    return replace(small(step), arrays=arrays, links=links, attributes={})


@pytest.mark.parametrize("count", [400, 3000])
def test_a_model_of_many_small_variables_is_kept_too(bench: Bench, count: int) -> None:
    for step in (5, 6, 7):
        snapshot = of_many(count, step)
        lent = bench.saver.lend([(array.shape, array.dtype) for array in snapshot.arrays.values()])
        assert lent is not None
        for array, place in zip(snapshot.arrays.values(), lent, strict=True):
            np.copyto(place, array)
        keep(bench, replace(snapshot, arrays=dict(zip(snapshot.arrays, lent, strict=True))))
        assert [slot.step for slot in bench.slots().newest(Kind.SNAPSHOT)][:1] == [step]
    assert not bench.told


def test_what_comes_on_top_of_the_variables_takes_no_more_than_it_needs(bench: Bench) -> None:
    big, more = np.zeros(12 << 20, np.uint8), np.zeros(8 << 20, np.uint8)
    for step in (5, 6, 7):
        (lent,) = bench.saver.lend([(big.shape, big.dtype)]) or (None,)
        assert lent is not None
        keep(bench, replace(small(step), arrays={"variables/0": lent, "callbacks/0": more}, links={}))
        assert bench.slots().newest(Kind.SNAPSHOT)[0].step == step
    held = max(slot.capacity for slot in bench.slots().all())
    assert big.nbytes + more.nbytes < held < 1.3 * (big.nbytes + more.nbytes)


def test_what_is_dropped_while_memory_is_made_ready_stays_dropped(bench: Bench) -> None:
    keep(bench, small(5))
    bench.shelf._preparing.set()
    bench.saver.outdate()
    bench.shelf._preparing.clear()
    assert bench.slots().newest(Kind.SNAPSHOT) == []


def test_a_slot_that_holds_something_else_meanwhile_is_not_dropped(bench: Bench) -> None:
    for step in (5, 6):
        keep(bench, small(step))
    slots = bench.slots()
    older = slots.newest(Kind.SNAPSHOT)[1]
    for step in (7, 8):
        keep(bench, small(step))
    assert older.index in {slot.index for slot in slots.newest(Kind.SNAPSHOT)}
    before = slots.newest(Kind.SNAPSHOT)
    slots.drop(older)
    assert slots.newest(Kind.SNAPSHOT) == before


def test_a_slot_that_is_spoilt_while_it_is_written_makes_no_file(bench: Bench) -> None:
    keep(bench, small(7))
    slots = bench.slots()
    slots.note_digest(slots.newest(Kind.SNAPSHOT)[0])
    slot = slots.newest(Kind.SNAPSHOT)[0]
    slots.snapshot(slot).arrays["variables/0"][0, 0] += 1
    path = bench.paths.checkpoint(7)
    path.parent.mkdir()
    asked = {"write": slot.index, "number": slot.committed, "path": str(path), "created": CREATED}
    answer = bench.shelf.ask(asked)
    assert answer is not None
    assert "has changed" in answer["error"]
    assert list(path.parent.iterdir()) == []


def test_a_slot_that_changes_while_it_is_written_makes_no_file(bench: Bench) -> None:
    keep(bench, small(7))
    slot = bench.slots().newest(Kind.SNAPSHOT)[0]
    path = bench.paths.checkpoint(7)
    path.parent.mkdir()
    asked = {"write": slot.index, "number": slot.committed + 1, "path": str(path), "created": CREATED}
    answer = bench.shelf.ask(asked)
    assert answer is not None
    assert "has changed" in answer["error"]
    assert list(path.parent.iterdir()) == []


def test_a_forked_child_keeps_nothing(bench: Bench) -> None:
    keep(bench, small(7))
    pid = os.fork()
    if pid == 0:
        done = bench.shelf.on or bench.shelf.lend(100) is not None or bench.shelf.ask({}) is not None
        os._exit(int(done))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    save(bench, small(8))
    assert bench.steps() == [8]


def test_what_finds_no_slot_and_is_not_due_for_the_disk_is_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "lend", lambda *_: False)
    keep(bench, small(7))
    assert bench.saver.flush(30)
    assert bench.steps() == []
    save(bench, small(8))
    assert bench.steps() == [8]


def test_snapshots_take_no_more_than_their_share_of_the_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look finds the disk due already: so it is where the first step is traced for long."""
    monkeypatch.setattr(Saver, "due", lambda _self, step, *_: step == 1)
    monkeypatch.setattr(Saver, "submit", lambda *_: None)
    taken, begun_s = 0, bench.clock.now_s
    for step in range(1, 60_001):
        bench.clock.now_s += 0.005
        if bench.saver.due(step, None, False):
            bench.clock.now_s += 0.01
            bench.saver.submit(small(step), 0.01)
            taken += 1
    elapsed_s = bench.clock.now_s - begun_s
    assert 0.8 * kept.SHARE * elapsed_s <= 0.01 * taken <= kept.SHARE * elapsed_s + kept.FREE_S + 0.02


def test_time_that_was_not_used_is_saved_up_within_a_bound(bench: Bench) -> None:
    wait_after(bench, 1, 0.01)
    waited = [wait_after(bench, step, 0.01) for step in range(2, 17)]
    bench.clock.now_s += 100_000.0  # nobody trains, or a fit is left alone
    again = [wait_after(bench, step, 0.01) for step in range(17, 32)]
    assert waited == pytest.approx(again)
    assert waited[0] == kept.INTERVAL_S_MIN
    assert waited[-1] == pytest.approx(0.01 / kept.SHARE)


def test_what_a_large_model_could_not_afford_is_not_held_against_a_small_one(bench: Bench) -> None:
    wait_after(bench, 1, 3.0)
    for step in range(2, 200):
        assert wait_after(bench, step, 3.0) == kept.INTERVAL_S_MAX
    assert wait_after(bench, 200, 0.001) <= kept.INTERVAL_S_MAX
    waited = [wait_after(bench, step, 0.003) for step in (201, 202, 203)]
    assert waited[1:] == pytest.approx([0.003 / kept.SHARE] * 2)


def test_one_snapshot_that_was_disturbed_holds_none_back(bench: Bench) -> None:
    for step in range(1, 400):
        usual_s = wait_after(bench, step, 0.0015)
    assert wait_after(bench, 400, 0.5) == pytest.approx(usual_s)
    assert wait_after(bench, 401, 0.5) == kept.INTERVAL_S_MAX, "two are no accident"


def test_a_first_snapshot_that_took_long_holds_none_back(bench: Bench) -> None:
    assert wait_after(bench, 1, 5.0) == kept.INTERVAL_S_MIN
    assert wait_after(bench, 2, 5.0) > 10.0


def test_short_snapshots_are_taken_so_often_that_half_a_second_is_lost_at_most(bench: Bench) -> None:
    waited = [wait_after(bench, step, kept.SHORT_S) for step in range(1, 400)]
    assert waited[0] == kept.INTERVAL_S_MIN
    assert waited[-1] == pytest.approx(kept.SHORT_S / kept.SHORT_SHARE) == pytest.approx(0.5)


def wait_after(bench: Bench, step: int, stall_s: float) -> float:
    """Have a snapshot kept that took so long; return how long there is no other, and let that time pass."""
    bench.saver._disk_due = False
    bench.saver.submit(small(step), stall_s)
    waited_s = bench.saver._snapshot_at - bench.clock.now_s
    bench.clock.now_s += waited_s
    return waited_s


def test_no_snapshot_is_taken_that_there_is_no_room_for(bench: Bench) -> None:
    assert bench.saver.due(5, None, False) is False, "the first look begins the count"
    with hanging(bench):
        bench.saver._disk_due = True
        bench.saver.submit(small(6), 0.001)
        keep(bench, small(7))
        bench.saver.keep_best(best_of(8, 0.5))
        bench.clock.now_s += 0.5
        assert not bench.saver.due(9, None, False), "one is being written, one is the newest, one is the best"
    assert bench.saver.flush(30)
    bench.clock.now_s += 0.5
    assert bench.saver.due(10, None, False)


@contextlib.contextmanager
def hanging(bench: Bench) -> Iterator[None]:
    """Let the keeper do nothing for the time of the block."""
    os.kill(bench.beside.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(bench.beside.process.pid, signal.SIGCONT)


def test_a_keeper_that_hangs_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "PATIENCE_S", 0.3)
    with hanging(bench):
        save(bench, small(7))
        assert bench.steps() == [7]
        assert bench.events() == ["warning", "checkpoint"]


def test_who_wants_to_leave_does_not_wait_for_a_keeper_that_hangs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "HURRY_S", 0.3)
    with hanging(bench):
        bench.saver._disk_due = True
        bench.saver.submit(small(7), 0.001)
        while not bench.shelf._asking.locked():
            time.sleep(0.001)
        bench.saver.save_now(small(8))
        assert bench.steps() == [7, 8]


def test_who_leaves_does_not_wait_for_it_at_what_is_asked_later_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "HURRY_S", 0.3)
    best, path = large_best(bench, 10, 0.5)
    with hanging(bench):
        bench.saver.hurry()
        bench.saver.write(path, best)
        assert_same(checkpoint.read(path), best)
        assert bench.events() == ["warning"]


def test_a_keeper_that_comes_back_writes_no_older_best_model_over_a_newer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "PATIENCE_S", 0.3)
    best, path = large_best(bench, 10, 0.5)
    with hanging(bench):
        bench.saver.write(path, best)
        bench.saver.best_written()
        newer = best_of(20, 0.25)
        bench.saver.write(path, newer)
    assert bench.shelf._given_up is not None
    bench.shelf._given_up.close()
    assert bench.beside.wait() == 0
    assert_same(checkpoint.read(path), newer)


#: A keeper whose disk stands still with the file written and verified, before it gets its name.
LATE = """
import pathlib, runpy, time
folder, rename = pathlib.Path({folder!r}), pathlib.Path.rename

def late(path, target):
    (folder / "there").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return rename(path, target)

pathlib.Path.rename = late
runpy.run_path({keeper!r}, run_name="__main__")
"""


def test_nor_where_its_disk_stood_still_at_the_last_moment(tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(LATE.format(folder=str(tmp_path), keeper=str(KEEPER)))
    bench = Bench(tmp_path, program=program)
    best, path = large_best(bench, 10, 0.5)

    def lose_patience() -> None:
        while not (tmp_path / "there").exists():
            time.sleep(0.01)
        bench.shelf._deadline = 0.0

    threading.Thread(target=lose_patience).start()
    bench.saver.write(path, best)
    bench.saver.best_written()
    newer = best_of(20, 0.25)
    bench.saver.write(path, newer)
    (tmp_path / "go").touch()
    assert bench.shelf._given_up is not None
    bench.shelf._given_up.close()
    assert bench.beside.wait() == 0
    assert_same(checkpoint.read(path), newer)
    BestKeeper(bench.paths, CheckpointSpec(), bench.report)
    assert not [one for one in path.parent.iterdir() if one.name.startswith(".")], "what came late is swept"


def test_a_best_model_that_no_disk_took_waits_on_in_the_next_attempt(bench: Bench) -> None:
    best, path = large_best(bench, 10, 0.5)
    keep(bench, small(11))
    path.parent.rmdir()
    path.parent.write_text("no folder")
    bench.paths.checkpoints.write_text("no folder")
    expected = {key: array.copy() for key, array in best.arrays.items()}
    memory = os.dup(bench.beside.memory)
    bench.die()
    path.parent.unlink()
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()  # without a keeper of its own
    with channel:
        following = Shelf(channel.fileno(), memory, None, bench.warn)
        spec = CheckpointSpec()
        saver = KeptSaver(bench.paths, spec, bench.report, bench.clock, lambda: None, shelf=following)
        waiting = Unhurried(BestKeeper(bench.paths, spec, bench.report), spec, saver, bench.clock)
        assert waiting.consider(2, 20, {"val_loss": 0.75}, lambda: small(20), lambda _: None) is None
        assert waiting.flush()
        assert Slots(memory).newest(Kind.BEST) == []
    found = checkpoint.read(path)
    assert (found.step, found.state["best"]["value"]) == (10, 0.5)
    assert all((found.arrays[key] == array).all() for key, array in expected.items())
    os.close(memory)


def large_best(bench: Bench, step: int, value: float) -> tuple[Snapshot, Path]:
    """Have a large best model kept; return it and where its file belongs."""
    arrays = bench.saver.lend_best([((kept.LARGE_BYTES // 4,), np.dtype("f4"))])
    assert arrays is not None
    arrays[0][:] = value
    best = Snapshot(step, 1, best_of(step, value).state, {"a": arrays[0]})
    bench.saver.keep_best(best)
    path = bench.paths.best / "best.weights.h5"
    path.parent.mkdir(exist_ok=True)
    return best, path


def test_descriptors_that_were_closed_on_the_way_are_done_without(tmp_path: Path) -> None:
    job = Job(tmp_path, "train.py", text="")
    environ = job.environment(job.prepare())
    assert launch.load({**environ, launch.KEEPER: "977,978"}).keeper is None


def test_where_the_keeper_is_killed_the_worker_writes_by_itself_and_says_so(bench: Bench) -> None:
    save(bench, small(3))
    bench.beside.process.send_signal(signal.SIGKILL)
    bench.beside.process.wait(30)
    save(bench, small(4))
    assert bench.steps() == [3, 4]
    assert [event for event in bench.events() if event != "warning"] == ["checkpoint", "checkpoint"]
    assert "keeper has ended" in next(f["message"] for f in bench.told if f["event"] == "warning")
    save(bench, small(5))
    assert bench.events().count("warning") == 1
    keep(bench, small(6))
    assert [slot.step for slot in bench.slots().newest(Kind.SNAPSHOT)][:1] == [6], "for another keeper"


def test_a_checkpoint_that_the_worker_did_not_live_to_report_is_reported(bench: Bench) -> None:
    """The worker asks and is gone before the answer: the keeper finds nobody to tell."""
    bench.paths.checkpoints.mkdir()
    channel = bench.shelf._channel
    assert channel is not None
    keep(bench, small(7))
    slot = bench.slots().newest(Kind.SNAPSHOT)[0]
    asked = {
        "write": slot.index,
        "number": slot.committed,
        "path": str(bench.paths.checkpoint(7)),
        "created": CREATED,
    }
    channel.send(json.dumps(asked).encode())
    facts = bench.die()
    assert [(fact["event"], fact["step"]) for fact in facts] == [("checkpoint", 7)]
    assert bench.steps() == [7]
    assert_same(checkpoint.read(bench.paths.checkpoint(7)), small(7))


def test_what_the_disk_refuses_is_told_as_by_any_saver_and_tried_again(tmp_path: Path) -> None:
    """The keeper may write 64 KiB and no more: ENOSPC's sister EFBIG, for a file that is larger."""
    soft = 64 * 1024
    bench = Bench(
        tmp_path,
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY)),
    )
    large = replace(small(3), arrays={**small(3).arrays, "x": np.zeros(100_000)})
    save(bench, large)
    assert bench.events() == ["save-failed"]
    assert "File too large" in bench.told[0]["reason"]
    assert bench.steps() == []
    assert list(bench.paths.checkpoints.iterdir()) == []
    resource.prlimit(bench.beside.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    save(bench, large)
    assert bench.steps() == [3]
    bench.die()


def test_where_there_is_no_memory_it_is_switched_off_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _limit: 1_000_000)
    bench.saver.prepare(lambda: 10_000_000)
    assert "snapshots in memory are off: they need 30000000 bytes" in bench.told[0]["message"]
    assert bench.saver.lend([((3,), np.dtype("f4"))]) is None
    save(bench, small(3))
    assert bench.steps() == [3]


def test_large_memory_is_made_ready_beside_the_training(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "_AT_ONCE_BYTES", 0)
    go_on = threading.Event()
    prepare = Slots.prepare
    monkeypatch.setattr(Slots, "prepare", lambda *args: (go_on.wait(30), prepare(*args)))
    bench.saver.prepare(lambda: 4_000_000)
    assert bench.saver.lend([((3,), np.dtype("f4"))]) is None, "not yet"
    save(bench, small(4))
    assert bench.steps() == [4], "the disk does not wait for it"
    go_on.set()
    while not bench.shelf.on:
        time.sleep(0.001)
    arrays = bench.saver.lend([((1_000_000,), np.dtype("f4"))])
    assert arrays is not None
    arrays[0][:] = 3.0
    save(bench, Snapshot(5, 0, {}, {"a": arrays[0]}))
    assert (checkpoint.read(bench.paths.checkpoint(5)).arrays["a"] == 3.0).all()
    assert bench.shelf.slot_of(small(5)) is None


def test_a_save_that_need_not_be_now_waits_for_the_memory(bench: Bench) -> None:
    """Without it, training would stand still for the first touch of as much memory again."""
    assert not bench.saver.due(2, None, epoch_ended=False)
    bench.clock.now_s += 2
    assert bench.saver.due(3, None, epoch_ended=False)
    bench.shelf._preparing.set()
    assert not bench.saver.due(3, None, epoch_ended=False)
    assert bench.saver.due(3, None, epoch_ended=True), "an epoch's end does not come again soon"
    bench.shelf._preparing.clear()
    assert bench.saver.due(4, None, epoch_ended=False)


def test_a_snapshot_that_has_grown_finds_another_slot(bench: Bench) -> None:
    for step, size in enumerate((1_000, 1_000_000, 3_000_000, 10), start=1):
        arrays = bench.saver.lend([((10,), np.dtype("f8"))])
        assert arrays is not None
        arrays[0][:] = step
        keep(bench, Snapshot(step, 0, {}, {"a": arrays[0], "b": np.full(size, step)}))
        (newest,) = Slots(bench.beside.memory).newest(Kind.SNAPSHOT)[:1]
        assert newest.step == step
        found = Slots(bench.beside.memory).snapshot(newest)
        assert (found.arrays["a"] == step).all()
        assert (found.arrays["b"] == step).all()


def test_what_is_being_written_is_not_written_over(bench: Bench) -> None:
    """Snapshots go on while the keeper is stopped in the middle: what it writes in the end is its own."""
    with hanging(bench):
        bench.saver._disk_due = True
        bench.saver.submit(filled(1), 0.001)
        for step in range(2, 12):
            keep(bench, filled(step))
    assert bench.saver.flush(30)
    assert (checkpoint.read(bench.paths.checkpoint(1)).arrays["a"] == 1).all()
    (fact,) = bench.die()
    assert fact["step"] == 11


def filled(step: int) -> Snapshot:
    return Snapshot(step, 0, {}, {"a": np.full(100_000, step)})


def test_a_worker_without_xxhash_gets_files_that_it_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.storage import digests

    monkeypatch.setattr(digests, "_preferred", "sha256")
    bench = Bench(tmp_path)
    save(bench, small(3))
    assert checkpoint.describe(bench.paths.checkpoint(3)).digest.startswith("sha256:")
    bench.die()


SHIM = Path(runner.__file__).parent / "supervisor" / "shim.py"
SCRIPT = """
import os, time
import keras, numpy as np
keras.utils.set_random_seed(3)
x, y = np.random.rand(640, 8), np.random.rand(640, 1)
layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((8,)), *layers])
model.compile("adam", "mse")
pace_s = float(os.environ.get("PACE", "0"))
slowly = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(pace_s))
history = model.fit(x, y, batch_size=16, epochs=15, verbose=0, callbacks=[slowly], validation_data=(x, y))
print("RESULT weights", b"".join(w.tobytes() for w in model.get_weights()).hex())
print("RESULT history", history.history)
"""


def test_a_killed_training_goes_on_from_memory_though_the_disk_was_never_due(tmp_path: Path) -> None:
    plain = Job(tmp_path / "plain", "train.py", text=SCRIPT).plain()
    assert plain.code == 0, plain.errors
    job = Job(tmp_path / "kept", "train.py", text=SCRIPT, keeper=True)
    seen = 0
    for _ in range(2):
        attempt = job.start(every=("epochs", 1000), env={"PACE": "0.02"})
        assert attempt.beside is not None
        slots = Slots(os.dup(attempt.beside.memory))

        def newer(slots: Slots = slots, seen: int = seen) -> bool:
            return any(slot.step > seen + 10 for slot in slots.newest(Kind.SNAPSHOT))

        attempt.until(newer)
        seen = slots.newest(Kind.SNAPSHOT)[0].step
        attempt.send(signal.SIGKILL).wait()
        newest = max(step for step, _ in job.paths.list_checkpoints())
        assert newest >= seen, "what was in memory when it died, or what came in the last moment"
        seen = newest
    last = job.start(every=("epochs", 1000)).wait()
    assert last.code == 0, last.errors
    assert [fact["step"] for fact in job.facts_of("resumed")][-1] == seen
    assert last.results == plain.results
    best = checkpoint.read(job.paths.best / "best.weights.h5")
    losses = {line["step"]: line["val_loss"] for line in job.metrics()}
    assert best.step == min(losses, key=lambda step: losses[step])


@pytest.mark.parametrize("keeper_dies", [False, True])
def test_the_shim_has_a_keeper_write_what_is_left_before_it_tells_the_outcome(
    tmp_path: Path, keeper_dies: bool
) -> None:
    job = Job(tmp_path, "train.py", text=SCRIPT)
    named = {"argv": [sys.executable, str(BOOTSTRAP)], "keeper": [sys.executable, "-I", str(KEEPER)]}
    environ = job.prepare(every=("epochs", 1000), **named)
    attempt = job.paths.attempt(1)
    orders = json.loads(attempt.launch.read_text())
    attempt.launch.write_text(json.dumps({**orders, "env": environ}))
    with (tmp_path / "lock").open("w") as lock:
        shim = subprocess.Popen(
            ["bash", "-c", f"exec 3>&{lock.fileno()}; exec {sys.executable} -I -S {SHIM} {attempt.dir}"],
            env=job.environment({"PACE": "0.02"}),
            pass_fds=[lock.fileno()],
        )
    while not job.paths.progress.exists() or job.progress()["step"] < 60:
        assert shim.poll() is None
        time.sleep(0.01)
    identities = json.loads(attempt.shim.read_text())
    assert snapshots_bytes(attempt) > 4096, "not counted to the job's memory"
    if keeper_dies:
        os.kill(identities["keeper"]["pid"], signal.SIGKILL)
    os.kill(identities["worker"]["pid"], signal.SIGKILL)
    assert shim.wait(60) == 0
    assert json.loads(attempt.outcome.read_text())["signal"] == "SIGKILL"
    (fact,) = job.facts_of("checkpoint")
    assert fact["step"] > 0, "though the disk was never due"
    assert checkpoint.verify(job.paths.checkpoint(fact["step"])).step == fact["step"]
    assert not Path(f"/proc/{identities['keeper']['pid']}").exists()
    assert snapshots_bytes(attempt) == 0


def keep_held(bench: Bench, snapshot: Snapshot, develop: Callable[[Snapshot], bool], *, due: bool) -> None:
    """Have a snapshot kept whose values another thread completes."""
    bench.saver._disk_due = due
    bench.saver.submit(snapshot, 0.001, develop)


def test_what_is_held_is_kept_when_another_thread_has_completed_it(bench: Bench) -> None:
    go = threading.Event()

    def complete(snapshot: Snapshot) -> bool:
        assert threading.current_thread() is not threading.main_thread()
        snapshot.arrays["late"] = np.arange(3)
        return go.wait(30)

    assert bench.saver.holds(kept.HELD_BYTES)
    assert not bench.saver.holds(kept.HELD_BYTES + 1)
    keep_held(bench, small(7), complete, due=True)
    bench.clock.now_s += 1e6
    assert not bench.saver.due(8, None, False), "one at a time"
    assert bench.slots().newest(Kind.SNAPSHOT) == []
    go.set()
    assert bench.saver.flush(30)
    assert bench.steps() == [7]
    (slot,) = bench.slots().newest(Kind.SNAPSHOT)
    assert list(bench.slots().snapshot(slot).arrays["late"]) == [0, 1, 2]


def test_a_held_snapshot_that_is_of_no_use_is_taken_again_at_once(bench: Bench) -> None:
    keep_held(bench, small(7), lambda _: False, due=False)
    bench.saver._aside.settle()
    assert not bench.saver.due(8, None, False)
    keep_held(bench, small(8), lambda _: False, due=True)
    bench.saver._aside.settle()
    assert bench.saver.due(9, None, False), "the disk was to have it"
    assert bench.saver.due(9, None, False), "for as long as none was taken: this may be no safe point"
    save(bench, small(9))
    assert bench.steps() == [9]


def test_where_holding_fails_snapshots_are_copied_from_then_on(bench: Bench) -> None:
    keep_held(bench, small(7), lambda _: bool(1 / 0), due=True)
    bench.saver._aside.settle()
    assert bench.saver.due(8, None, False)
    assert not bench.saver.holds(1)
    assert "ZeroDivisionError" in bench.told[-1]["message"]


def test_without_a_thread_what_is_held_is_copied_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        keep_held(bench, small(7), lambda _: True, due=False)
    assert [slot.step for slot in bench.slots().newest(Kind.SNAPSHOT)] == [7]
    assert not bench.saver.holds(1)


def test_checkpoints_that_are_due_by_steps_do_not_slip(tmp_path: Path) -> None:
    bench = Bench(tmp_path, every=Every(CadenceUnit.STEPS, 5))
    assert not bench.saver.due(1, None, False)
    go = threading.Event()
    keep_held(bench, small(4), lambda _: go.wait(30), due=False)
    threading.Timer(0.05, go.set).start()
    assert bench.saver.due(5, None, False)
    assert not bench.saver._aside.busy
    bench.beside.process.kill()


def test_who_leaves_waits_for_what_is_being_copied(bench: Bench) -> None:
    go = threading.Event()
    keep_held(bench, small(7), lambda _: go.wait(30), due=False)
    threading.Timer(0.05, go.set).start()
    bench.saver.hurry()
    assert [slot.step for slot in bench.slots().newest(Kind.SNAPSHOT)] == [7]


def test_nothing_that_is_held_is_forgotten_by_who_comes_after_it(bench: Bench) -> None:
    """What outdates the snapshots outdates the one that is being completed too."""
    go = threading.Event()
    keep_held(bench, small(7), lambda _: go.wait(30), due=False)
    threading.Timer(0.05, go.set).start()
    bench.saver.outdate()
    assert bench.slots().newest(Kind.SNAPSHOT) == []
    assert not bench.saver._aside.busy
