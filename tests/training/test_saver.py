"""The saver: facts of what is durable only, a training that no disk stops, the newest good file found."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.core.cadence import RETRY_S_MIN
from runner.core.spec import CadenceUnit, CheckpointSpec, Every
from runner.errors import StorageError
from runner.storage import checkpoint, durable
from runner.storage.layout import JobPaths
from runner.training.saver import Saver
from runner.training.stock import Stock
from tests.storage.snapshots import CREATED, assert_same, small
from tests.waiting import wait_for


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A saver on a folder of its own, with its facts and its clock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = JobPaths(folder)
        self.facts: list[dict[str, Any]] = []
        self.clock = Clock()

    def saver(self, report: Callable[[dict[str, Any]], None] | None = None, **spec: Any) -> Saver:
        return Saver(self.paths, CheckpointSpec(**spec), report or self.facts.append, self.clock)

    def stock(self) -> Stock:
        return Stock(self.paths, CheckpointSpec(), self.facts.append)

    def events(self) -> list[str]:
        return [fact["event"] for fact in self.facts]

    def steps(self) -> list[int]:
        return [step for step, _ in self.paths.list_checkpoints()]

    def fill(self, *steps: int) -> None:
        self.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        for step in steps:
            checkpoint.write(self.paths.checkpoint(step), small(step), created=CREATED)

    def damage(self, step: int) -> None:
        path = self.paths.checkpoint(step)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state")


def test_nothing_saved_is_nothing_found(bench: Bench) -> None:
    assert bench.saver().latest() is None
    assert bench.facts == []


def test_a_submitted_snapshot_is_saved_verified_and_only_then_told(bench: Bench) -> None:
    seen: list[bool] = []

    def report(fact: dict[str, Any]) -> None:
        bench.facts.append(fact)
        seen.append(checkpoint.verify(bench.paths.dir / fact["path"]).step == fact["step"])

    saver = bench.saver(report)
    saver.submit(small(12), 0.25)
    assert saver.flush(30)
    (fact,) = bench.facts
    assert fact["event"] == "checkpoint"
    assert fact["path"] == "checkpoints/step-000000000012.weights.h5"
    assert (fact["step"], fact["epoch"], fact["stall_s"]) == (12, 3, 0.25)
    assert fact["size_bytes"] == bench.paths.checkpoint(12).stat().st_size
    assert seen == [True]
    assert saver.verified_step == 12
    saver.close()


def test_the_newest_good_one_is_found_again(bench: Bench) -> None:
    bench.fill(10, 20)
    saver = bench.saver()
    latest = saver.latest()
    assert latest is not None
    assert latest[0] == bench.paths.checkpoint(20)
    assert_same(latest[1], small(20))
    assert saver.verified_step == 20
    bench.damage(20)
    assert saver.latest() is not None
    assert saver.verified_step == 10
    bench.paths.checkpoint(10).unlink()
    assert saver.latest() is None
    assert saver.verified_step is None, "step 10 would be saved again"


def test_a_bad_one_is_quarantined_with_its_reason_and_the_one_before_is_taken(bench: Bench) -> None:
    bench.fill(10, 20, 30)
    bench.damage(20)
    bench.paths.checkpoint(30).write_bytes(b"torn")
    latest = bench.saver().latest()
    assert latest is not None
    assert latest[1].step == 10
    assert bench.steps() == [10]
    assert bench.events() == ["quarantined", "quarantined"]
    for fact in bench.facts:
        moved = bench.paths.dir / fact["to"]
        assert moved.exists()
        assert moved.with_name(moved.name + ".reason").read_text() == fact["reason"] + "\n"
        assert not (bench.paths.dir / fact["path"]).exists()


def test_two_bad_ones_of_one_name_both_stay_in_quarantine(bench: Bench) -> None:
    for _ in range(2):
        bench.fill(10)
        bench.damage(10)
        assert bench.saver().latest() is None
    assert len(list(bench.paths.quarantine.glob("*.weights.h5"))) == 2


def test_a_file_named_for_another_step_is_not_taken(bench: Bench) -> None:
    bench.fill(10)
    shutil.copy(bench.paths.checkpoint(10), bench.paths.checkpoint(99))
    latest = bench.saver().latest()
    assert latest is not None
    assert latest[1].step == 10
    assert bench.events() == ["quarantined"]


def test_what_cannot_be_read_is_no_reason_to_train_anew(bench: Bench) -> None:
    bench.fill(10)
    path = bench.paths.checkpoint(20)
    path.symlink_to(path)  # ELOOP, as root too
    latest = bench.saver().latest()
    assert latest is not None
    assert latest[1].step == 10
    assert bench.events() == ["warning"]
    bench.paths.checkpoint(10).unlink()
    with pytest.raises(StorageError, match="no checkpoint can be read"):
        bench.saver().latest()
    assert path.is_symlink()


def test_what_a_killed_writer_left_is_removed_and_nothing_else(bench: Bench) -> None:
    bench.fill(10)
    bench.paths.quarantine.mkdir()
    names = (".step-000000000020.weights.h5", ".fit-000.weights.h5", ".loop-000.weights.h5")
    ours = [bench.paths.checkpoints / f"{name}.4711-0a1b2c3d.tmp" for name in names]
    ours.append(bench.paths.quarantine / ".step-000000000020.weights.h5.reason.4711-0a1b2c3d.tmp")
    foreign = [bench.paths.checkpoints / name for name in (".notes.tmp", "x.tmp", "step-1.weights.h5")]
    for path in (*ours, *foreign):
        path.write_bytes(b"")
    bench.saver()
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in foreign)


def test_the_newest_and_the_pinned_are_kept(bench: Bench) -> None:
    bench.fill(1, 2, 3)
    bench.paths.pin(1).touch()
    saver = bench.saver(keep=2)
    for step in (4, 5):
        saver.save_now(small(step))
    assert bench.steps() == [1, 4, 5]


@pytest.mark.parametrize(
    ("archive", "left"),
    [
        (Every(CadenceUnit.STEPS, 4), [4, 8, 12, 14]),
        (Every(CadenceUnit.EPOCHS, 2), [6, 12, 14]),  # of three steps each
        (Every(CadenceUnit.SECONDS, 3600), [1, 14]),
    ],
)
def test_one_of_each_period_is_kept_for_ever(bench: Bench, archive: Every, left: list[int]) -> None:
    saver = bench.saver(keep=1, archive=archive)
    for step in range(1, 15):
        saver.save_now(small(step, step // 3))
        # As if all were of the same hour, whenever the test runs.
        os.utime(bench.paths.checkpoint(step), (7200, 7200))
    assert bench.steps() == left


def test_one_whose_place_cannot_be_told_is_not_thrown_away(bench: Bench) -> None:
    bench.fill(1, 2)
    bench.paths.checkpoint(1).write_bytes(b"damaged")
    bench.saver(keep=1, archive=Every(CadenceUnit.EPOCHS, 5)).save_now(small(3))
    assert bench.steps() == [1, 3]


def test_the_last_verified_is_kept_though_others_are_of_later_steps(bench: Bench) -> None:
    bench.fill(50, 60)
    bench.saver(keep=1).save_now(small(7))
    assert bench.steps() == [7, 60]


def test_what_was_pruned_is_told_also_where_that_could_not_be_made_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.fill(1, 2, 3)

    def failing(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_folder", failing)
    assert bench.stock().make_room(verified=3)
    assert [fact["steps"] for fact in bench.facts if fact["event"] == "pruned"] == [[1, 2]]
    assert bench.steps() == [3]


def test_nothing_is_pruned_where_none_is_known_to_be_good(bench: Bench) -> None:
    bench.fill(1, 2)
    bench.damage(2)
    assert not bench.stock().make_room(verified=None)
    assert bench.steps() == [1, 2]


def test_a_newer_snapshot_takes_the_place_of_the_waiting_one(bench: Bench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def report(fact: dict[str, Any]) -> None:
        bench.facts.append(fact)
        entered.set()
        assert go_on.wait(30)

    saver = bench.saver(report, keep=9)
    saver.submit(small(1), 0.0)
    assert entered.wait(30)  # the writer is at work
    for step in (2, 3, 4):
        saver.submit(small(step), 0.0)
    assert saver.busy
    assert not saver.flush(0.01)
    assert not saver.due(9, None, epoch_ended=False)
    go_on.set()
    assert saver.flush(30)
    assert bench.steps() == [1, 4]
    saver.close()


def test_saving_at_once_drops_the_waiting_one_and_waits_for_the_writer(bench: Bench) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def report(fact: dict[str, Any]) -> None:
        bench.facts.append(fact)
        entered.set()
        assert go_on.wait(30)
        wait_for(lambda: saver._waiting is None, "the waiting one to be dropped")

    saver = bench.saver(report, keep=9)
    saver.submit(small(1), 0.0)
    assert entered.wait(30)
    saver.submit(small(2), 0.0)
    go_on.set()
    path = saver.save_now(small(3))
    assert path == bench.paths.checkpoint(3)
    assert [fact["step"] for fact in bench.facts] == [1, 3]
    assert saver.flush(30)
    assert bench.steps() == [1, 3]


def break_disk(bench: Bench) -> None:
    """Put a file where the folder should be: every save fails, as root too."""
    bench.paths.dir.mkdir(parents=True, exist_ok=True)
    bench.paths.checkpoints.write_text("")


def test_a_failed_save_is_told_and_tried_again_ever_later(bench: Bench) -> None:
    break_disk(bench)
    saver = bench.saver()
    assert not saver.due(1, None, epoch_ended=False)
    for delay in (1.0, 2.0, 4.0):
        saver.submit(small(5), 0.0)
        assert saver.flush(30)
        assert bench.facts[-1]["event"] == "save-failed"
        assert bench.facts[-1]["path"] == "checkpoints/step-000000000005.weights.h5"
        bench.clock.now_s += delay - 0.01
        assert not saver.due(6, None, epoch_ended=False)
        bench.clock.now_s += 0.02
        assert saver.due(6, None, epoch_ended=False)
    bench.paths.checkpoints.unlink()
    saver.submit(small(6), 0.0)
    assert saver.flush(30)
    assert bench.events() == ["save-failed"] * 3 + ["checkpoint"]
    assert not saver.due(7, None, epoch_ended=False)
    saver.close()


def test_saving_at_once_raises_what_failed(bench: Bench) -> None:
    break_disk(bench)
    with pytest.raises(OSError, match="checkpoints"):
        bench.saver().save_now(small(5))
    assert bench.events() == ["save-failed"]


def test_a_snapshot_that_cannot_be_stored_does_not_end_the_writer(bench: Bench) -> None:
    saver = bench.saver()
    bad = small(1)
    bad.state["x"] = object()
    saver.submit(bad, 0.0)
    assert saver.flush(30)
    saver.submit(small(2), 0.0)
    assert saver.flush(30)
    assert bench.events() == ["save-failed", "checkpoint"]


def test_a_report_that_cannot_be_written_does_not_undo_the_save(bench: Bench) -> None:
    def report(_: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    assert bench.saver(report).save_now(small(5)).exists()


def test_the_first_one_of_auto_comes_after_a_second_of_training(bench: Bench) -> None:
    saver = bench.saver()
    bench.clock.now_s += 500  # imports and tracing do not count
    assert not saver.due(1, None, epoch_ended=False)
    bench.clock.now_s += 1.0
    assert saver.due(2, None, epoch_ended=False)


def test_the_cost_stretches_the_interval(bench: Bench) -> None:
    saver = bench.saver()
    saver.due(1, None, epoch_ended=False)
    saver.submit(small(1), 0.04)
    assert saver.flush(30)
    saver.submit(small(2), 0.96)  # half a second on average: at most every 250 s
    assert saver.flush(30)
    bench.clock.now_s += 249.0
    assert not saver.due(9, None, epoch_ended=False)
    bench.clock.now_s += 9.0
    assert saver.due(9, None, epoch_ended=False)
    saver.close()


def test_steps_count_on_from_the_step_of_the_resume(bench: Bench) -> None:
    bench.fill(730)
    saver = bench.saver(every=Every(CadenceUnit.STEPS, 500))
    assert saver.latest() is not None
    assert next(step for step in range(731, 1600) if saver.due(step, None, epoch_ended=False)) == 1000
    assert bench.saver(every=Every(CadenceUnit.STEPS, 500)).due(500, None, epoch_ended=False)


def test_epochs_are_counted_once_each(bench: Bench) -> None:
    saver = bench.saver(every=Every(CadenceUnit.EPOCHS, 2))
    due = []
    for step in range(1, 51):
        ended = step % 10 == 0
        asked = [saver.due(step, 10, epoch_ended=False)]
        asked += [saver.due(step, 10, epoch_ended=True) for _ in range(2 if ended else 0)]
        if any(asked):
            due.append(step)
            saver.submit(small(step), 0.0)
    assert due == [20, 40]
    assert saver.flush(30)
    saver.close()


def test_a_saved_snapshot_is_let_go(bench: Bench) -> None:
    """The buffers of a snapshot are used again once nobody holds them."""
    saver = bench.saver()
    snapshot = small(1)
    array = weakref.ref(snapshot.arrays["variables/0"])
    saver.submit(snapshot, 0.0)
    assert saver.flush(30)
    del snapshot
    deadline = time.monotonic() + 10
    while array() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert array() is None
    saver.close()


def test_asking_costs_next_to_nothing(bench: Bench) -> None:
    saver = bench.saver()
    saver.due(1, None, epoch_ended=False)
    began = time.thread_time()
    for step in range(20_000):
        saver.due(step, 100, epoch_ended=False)
    assert (time.thread_time() - began) / 20_000 < 100e-6


def test_a_save_that_fails_while_another_is_looked_for_is_tried_again_in_time(tmp_path: Path) -> None:
    """The writer's word of it comes between the look at the failures and the end of the look at the clock."""

    class Racing(Clock):
        looks = -1

        def __call__(self) -> float:
            self.looks -= 1
            if self.looks == 0:
                saver._failed((small(1), 0.0), OSError(errno.EIO, "no"))
            return super().__call__()

    clock = Racing()
    saver = Saver(JobPaths(tmp_path), CheckpointSpec(), lambda _: None, clock)
    saver._cost_s = 0.1  # of a save: the next is far off
    clock.looks = 2  # the second is for the interval
    assert not saver.due(1, None, False)
    assert saver._failures == 1
    clock.now_s += RETRY_S_MIN
    assert saver.due(2, None, False)
