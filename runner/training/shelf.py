"""What a process shares with its keeper: the memory for snapshots, and the line to it.

There is one per worker process, however many savers it has. A forked child of the script's has none: two
processes that fill the same memory would spoil each other's snapshots.

Limits: a keeper that does not answer in time is taken for lost, for good.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from runner.storage import digests
from runner.storage.checkpoint import Snapshot
from runner.storage.slots import COUNT, Kind, Slot, Slots, needed
from runner.training import room

_BYTES_MAX = 65536
#: For the keeper to answer: at all, for each byte that it is to write, and when somebody waits to leave.
PATIENCE_S = 60.0
RATE_BYTES_PER_S = 10e6
HURRY_S = 5.0
HURRIED_BYTES_PER_S = 200e6
_LOOK_S = 0.25
_FAST = "xxh3_128"
#: Less than so much is digested here, which takes less time than a message; more by the keeper.
_DIGEST_BYTES = 1024 * 1024
#: Less than so much is made ready at once, more by another thread.
_AT_ONCE_BYTES = 16 * 1024 * 1024


class Shelf:
    """The memory and the keeper of one process."""

    def __init__(self, channel: int, memory: int, limit_bytes: int | None, tell: Callable[[str], None]):
        """Begin.

        Args:
            channel: descriptor of the socket to the keeper.
            memory: descriptor of the memory; filled by nobody else.
            limit_bytes: what the job may take in all; None: no limit of its own.
            tell: takes warnings, from any thread.

        Raises:
            OSError, ValueError: these are not what they should be.
        """
        self._slots: Slots | None = Slots(memory)
        self._channel: socket.socket | None = socket.socket(fileno=os.dup(channel))
        self._given_up: socket.socket | None = None
        self._limit_bytes = limit_bytes
        self._tell = tell
        self._owner = os.getpid()
        self._preparing = threading.Event()
        self._asking = threading.Lock()
        self._deadline = 0.0
        self._leaving = False
        #: What goes to the disk, for as long as it lives: its slot, and what keeps that from being lent.
        self._in_slots: list[tuple[weakref.ref[Snapshot], Slot, np.ndarray[Any, Any]]] = []
        self._best: Snapshot | None = None  # a best model that is in neither the memory nor on the disk
        self._size = 0  # of the largest contents so far
        self._told = False  # that something could not be kept
        self._send({"digests": digests.preferred()})  # not waited for: the keeper may be starting still

    # -- the memory -----------------------------------------------------------------------------------------

    def slots(self) -> Slots | None:
        """Return the memory, where this process may fill it now."""
        return self._own() if not self._preparing.is_set() else None

    def _own(self) -> Slots | None:
        """Return the memory, where it is this process's."""
        return self._slots if os.getpid() == self._owner else None

    @property
    def on(self) -> bool:
        """Whether snapshots are kept here, now."""
        return self.slots() is not None

    def held_bytes(self) -> int:
        """Return how much memory is taken."""
        slots = self.slots()
        return slots.held_bytes() if slots is not None else 0

    @property
    def preparing(self) -> bool:
        """Whether memory is being made ready just now."""
        return self._preparing.is_set()

    def prepare(self, size: int) -> None:
        """Make memory ready for snapshots of about `size` bytes; a lot of it by another thread."""
        slots = self.slots()
        if slots is None or not self._has_room(slots, size):
            return
        if size < _AT_ONCE_BYTES:
            self._prepare(slots, size)
            return
        self._preparing.set()
        try:
            threading.Thread(target=self._prepare, args=(slots, size), name="memory", daemon=True).start()
        except RuntimeError as error:
            self._preparing.clear()
            self.switch_off(str(error))

    def _prepare(self, slots: Slots, size: int) -> None:
        try:
            slots.prepare(size)
        except (OSError, ValueError) as error:
            self.switch_off(str(error))
        finally:
            self._preparing.clear()

    def _has_room(self, slots: Slots, size: int) -> bool:
        """Tell whether there is memory for slots of that size; where not, nothing is kept from now on."""
        needed = COUNT * size - slots.held_bytes()
        if needed <= 0:
            return True
        try:
            allowed = int(room.SHARE * room.free_bytes(self._limit_bytes))
        except (OSError, ValueError) as error:
            self.switch_off(f"how much is free cannot be known ({error})")
            return False
        if needed > allowed:
            self.switch_off(f"they need {needed} bytes, and {allowed} may be taken")
        return needed <= allowed

    def lend(self, size: int) -> Slots | None:
        """Return the memory with a slot opened for contents of about `size` bytes; None where there is none.

        Raises:
            OSError: there is no memory.
        """
        slots = self.slots()
        self._release()
        size = max(size, self._size)
        if slots is None or not self._has_room(slots, size) or not slots.lend(size):
            return None
        return slots

    def put(self, snapshot: Snapshot, lent: Slots | None) -> Slot | None:
        """Keep a snapshot; `lent` has a slot open that a part of it lies in. None where it cannot be kept."""
        if lent is None and not self.best_is_kept():
            return None
        return self._commit(snapshot, Kind.SNAPSHOT, lent)

    def _commit(self, snapshot: Snapshot, kind: Kind, lent: Slots | None = None) -> Slot | None:
        try:
            try:
                slots = lent or self.lend(sum(array.nbytes for array in snapshot.arrays.values()))
                slot = slots.commit(snapshot, kind) if slots is not None else None
            except MemoryError:  # there is more to it than the variables: into another slot, then
                slots = self.lend(needed(snapshot))
                slot = slots.commit(snapshot, kind) if slots is not None else None
        except (OSError, MemoryError, ValueError, TypeError, RecursionError) as error:
            if not self._told:
                self._told = True
                self._tell(f"a snapshot cannot be kept in memory: {error}")
            return None
        if slots is not None and slot is not None:
            self._size = max(self._size, slot.size)
            self._note(slots, slot)
        return slot

    def _note(self, slots: Slots, slot: Slot) -> None:
        """Have the slot digested."""
        if slot.size < _DIGEST_BYTES and digests.preferred() == _FAST:
            slots.note_digest(slot)
        else:
            self._send({"note": slot.index}, socket.MSG_DONTWAIT)

    def hold(self, snapshot: Snapshot, slot: Slot) -> None:
        """Let nobody fill the slot while its snapshot waits for the disk."""
        slots = self.slots()
        if slots is not None:
            self._in_slots.append((weakref.ref(snapshot), slot, slots.hold(slot)))

    def slot_of(self, snapshot: Snapshot) -> Slot | None:
        """Return where a snapshot lies that is held."""
        return next((slot for kept, slot, _ in list(self._in_slots) if kept() is snapshot), None)

    def drop(self, kind: Kind) -> None:
        """Forget what is kept of a kind."""
        if kind is Kind.BEST:
            self._best = None
        slots = self._own()
        if slots is not None:
            for slot in slots.newest(kind):
                slots.drop(slot)

    def left_best(self) -> Snapshot | None:
        """Return the best model that an attempt before has left, which no disk has taken."""
        slots = self.slots()
        for slot in slots.newest(Kind.BEST)[:1] if slots is not None else []:
            with contextlib.suppress(ValueError):
                if slots is not None and slots.intact(slot):
                    found = slots.snapshot(slot)
                    self.hold(found, slot)
                    return found
            self._tell(f"the best model in memory, of step {slot.step}, was damaged, and is dropped")
            self.drop(Kind.BEST)
        return None

    @property
    def free(self) -> bool:
        """Whether a slot could be lent now."""
        slots = self.slots()
        self._release()
        return slots is not None and slots.has_free()

    def _release(self) -> None:
        """Let slots be lent again whose snapshots are no longer needed."""
        self._in_slots = [one for one in self._in_slots if one[0]() is not None]

    def left(self, after: int) -> Snapshot | None:
        """Return the newest snapshot that an attempt before has left, where it is later than step `after`.

        None is later than a best model that is lost: training goes back to before it.
        """
        slots = self.slots()
        best = slots.newest(Kind.BEST)[:1] if slots is not None else []
        if slots is not None and not all(map(slots.intact, best)):
            self._tell(f"the best model in memory, of step {best[0].step}, was damaged, and is dropped")
            self.drop(Kind.BEST)
            self.drop(Kind.SNAPSHOT)
        for slot in slots.newest(Kind.SNAPSHOT) if slots is not None else []:
            if slot.step > after and slots is not None:
                with contextlib.suppress(ValueError):
                    if slots.intact(slot):
                        return slots.snapshot(slot)
                self._tell(f"what was in memory of step {slot.step} was damaged, and is dropped")
                slots.drop(slot)
        return None

    # -- the best model that waits --------------------------------------------------------------------------

    def keep_best(self, best: Snapshot, lent: Slots | None) -> None:
        """Learn that a best model waits for the disk.

        Args:
            best: as it would be written.
            lent: has a slot open that a part of it lies in: it is committed now, otherwise before the next
                snapshot.
        """
        self._best = best
        if lent is not None:
            self.best_is_kept(lent)

    def best_is_kept(self, lent: Slots | None = None) -> bool:
        """Put the best model that waits into the memory; tell whether it is there, or none waits.

        A snapshot that is later than a best model that nobody else has would lose it.
        """
        best = self._best
        if best is None:
            return True
        slot = self._commit(best, Kind.BEST, lent)
        if slot is None:
            return False
        self.hold(best, slot)
        if self._best is best:
            self._best = None
        else:  # the writer has written it meanwhile
            self.drop(Kind.BEST)
        return True

    # -- the keeper -----------------------------------------------------------------------------------------

    def hurry(self, *, leaving: bool = False) -> None:
        """Wait no longer than a moment for the present answer: somebody waits; `leaving`, for any other."""
        self._leaving = self._leaving or leaving
        self._deadline = min(self._deadline, time.monotonic() + HURRY_S)

    def ask(self, message: dict[str, Any], size: int = 0) -> dict[str, Any] | None:
        """Return the keeper's answer; None where it has ended, or does not answer.

        Args:
            message: what to do.
            size: bytes that it writes for it.
        """
        with self._asking:
            self._deadline = time.monotonic() + PATIENCE_S + size / RATE_BYTES_PER_S
            if self._leaving:  # looked at only now: who leaves from here on finds a deadline to shorten
                self._deadline = time.monotonic() + HURRY_S + size / HURRIED_BYTES_PER_S
            answer = b""
            if self._send(message):
                answer = self._received()
        if not answer:
            self._lose()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def _received(self) -> bytes:
        while (channel := self._channel) is not None and time.monotonic() < self._deadline:
            channel.settimeout(_LOOK_S)
            try:
                return channel.recv(_BYTES_MAX)
            except TimeoutError:
                continue
            except OSError:
                break
        return b""

    def _send(self, message: dict[str, Any], flags: int = 0) -> bool:
        channel = self._channel
        if channel is None or os.getpid() != self._owner:
            return False
        try:
            channel.settimeout(_LOOK_S)
            channel.send(json.dumps(message).encode(), flags)
        except (BlockingIOError, TimeoutError):
            return False  # a note may be lost
        except OSError:
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        """Do without the keeper; what is in memory another one writes when this process has ended."""
        if os.getpid() == self._owner and self._channel is not None:
            # Not closed: one that only hangs would take that for the end of this process.
            self._given_up, self._channel = self._channel, None
            self._tell("the keeper has ended or hangs: the training process writes its checkpoints itself")

    def switch_off(self, reason: str) -> None:
        """Keep nothing from now on, and give the memory back."""
        slots, self._slots, self._best = self._slots, None, None
        if slots is not None:
            slots.give_back()
            self._tell(f"snapshots in memory are off: {reason}")
