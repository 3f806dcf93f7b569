"""Snapshots in shared memory, taken often; checkpoints from them, written by another process.

A snapshot is taken into the memory itself (`storage.slots`), which outlives this process, so that little is
lost when it is killed. What is due for the disk the keeper (`training.keeper`) writes from there: training
waits for no disk and for no lock of HDF5's. Everything else is as in `Saver`, which this falls back to where
the memory does not suffice or the keeper is lost; both are told. In the latter case snapshots go on: when
this process has ended, the shim starts another keeper for what they hold.

Limits: a snapshot that finds no free slot is left out, or goes the old way where it is due for the disk.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import StorageError
from runner.storage import durable
from runner.storage.checkpoint import Snapshot
from runner.storage.slots import Kind, Slots, size_of
from runner.training.aside import Aside
from runner.training.report import now_text
from runner.training.saver import Develop, Layout, Saver
from runner.training.shelf import Shelf

#: Of the training time, for snapshots; of what takes no more than a moment, as of small models, a larger one,
#: so that no more than half a second of training is lost with the process.
SHARE = 0.0015
SHORT_S = 0.002
SHORT_SHARE = 0.004
#: So much may be saved up: what came at an unlucky moment is not paid off slowly.
FREE_S = 0.1
INTERVAL_S_MIN = 0.25
INTERVAL_S_MAX = 60.0
#: A best model of so much is put into the memory at once: copying it twice would cost more than the manifest.
LARGE_BYTES = 1024 * 1024
#: Values of so many bytes are held while another thread copies them, which delays training least; of more, an
#: update that finds them held would take as much memory again.
HELD_BYTES = 4 * 1024 * 1024


class KeptSaver(Saver):
    """A Saver whose snapshots lie in shared memory, with a keeper beside it."""

    def __init__(self, *arguments: Any, shelf: Shelf):
        """Begin; `arguments` are as `Saver` takes them."""
        super().__init__(*arguments)
        self._shelf = shelf
        self._aside = Aside("snapshots", self._not_developed)
        self._may_hold = True
        self._held_due = False  # what another thread copies is for the disk as well
        self._again = False  # what was held for the disk turned out to be of no use
        self._lent: Slots | None = None  # a slot is open for the snapshot or best model that is being taken
        self._disk_due = False
        self._snapshot_at = 0.0  # before that none is taken
        self._snapshot_step = 0
        self._paid_until = -math.inf  # the training time up to then has paid for the snapshots so far
        self._spent = 0.0, 0.0  # on the last one: training waited, another thread worked
        self._looked_s = 0.0  # what looking has taken since the last one

    def latest(self) -> tuple[Path | None, Snapshot] | None:
        """Return the newest checkpoint that verifies, or what is newer and was left in memory (no path).

        Raises:
            StorageError: the only ones left cannot be read, and there is nothing in memory.
        """
        try:
            saved, unread = super().latest(), None
        except StorageError as error:
            saved, unread = None, error
        left = self._shelf.left(saved[1].step if saved is not None else 0)
        if left is not None:
            self._resumed_step = left.step
            return None, left
        if unread is not None:
            raise unread
        return saved

    def due(self, step: int, steps_per_epoch: int | None, epoch_ended: bool) -> bool:
        """Tell whether to take a snapshot, for the memory or for the disk as well."""
        if self._aside.busy and self._held_due:
            if self._auto and not epoch_ended:
                return False
            self._aside.settle()
        if self._again:
            self._disk_due = True
            return True
        self._disk_due = super().due(step, steps_per_epoch, epoch_ended)
        if self._aside.busy:  # never two at once
            if not self._disk_due:
                return False
            self._aside.settle()
        if self._disk_due:
            # A moment later it costs no memory of the worker's own, untouched yet.
            self._disk_due = epoch_ended or not self._shelf.preparing
            return self._disk_due
        now_s = self._clock()
        if now_s < self._snapshot_at or step <= self._snapshot_step or not self._shelf.on:
            return False
        if not self._snapshot_at:
            self._snapshot_at = now_s + INTERVAL_S_MIN
            return False
        kept = self._shelf.best_is_kept() and self._shelf.free
        self._looked_s += self._clock() - now_s
        if not kept:
            self._snapshot_at = now_s + INTERVAL_S_MIN
        return kept

    def prepare(self, size: Callable[[], int]) -> None:
        """Make memory ready for snapshots of about `size()` bytes."""
        self._shelf.prepare(size())

    def lend(self, layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return arrays in the memory for the next snapshot; None where there is no room now."""
        self._lent = None
        self._aside.settle()
        return self._lend(layout) if self._shelf.best_is_kept() else None

    def holds(self, size: int) -> bool:
        """Tell whether the values may be held, for another thread to copy; see `Saver`."""
        return self._may_hold and size <= HELD_BYTES and self._shelf.on

    def hurry(self) -> None:
        """Do without the keeper soon, where it hangs; see `Saver`."""
        self._aside.settle()
        self._shelf.hurry(leaving=True)

    def left_best(self) -> Snapshot | None:
        """Return a best model that the attempt before has left in memory."""
        return self._shelf.left_best()

    def lend_best(self, layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return arrays in the memory for a large best model's variables; a small one may be copied later."""
        self._lent = None
        self._aside.settle()
        return self._lend(layout) if size_of(layout) >= LARGE_BYTES else None

    def _lend(self, layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        try:
            self._lent = self._shelf.lend(size_of(layout))
            return [self._lent.room(*one) for one in layout] if self._lent is not None else None
        except (OSError, MemoryError, ValueError) as error:
            self._lent = None
            self._shelf.switch_off(str(error))
            return None

    def submit(self, snapshot: Snapshot, stall_s: float, develop: Develop | None = None) -> None:
        """Keep a snapshot in memory; have it written where that is due."""
        self._snapshot_step, due = snapshot.step, self._disk_due
        self._aside.settle()
        self._again = False
        if develop is None:
            self._keep(snapshot, stall_s, due)
            return
        self._held_due = due
        task = functools.partial(self._develop, snapshot, stall_s, due, develop)
        try:
            self._aside.begin(task)
        except RuntimeError as error:  # there is no thread to be had
            self._not_developed(error)
            task()

    def _develop(self, snapshot: Snapshot, stall_s: float, due: bool, develop: Develop) -> None:
        """Be the other thread: copy what is held."""
        began_s = time.thread_time()
        self._again = due
        if develop(snapshot):
            self._again = False
            self._keep(snapshot, stall_s, due, lambda: time.thread_time() - began_s)

    def _not_developed(self, error: Exception) -> None:
        """Hold nothing any more: it was looked at a model of the script's while that was trained."""
        self._may_hold = False
        self._tell({"event": "warning", "message": f"snapshots are copied while training waits: {error!r}"})

    def _keep(
        self, snapshot: Snapshot, stall_s: float, due: bool, beside_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Keep a snapshot; `beside_s` tells what that takes in another thread, in seconds."""
        began = self._clock()
        slot = self._shelf.put(snapshot, self._lent)
        self._lent = None
        if slot is not None and due:
            self._shelf.hold(snapshot, slot)
        taken_s = beside_s()
        if not taken_s:
            stall_s += self._clock() - began
        self._pay(began, stall_s, taken_s)
        if due:
            super().submit(snapshot, stall_s)

    def _pay(self, began: float, stall_s: float, beside_s: float) -> None:
        """Find out when the next snapshot may be taken, after one that took so long, here and elsewhere."""
        # One slow moment says nothing of the next: the first finds out what stays, any may be disturbed.
        spent = self._looked_s + stall_s, beside_s
        (stall_s, beside_s), self._spent = map(min, spent, self._spent), spent
        share = SHORT_SHARE if stall_s <= SHORT_S else SHARE
        paid_until = max(self._paid_until, began - FREE_S / SHARE) + (stall_s + beside_s) / share
        self._paid_until = min(paid_until, began + INTERVAL_S_MAX)
        self._looked_s = 0.0
        self._snapshot_at = max(began + INTERVAL_S_MIN, self._paid_until)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being written and nothing waits; see `Saver`."""
        self._aside.settle()
        return super().flush(timeout_s)

    def save_now(self, snapshot: Snapshot) -> Path:
        """Save in the calling thread (see `Saver`); what the keeper writes now is not waited for long."""
        self._aside.settle()
        self._shelf.hurry()
        return super().save_now(snapshot)

    def keep_best(self, snapshot: Snapshot) -> None:
        """Learn that a best model waits for the disk, as it would be written."""
        self._aside.settle()
        lent, self._lent = self._lent, None
        self._shelf.keep_best(snapshot, lent)

    def best_written(self) -> None:
        """Forget the best model in memory: the disk has it, or a better one."""
        self._shelf.drop(Kind.BEST)

    def outdate(self) -> None:
        """Forget the snapshots: what comes after them is on the disk."""
        self._aside.settle()
        self._shelf.drop(Kind.SNAPSHOT)

    def write(self, path: Path, snapshot: Snapshot) -> tuple[int, float]:
        """Have the keeper write a file, where the snapshot lies in memory; see `Saver`."""
        slot = self._shelf.slot_of(snapshot)
        if slot is None:
            return super().write(path, snapshot)
        # The next best model has this one's name: a keeper that hangs, and goes on when it was done without,
        # must not put this one in its place.
        shared = path.parent != self._paths.checkpoints
        target = durable.temporary_name(path) if shared else path
        asked = {"write": slot.index, "number": slot.committed, "path": str(target), "created": now_text()}
        answer = self._shelf.ask(asked, slot.size)
        if answer is None:
            return super().write(path, snapshot)
        if "error" in answer:
            if answer["errno"] is not None:
                raise OSError(answer["errno"], answer["error"])
            raise StorageError(answer["error"])
        if shared:
            durable.move(target, path)
        return int(answer["size_bytes"]), float(answer["cpu_s"])
