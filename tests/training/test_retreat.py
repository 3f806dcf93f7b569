"""One generation back: older than what was resumed from, past what is damaged, and never twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.storage import checkpoint, mirrored
from runner.storage import memory as memory_file
from runner.storage.checkpoint import Snapshot
from runner.storage.slots import Kind, Slots
from runner.training import launch
from runner.training.launch import KEEPER
from runner.training.worker import Worker
from tests.storage.snapshots import CREATED, small
from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery

REASON = "the same failure followed twice"
RETREAT = {"before": 30, "learning_rate": 1.0, "reason": REASON, "attempt": 2}
SLOWER = {"before": None, "learning_rate": 0.5, "reason": "loss is nan", "attempt": 1}


def snapshot(step: int, **state: Any) -> Snapshot:
    one = small(step)
    return replace(one, state={**one.state, "fit": 0, **state})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    here = Job(tmp_path, "train.py", text="")
    here.paths.checkpoints.mkdir()
    return here


def save(job: Job, *steps: int, **state: Any) -> None:
    for step in steps:
        checkpoint.write(job.paths.checkpoint(step), snapshot(step, **state), created=CREATED)


def damage(job: Job, *steps: int) -> None:
    for step in steps:
        with job.paths.checkpoint(step).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")


def begin(job: Job, *, memory: int | None = None, **orders: Any) -> tuple[Worker, int | None]:
    """Begin an attempt; return its worker, and the step that it resumes from."""
    environ = job.prepare(**{"retreat": RETREAT, **orders})
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.close()  # without a keeper of its own
    with channel:
        if memory is not None:
            environ[KEEPER] = f"{channel.fileno()},{memory}"
        worker = Worker(launch.load(environ))
        worker.find_saved()
    return worker, None if worker.saved is None else worker.saved.step


def aside(job: Job) -> dict[str, bool]:
    """Return what was put aside, and whether for the retreat: then a mirror is not to have it either."""
    for fact in job.facts_of("quarantined"):
        assert ("/rejected-" in fact["to"]) == (fact["reason"] == REASON)
    return {fact["path"][-15:-11]: fact["reason"] == REASON for fact in job.facts_of("quarantined")}


@pytest.mark.parametrize(
    ("damaged", "resumed", "gone"),
    [
        ((), 20, {"0040": True, "0030": True}),
        ((40,), 20, {"0040": False, "0030": True}),
        ((30,), 20, {"0040": True, "0030": False}),
        ((40, 30), 20, {"0040": False, "0030": False}),
        ((40, 20), 10, {"0040": False, "0030": True, "0020": False}),
        ((20, 10), 40, {}),
        ((40, 20, 10), 30, {"0040": False}),
        ((40, 30, 20, 10), None, {"0040": False, "0030": False, "0020": False, "0010": False}),
    ],
)
def test_the_way_back_leads_past_what_is_damaged_and_leaves_what_is_good(
    damaged: tuple[int, ...], resumed: int | None, gone: dict[str, bool], job: Job
) -> None:
    save(job, 10, 20, 30, 40)
    damage(job, *damaged)
    for _ in range(3):  # each killed before its first checkpoint
        assert begin(job)[1] == resumed
    assert aside(job) == gone, "what is damaged, for that; nothing while nothing older is good"


@pytest.fixture
def memory() -> Iterator[int]:
    fd = memory_file.create()
    yield fd
    os.close(fd)


def leave(memory: int, one: Snapshot) -> None:
    """Leave a snapshot in memory, as an attempt does whose disk has refused it."""
    slots = Slots(memory)
    assert slots.lend(sum(array.nbytes for array in one.arrays.values()))
    slots.commit(one, Kind.SNAPSHOT)


def test_what_is_in_memory_goes_too_though_the_newest_on_the_disk_is_damaged(job: Job, memory: int) -> None:
    save(job, 20, 30)
    damage(job, 30)
    leave(memory, snapshot(35))
    assert begin(job, memory=memory)[1] == 20
    assert begin(job, memory=memory)[1] == 20


def test_what_is_in_memory_stays_where_nothing_older_is_good(job: Job, memory: int) -> None:
    save(job, 20, 30)
    damage(job, 20, 30)
    leave(memory, snapshot(35))
    assert begin(job, memory=memory)[1] == 35


def test_nobody_goes_back_from_what_came_after_the_retreat(job: Job, memory: int) -> None:
    """The attempt that went back was killed, and no disk has taken what it left."""
    save(job, 20)
    leave(memory, snapshot(35, retreat=2))
    assert begin(job, memory=memory)[1] == 35
    leave(memory, snapshot(36, retreat=1))
    assert begin(job, memory=memory)[1] == 20, "that was an earlier retreat"


def test_nor_from_a_checkpoint_of_which_nobody_lived_to_tell(job: Job) -> None:
    save(job, 20)
    save(job, 40, retreat=2)
    assert begin(job)[1] == 40
    assert not aside(job)


def test_learning_rates_are_lowered_once(job: Job, memory: int) -> None:
    save(job, 20)
    retreat = {**RETREAT, "learning_rate": 0.5}
    first, second = (SimpleNamespace(learning_rate=1.0) for _ in range(2))
    worker, _ = begin(job, retreat=retreat)
    worker.vigil.slow_down([first], worker.saved)
    worker.vigil.slow_down([first])  # the next fit
    assert first.learning_rate == 0.5
    leave(memory, snapshot(35, **worker.state()))
    worker, _ = begin(job, retreat=retreat, memory=memory)
    worker.vigil.slow_down([second], worker.saved)
    worker.vigil.slow_down([second])
    assert second.learning_rate == 1.0, "it was restored from where it is lower"


# --- in real scripts: each attempt has the same retreat in its orders -------------------------------------

FITS = """
import os, sys
import keras, numpy as np
from victim import until_saved
keras.utils.set_random_seed(7)
x = np.random.RandomState(1).rand(60, 4).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), "mse")
trouble = os.environ.get("TROUBLE")

