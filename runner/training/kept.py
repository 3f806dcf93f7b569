"""Snapshots in shared memory, taken often; checkpoints from them, written by another process.

A snapshot is taken into the memory itself (`storage.slots`), which outlives this process, so that little is
lost when it is killed. What is due for the disk the keeper (`training.keeper`) writes from there: training
waits for no disk and for no lock of HDF5's. Everything else is as in `Saver`, which this falls back to where
the memory does not suffice or the keeper has died; both are told.

Limits: a snapshot that finds no free slot is left out, or goes the old way where the disk waits for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import StorageError
from runner.storage import digests
from runner.storage.checkpoint import Snapshot
from runner.storage.slots import COUNT, Kind, Slot, Slots
from runner.training import room
from runner.training.report import now_text
from runner.training.saver import Layout, Saver

#: Of the training time, for snapshots; beyond that so much: each fit's first finds out what stays the same.
SHARE = 0.0025
FREE_S = 0.1
INTERVAL_S_MIN = 0.25
INTERVAL_S_MAX = 60.0

_BYTES_MAX = 65536
#: For the keeper to answer the first time.
_GREETING_S = 60.0
_FAST = "xxh3_128"
#: Less than so much is made ready, and digested, at once; more by others.
_AT_ONCE_BYTES = 16 * 1024 * 1024


class KeptSaver(Saver):
    """A Saver whose snapshots lie in shared memory, with a keeper beside it."""

    def __init__(self, *arguments: Any, channel: int, memory: int):
        """Begin.

        Args:
            arguments: as `Saver` takes them.
            channel: descriptor of the socket to the keeper.
            memory: descriptor of the memory; filled by nobody else.

        Raises:
            OSError, ValueError: these are not what they should be.
        """
        super().__init__(*arguments)
        self._slots: Slots | None = Slots(memory)
        self._channel: socket.socket | None = socket.socket(fileno=os.dup(channel))
        #: What goes to the disk, for as long as it lives: its slot, and what keeps that from being lent.
        self._in_slots: list[tuple[weakref.ref[Snapshot], Slot, np.ndarray[Any, Any]]] = []
        self._lent = False
        self._disk_due = False
        self._held_back = False  # a best model waits that only this process has
        self._preparing = threading.Event()
        self._snapshot_at = 0.0
        self._snapshot_step = 0
        self._spent_s = 0.0  # in snapshots
        self._begun_at = 0.0  # the training
        self._greet()

    # -- when -----------------------------------------------------------------------------------------------

    def due(self, step: int, steps_per_epoch: int | None, epoch_ended: bool) -> bool:
        """Tell whether to take a snapshot, for the memory or for the disk as well."""
        if self._preparing.is_set():
            return False
        self._disk_due = super().due(step, steps_per_epoch, epoch_ended)
        if self._disk_due or self._slots is None or self._held_back or step <= self._snapshot_step:
            return self._disk_due
        now_s = self._clock()
        if not self._snapshot_at:
            self._begun_at, self._snapshot_at = now_s, now_s + INTERVAL_S_MIN
        return now_s >= self._snapshot_at

    # -- taking ---------------------------------------------------------------------------------------------

    def prepare(self, size: int) -> None:
        """Make memory ready for snapshots of about `size` bytes; nothing is due until it is."""
        slots = self._slots
        if slots is None:
            return
        needed, allowed = COUNT * size, int(room.SHARE * room.free_bytes())
        if needed > allowed:
            self._switch_off(
                f"snapshots in memory are off: they need {needed} bytes, and {allowed} may be taken;"
                " checkpoints on the disk are made as before"
            )
        elif size < _AT_ONCE_BYTES:
            self._prepare(slots, size)
        else:
            self._preparing.set()
            threading.Thread(target=self._prepare, args=(slots, size), name="memory", daemon=True).start()

    def _prepare(self, slots: Slots, size: int) -> None:
        try:
            slots.prepare(size)
        except (OSError, ValueError) as error:
            self._switch_off(f"snapshots in memory are off: {error}")
        finally:
            self._preparing.clear()

    def lend(self, layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return arrays in the memory for the next snapshot; None where there is no room now."""
        self._lent = False
        if self._slots is None or self._preparing.is_set():
            return None
        try:
            size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)
            if not self._lend(self._slots, size):
                return None
            arrays = [self._slots.room(shape, dtype) for shape, dtype in layout]
        except (OSError, MemoryError, ValueError) as error:
            self._switch_off(f"snapshots in memory are off: {error}")
            return None
        self._lent = True
        return arrays

    def submit(self, snapshot: Snapshot, stall_s: float) -> None:
        """Keep a snapshot in memory; have it written where that is due."""
        began = self._clock()
        slot = self._commit(snapshot)
        stall_s += self._clock() - began
        self._spent_s += stall_s
        self._snapshot_step = snapshot.step
        affordable_at = self._begun_at + (self._spent_s - FREE_S) / SHARE
        self._snapshot_at = min(began + INTERVAL_S_MAX, max(began + INTERVAL_S_MIN, affordable_at))
        if slot is not None:
            self._note(slot)
        if slot is None or self._disk_due:
            if slot is not None and self._slots is not None:
                self._in_slots.append((weakref.ref(snapshot), slot, self._slots.hold(slot)))
            super().submit(snapshot, stall_s)

    def _note(self, slot: Slot) -> None:
        """Have the slot digested: of little here, which takes less time than a message."""
        if self._slots is not None and slot.size < _AT_ONCE_BYTES and digests.preferred() == _FAST:
            self._slots.note_digest(slot)
        else:
            self._send({"note": slot.index})

    def _lend(self, slots: Slots, size: int) -> bool:
        self._in_slots = [one for one in self._in_slots if one[0]() is not None]
        return slots.lend(size)

    def _commit(self, snapshot: Snapshot) -> Slot | None:
        slots = self._slots
        if slots is None or self._preparing.is_set():
            return None
        lent, self._lent = self._lent, False
        with contextlib.suppress(OSError, MemoryError, ValueError, TypeError, RecursionError):
            if lent or self._lend(slots, _size(snapshot)):
                return slots.commit(snapshot, Kind.SNAPSHOT)
        # It has grown. In another slot, then: what lies in this one is copied, for it is given up.
        with contextlib.suppress(OSError, MemoryError, ValueError, TypeError, RecursionError):
            if self._lend(slots, 2 * _size(snapshot) + len(json.dumps(snapshot.state))):
                return slots.commit(snapshot, Kind.SNAPSHOT)
        return None

    def keep_best(self, snapshot: Snapshot) -> None:
        """Put a best model that waits for the disk into the memory too."""
        if self._slots is None or self._preparing.is_set():
            return
        self._lent = False
        try:
            kept = self._lend(self._slots, _size(snapshot))
            if kept:
                self._slots.commit(snapshot, Kind.BEST)
        except (OSError, MemoryError, ValueError, TypeError):
            kept = False
        # A snapshot that is later than a best model that nobody has would lose it.
        self._held_back = not kept

    def best_written(self) -> None:
        """Forget the best model in memory: the disk has it, or a better one."""
        self._held_back = False
        if self._slots is not None and not self._preparing.is_set():
            for slot in self._slots.newest(Kind.BEST):
                self._slots.drop(slot)

    def outdate(self) -> None:
        """Forget the snapshots: what comes after them is on the disk."""
        if self._slots is not None and not self._preparing.is_set():
            for slot in self._slots.newest(Kind.SNAPSHOT):
                self._slots.drop(slot)

    # -- writing --------------------------------------------------------------------------------------------

    def _write(self, path: Path, snapshot: Snapshot) -> tuple[int, float]:
        slot = next((slot for kept, slot, _ in self._in_slots if kept() is snapshot), None)
        if slot is None or self._channel is None:
            return super()._write(path, snapshot)
        answer = self._ask({"write": slot.index, "path": str(path), "created": now_text()})
        if answer is None:
            return super()._write(path, snapshot)
        if "error" in answer:
            if answer["errno"] is not None:
                raise OSError(answer["errno"], answer["error"])
            raise StorageError(answer["error"])
        return int(answer["size_bytes"]), float(answer["cpu_s"])

    # -- the keeper -----------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Make sure that it is there, and say what this Python can read."""
        assert self._channel is not None
        self._channel.settimeout(_GREETING_S)
        self._ask({"digests": digests.preferred()})
        if self._channel is not None:
            self._channel.settimeout(None)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Return the keeper's answer; None where it has ended."""
        if not self._send(message, wait=True) or self._channel is None:
            return None
        try:
            answer = self._channel.recv(_BYTES_MAX)
        except OSError:
            answer = b""
        if not answer:
            self._lose()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def _send(self, message: dict[str, Any], *, wait: bool = False) -> bool:
        if self._channel is None:
            return False
        try:
            self._channel.send(json.dumps(message).encode(), 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False  # a note may be lost
        except OSError:
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        if self._channel is not None:
            self._channel = None
            self._switch_off("the keeper has ended: from now on the training process writes its checkpoints")

    def _switch_off(self, reason: str) -> None:
        self._slots, self._held_back = None, False
        self._tell({"event": "warning", "message": reason})


def _size(snapshot: Snapshot) -> int:
    return sum(array.nbytes for array in snapshot.arrays.values())
