"""Snapshots in memory and the keeper beside the worker: what a killed worker leaves becomes a checkpoint."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.core.best import Best
from runner.core.spec import CheckpointSpec, Mode
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.storage.slots import Kind, Slots
from runner.training import kept, room
from runner.training.best import identity
from runner.training.kept import KeptSaver
from tests.storage.snapshots import CREATED, assert_same, small
from tests.training.harness import Job
from tests.training.keeping import Beside
from tests.training.test_saver import Clock


class Bench:
    """A worker's side of an attempt, with a real keeper beside it."""

    def __init__(self, root: Path, *, limit: Callable[[], None] | None = None, **spec: Any) -> None:
        self.job = Job(root, "train.py", text="")
        environ = self.job.environment(self.job.prepare())
        self.paths: JobPaths = self.job.paths
        self.beside = Beside(environ, self.job.folder, limit=limit)
        self.told: list[dict[str, Any]] = []
        self.clock = Clock()
        self.saver = KeptSaver(
            self.paths,
            CheckpointSpec(**spec),
            self.told.append,
            self.clock,
            lambda: None,
            channel=self.beside.channel,
            memory=self.beside.memory,
        )

    def die(self) -> list[dict[str, Any]]:
        """Be gone as a killed worker is; return what the keeper told then."""
        assert self.saver._channel is not None
        self.saver._channel.close()
        assert self.beside.wait() == 0
        return self.job.facts()

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
        best = Best("val_loss", Mode.MIN, value, 1, step, "best.weights.h5")
        bench.saver.keep_best(replace(small(step), state={"best": identity(best)}))
    keep(bench, small(25))
    facts = bench.die()
    assert [fact["event"] for fact in facts] == ["best", "checkpoint"], "the best one first"
    assert (facts[0]["value"], facts[0]["step"]) == (0.25, 20)
    found = checkpoint.read(bench.paths.best / "best.weights.h5")
    assert (found.step, found.state["best"]["value"]) == (20, 0.25)
    record = json.loads((bench.paths.best / "best.json").read_text())
    assert record["value"] == 0.25


def test_a_best_model_that_is_on_the_disk_is_not_written_again(bench: Bench) -> None:
    best = Best("val_loss", Mode.MIN, 0.5, 1, 10, "best.weights.h5")
    bench.saver.keep_best(replace(small(10), state={"best": identity(best)}))
    bench.saver.best_written()
    assert bench.die() == []


def test_nothing_is_taken_while_a_best_model_waits_that_nobody_else_has(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.saver.due(5, None, False) is False, "the first look begins the count"
    bench.clock.now_s += 0.5
    assert bench.saver.due(6, None, False)
    monkeypatch.setattr(Slots, "lend", lambda *_: False)
    bench.saver.keep_best(small(6))
    assert not bench.saver.due(7, None, False)
    bench.saver.best_written()
    assert bench.saver.due(7, None, False)


def test_a_damaged_snapshot_is_not_taken_for_one(bench: Bench) -> None:
    keep(bench, small(3))
    save(bench, small(4))  # when this is answered, what was noted before has been digested
    slots = bench.saver._slots
    assert slots is not None
    assert slots.lend(1000)
    newest = slots.commit(small(5), Kind.SNAPSHOT)
    assert slots.note_digest(newest)
    slots.snapshot(newest).arrays["variables/0"][0, 0] += 1
    facts = bench.die()
    assert "damaged" in facts[0]["message"]
    assert bench.steps() == [4]


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


def test_a_checkpoint_that_the_worker_did_not_live_to_report_is_reported(bench: Bench) -> None:
    """The worker asks and is gone before the answer: the keeper finds nobody to tell."""
    bench.paths.checkpoints.mkdir()
    slots, channel = bench.saver._slots, bench.saver._channel
    assert slots is not None
    assert channel is not None
    assert slots.lend(1000)
    slot = slots.commit(small(7), Kind.SNAPSHOT)
    asked = {"write": slot.index, "path": str(bench.paths.checkpoint(7)), "created": CREATED}
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
    monkeypatch.setattr(room, "free_bytes", lambda: 1_000_000)
    bench.saver.prepare(10_000_000)
    assert "snapshots in memory are off: they need 30000000 bytes" in bench.told[0]["message"]
    assert bench.saver.lend([((3,), np.dtype("f4"))]) is None
    save(bench, small(3))
    assert bench.steps() == [3]


def test_large_memory_is_made_ready_beside_the_training(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_AT_ONCE_BYTES", 0)
    bench.saver.prepare(4_000_000)
    while bench.saver._preparing.is_set():
        assert not bench.saver.due(5, None, True), "nothing is due meanwhile"
    arrays = bench.saver.lend([((1_000_000,), np.dtype("f4"))])
    assert arrays is not None
    arrays[0][:] = 3.0
    save(bench, Snapshot(5, 0, {}, {"a": arrays[0]}))
    assert (checkpoint.read(bench.paths.checkpoint(5)).arrays["a"] == 3.0).all()


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
    os.kill(bench.beside.process.pid, signal.SIGSTOP)
    bench.saver._disk_due = True
    bench.saver.submit(filled(1), 0.001)
    for step in range(2, 12):
        keep(bench, filled(step))
    os.kill(bench.beside.process.pid, signal.SIGCONT)
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


SCRIPT = """
import time
import keras, numpy as np
keras.utils.set_random_seed(3)
x, y = np.random.rand(640, 8), np.random.rand(640, 1)
layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((8,)), *layers])
model.compile("adam", "mse")
slowly = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.02))
history = model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[slowly], validation_data=(x, y))
print("RESULT weights", b"".join(w.tobytes() for w in model.get_weights()).hex())
print("RESULT history", history.history)
"""


def test_a_killed_training_goes_on_from_memory_though_the_disk_was_never_due(tmp_path: Path) -> None:
    plain = Job(tmp_path / "plain", "train.py", text=SCRIPT).plain()
    assert plain.code == 0, plain.errors
    job = Job(tmp_path / "kept", "train.py", text=SCRIPT, keeper=True)
    seen = 0
    for _ in range(3):
        attempt = job.start(every=("epochs", 1000))
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