class Trouble(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if trouble == "within" and epoch == 2:
            until_saved(9)
            raise ValueError("within")

model.fit(x, x[:, :1], batch_size=10, epochs=3, verbose=0, callbacks=[Trouble()])
if trouble == "between":
    raise ValueError("between")
model.fit(x, x[:, :1], batch_size=10, epochs=1, verbose=0)
print("RESULT rate", float(model.optimizer.learning_rate), flush=True)
"""
LOOP = """
import os
import keras, numpy as np, runner
from victim import until_saved
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), "mse")
run = runner.attach(model)
for step in run.steps(9):
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
    if os.environ.get("TROUBLE") and step == 7:
        until_saved(6)
        raise ValueError("within")
print("RESULT rate", float(model.optimizer.learning_rate), flush=True)
"""


def rate(attempt: Attempt) -> float:
    assert attempt.code == 0, attempt.errors
    return float(attempt.results["rate"])


@pytest.mark.parametrize(
    ("script", "trouble"), [(FITS, "within"), (FITS, "between"), (LOOP, "within")], ids=["fit", "end", "loop"]
)
def test_a_training_that_is_slower_already_is_not_slowed_again(
    script: str, trouble: str, tmp_path: Path, nursery: Nursery
) -> None:
    here = Job(tmp_path, "train.py", text=script, nursery=nursery, retreat=SLOWER)
    assert here.run(env={"TROUBLE": trouble}).code == 1
    again = here.run()
    assert rate(again) == pytest.approx(0.005)
    assert all(fact["exact"] for fact in here.facts_of("resumed", 2)), "as before is exactly as before"
    assert trouble == "between" or here.facts_of("resumed", 2)


@pytest.mark.parametrize("older", [True, False])
def test_a_worker_that_has_rejected_all_looks_at_the_mirror_where_that_has_more(
    older: bool, tmp_path: Path, nursery: Nursery
) -> None:
    checkpoint_orders = {
        "every": {"unit": "steps", "count": 3},
        "keep": 3,
        "monitor": None,
        "mode": "auto",
        "best": "best.weights.h5",
        "mirror": "file:///nowhere",
    }
    here = Job(tmp_path, "train.py", text=FITS, nursery=nursery, nan={"mode": "rollback", "loss_max": None})
    path = here.paths.checkpoint(3)
    path.parent.mkdir()
    poisoned = Snapshot(3, 0, {"fit": 0}, {"variables/0": np.full(3, np.nan)})
    checkpoint.write(path, poisoned, created=CREATED)
    name = f"checkpoints/{path.name}"
    held = {name: mirrored.Held(path.stat().st_size, mirrored.stamp_of(path.stat()), 0)}
    if older:
        held[name.replace("3", "2")] = mirrored.Held(1, (1, 1, 1), 0)
    mirrored.make_folder(here.paths)
    status = mirrored.Status(place="file:///nowhere/j", owner="me", files=held)
    mirrored.save(here.paths, status)
    attempt = here.run(checkpoint=checkpoint_orders)
    assert "no numbers" in here.facts_of("quarantined")[0]["reason"]
    if older:
        assert attempt.code == 75
    else:
        assert rate(attempt) > 0
