"""Snapshots in shared memory, which outlive the process that took them.

One memory file (memfd_create(2)) is shared by whoever holds its descriptor. Its first page says what lies
where; behind it are a few slots, each with room for a whole snapshot: the arrays, then the manifest. To fill
a slot its record is opened with a new number, the contents are put in, and the record is committed with the
same number. A process that is killed meanwhile leaves that slot incomplete and the others as they were.

Promises:

- What `newest` returns was committed, whole; `digested` and `intact` tell whether it still is.
- `Slots.lend` never gives out the newest slot of a kind, nor one of which this process has arrays.

Limits: one process fills, and nothing here survives a reboot. A process gone wild may write into memory that
it has mapped: therefore another one notes a digest of what was committed, soon after.
"""

from __future__ import annotations

import ctypes
import enum
import math
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.storage import digests, manifest
from runner.storage.checkpoint import Snapshot
from runner.storage.memory import MAGIC
from runner.storage.userblock import Info

#: One is the newest, one is being filled, one is being written to the disk or waits for it. While a best
#: model waits besides, a snapshot may find no room; it is left out.
COUNT = 3

_PAGE = mmap.PAGESIZE
_FIRST = 256  # where the first record begins in the page
_RECORD_SIZE = 256
_ALIGNED = 64
_LARGE = 1024 * 1024  # from this size on an array begins with a page: direct I/O takes it from there
_REST = 64 * 1024  # of a slot, beside the arrays that were announced
_SLACK_MAX = 4 * 1024 * 1024  # a quarter more, at most so much, for what grows
_MADV_POPULATE_WRITE = 23  # madvise(2), Linux 5.14
_FALLOC_FREE = 0x1 | 0x2  # fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Kind(enum.IntEnum):
    """What a slot holds."""

    NOTHING = 0
    SNAPSHOT = 1
    BEST = 2  #: a best model that is not on the disk yet


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True)
class Slot:
    """A slot's record."""

    index: int
    begun: int  #: the number it was opened with
    committed: int  #: the number it was committed with; the same: it is whole
    kind: Kind
    offset: int  #: where its contents begin in the memory file
    capacity: int
    size: int  #: bytes of the contents, the manifest included
    text_size: int  #: of these the manifest's, at their end
    step: int
    epoch: int
    digested: int  #: the number whose digest was noted
    digest: bytes

    @property
    def whole(self) -> bool:
        """Whether it was committed."""
        return self.begun == self.committed != 0 and self.kind is not Kind.NOTHING


#: What a record consists of: 64-bit numbers, and the digest.
_FIELDS = [
    "begun",
    "committed",
    "kind",
    "offset",
    "capacity",
    "size",
    "text_size",
    "step",
    "epoch",
    "digested",
]
_PLACES = {name: 8 * number for number, name in enumerate(_FIELDS)}
_DIGEST_AT = 8 * len(_FIELDS)
_DIGEST_SIZE = 16
_NUMBER = struct.Struct("=q")
_RECORD = struct.Struct(f"={len(_FIELDS)}q{_DIGEST_SIZE}s")


class Slots:
    """The slots of one memory file, for the process that fills them and for those that read them."""

    def __init__(self, fd: int):
        """Map a memory file.

        Args:
            fd: of the file; not closed here.

        Raises:
            ValueError: it is none of these.
            OSError: it cannot be mapped.
        """
        if os.pread(fd, len(MAGIC), 0) != MAGIC:
            raise ValueError(f"descriptor {fd} is no memory for snapshots")
        self._fd = fd
        self._page = mmap.mmap(fd, _PAGE)
        self._maps: dict[tuple[int, int], mmap.mmap] = {}
        self._views: dict[int, list[weakref.ref[np.ndarray[Any, Any]]]] = {}  # of each slot
        self._lent: Slot | None = None
        self._memory: np.ndarray[Any, Any] = np.empty(0, np.uint8)  # the lent slot's
        self._used = 0  # bytes of it that have been given out
        self._given: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}  # by id, and where they begin
        self._opening = threading.Lock()  # a slot is opened, or what it holds forgotten, by one at a time

    # -- reading --------------------------------------------------------------------------------------------

    def all(self) -> list[Slot]:
        """Return every slot's record, as it is now."""
        return [self._record(index) for index in range(COUNT)]

    def newest(self, kind: Kind) -> list[Slot]:
        """Return the whole slots of a kind, the newest first."""
        return _newest(self.all(), kind)

    def snapshot(self, slot: Slot) -> Snapshot:
        """Return what a slot holds; the arrays lie in the slot itself, which is not lent while they live.

        Raises:
            ValueError: its contents are not what they should be.
        """
        memory = self._view(slot)
        text = memory[slot.size - slot.text_size : slot.size].tobytes()
        info = Info(slot.step, slot.epoch, "", slot.size, "", slot.size - slot.text_size, slot.text_size)
        try:
            told, entries = manifest.parse(text, info)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"the manifest in memory cannot be understood ({error})") from None
        arrays = {
            key: memory[entry.offset : entry.offset + entry.size].view(entry.dtype).reshape(entry.shape)
            for key, entry in entries.items()
        }
        return Snapshot(told["step"], told["epoch"], told["state"], arrays, told["links"], told["attributes"])

    def held_bytes(self) -> int:
        """Return how much memory the slots have."""
        return sum(slot.capacity for slot in self.all())

    def give_back(self) -> None:
        """Give the memory back of all slots that nobody needs: neither whole nor in use here."""
        for slot in self.all():
            if slot.capacity and not slot.whole and not self._in_use(slot.index):
                self._set(slot.index, begun=slot.begun + 1, kind=Kind.NOTHING)
                self._vacate(slot)

    def hold(self, slot: Slot) -> np.ndarray[Any, Any]:
        """Return the slot's bytes; it is not lent while they live."""
        return self._view(slot)

    def note_digest(self, slot: Slot) -> bool:
        """Digest what was committed; False where the slot is no longer that."""
        digest = self._digest(slot)
        if self._record(slot.index).begun != slot.committed:
            return False
        at = self._at(slot.index, _DIGEST_AT)
        self._page[at : at + _DIGEST_SIZE] = digest
        self._set(slot.index, digested=slot.committed)
        return True

    def intact(self, slot: Slot) -> bool:
        """Tell whether a slot still is what was digested; so it is where nobody has digested it."""
        try:
            return slot.digested != slot.committed or self._digest(slot) == slot.digest
        except (ValueError, OSError):  # its record tells of another place
            return False

    def drop(self, slot: Slot) -> None:
        """Forget what a slot holds, if it still holds that."""
        with self._opening:
            now = self._record(slot.index)
            if now.begun == now.committed == slot.committed:
                self._set(slot.index, kind=Kind.NOTHING)

    # -- filling --------------------------------------------------------------------------------------------

    def lend(self, size: int) -> bool:
        """Open a slot that is free for contents of about `size` bytes; False where none is.

        What was lent before and not committed is given up.

        Args:
            size: of the arrays, as `size_of` has it; some more is added for what grows.

        Raises:
            OSError: there is no memory.
        """
        self._let_go()
        slots = self.all()
        free = self._free(slots)
        if not free:
            return False
        roomy = [slot for slot in free if slot.capacity >= _least(size)]
        slot = roomy[0] if roomy else max(free, key=lambda slot: slot.capacity)
        number = 1 + max(max(one.begun, one.committed) for one in slots)
        with self._opening:
            self._set(slot.index, begun=number)
        if not roomy:
            self._enlarge(slot, _least(size) + min(size // 4, _SLACK_MAX))
        self._lent, self._used = self._record(slot.index), 0
        self._memory = self._view(self._lent)
        return True

    def has_free(self) -> bool:
        """Tell whether a slot could be lent."""
        return bool(self._free(self.all()))

    def _free(self, slots: list[Slot]) -> list[Slot]:
        kept = {found[0].index for kind in (Kind.SNAPSHOT, Kind.BEST) if (found := _newest(slots, kind))}
        return [slot for slot in slots if slot.index not in kept and not self._in_use(slot.index)]

    def prepare(self, size: int) -> None:
        """Make room in every slot that is empty, for contents of about `size` bytes.

        Raises:
            OSError: there is no memory.
        """
        for slot in self.all():
            if not slot.whole and not self._in_use(slot.index) and slot.capacity < _least(size):
                self._set(slot.index, begun=slot.begun + 1)
                self._enlarge(slot, _least(size) + min(size // 4, _SLACK_MAX))

    def room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return an array in the lent slot, to be filled.

        Raises:
            MemoryError: it does not fit.
        """
        assert self._lent is not None
        size = math.prod(shape) * dtype.itemsize
        aligned = _PAGE if size >= _LARGE else _ALIGNED
        begin = -(-self._used // aligned) * aligned
        if begin + size > self._lent.capacity:
            raise MemoryError(f"{begin + size} bytes do not fit into a slot of {self._lent.capacity}")
        self._used = begin + size
        array: np.ndarray[Any, Any] = self._memory[begin : begin + size].view(dtype).reshape(shape)
        self._given[id(array)] = begin, array
        return array

    def commit(self, snapshot: Snapshot, kind: Kind) -> Slot:
        """Fill the lent slot: with the arrays that do not lie in it yet, and the manifest.

        Raises:
            MemoryError: it does not fit.
            ValueError, TypeError, RecursionError: it cannot be told in JSON.
        """
        assert self._lent is not None
        lent, arrays, offsets = self._lent, {}, {}
        for key, given in snapshot.arrays.items():
            array = np.asarray(given, order="C")
            if array.size and id(array) not in self._given:
                copy = self.room(array.shape, array.dtype)
                np.copyto(copy, array)
                begin = self._given[id(copy)][0]
            else:
                begin = self._given[id(array)][0] if array.size else 0
            arrays[key], offsets[key] = array, begin
        text = manifest.render(snapshot, "", arrays, offsets)
        place = self.room((len(text),), np.dtype(np.uint8))
        place[:] = np.frombuffer(text, np.uint8)
        self._set(
            lent.index,
            kind=kind,
            size=self._used,
            text_size=len(text),
            step=snapshot.step,
            epoch=snapshot.epoch,
        )
        self._set(lent.index, committed=lent.begun)
        self._let_go()
        return self._record(lent.index)

    # -- within ---------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Forget what was lent."""
        self._lent, self._memory = None, np.empty(0, np.uint8)
        self._given.clear()

    def _enlarge(self, slot: Slot, size: int) -> None:
        """Give a slot other room, at the end of the file, and the memory of its former back."""
        self._vacate(slot)
        capacity = -(-size // _PAGE) * _PAGE
        offset = os.fstat(self._fd).st_size
        os.truncate(self._fd, offset + capacity)
        self._set(slot.index, kind=Kind.NOTHING, offset=offset, capacity=capacity)
        try:
            _populate(self._view(self._record(slot.index)))
        except OSError:
            self._vacate(self._record(slot.index))
            raise

    def _vacate(self, slot: Slot) -> None:
        self._maps.pop((slot.offset, slot.capacity), None)
        if slot.capacity:
            _libc.fallocate(self._fd, _FALLOC_FREE, slot.offset, slot.capacity)
            self._set(slot.index, capacity=0)

    def _view(self, slot: Slot) -> np.ndarray[Any, Any]:
        """Return the slot's bytes; it is in use as long as this, or an array made of it, lives."""
        place = slot.offset, slot.capacity
        if place not in self._maps:
            inside = 0 < slot.offset <= slot.offset + slot.capacity <= os.fstat(self._fd).st_size
            if not inside or slot.offset % _PAGE or not slot.capacity:
                raise ValueError("a slot lies outside the memory")
            self._maps[place] = mmap.mmap(self._fd, slot.capacity, offset=slot.offset)
        memory = np.frombuffer(self._maps[place], np.uint8)
        self._views.setdefault(slot.index, []).append(weakref.ref(memory))  # arrays made of it keep it alive
        return memory

    def _in_use(self, index: int) -> bool:
        self._views[index] = [view for view in self._views.get(index, ()) if view() is not None]
        return bool(self._views[index])

    def _digest(self, slot: Slot) -> bytes:
        if not 0 <= slot.text_size <= slot.size <= slot.capacity:
            raise ValueError("a slot holds more than it can")
        digest = digests.new()
        digest.update(self._view(slot)[: slot.size].data)
        return bytes.fromhex(digest.hexdigest())[:_DIGEST_SIZE]

    def _at(self, index: int, place: int) -> int:
        return _FIRST + index * _RECORD_SIZE + place

    def _record(self, index: int) -> Slot:
        begun, committed, kind, *others = _RECORD.unpack_from(self._page, self._at(index, 0))
        return Slot(index, begun, committed, _KINDS.get(kind, Kind.NOTHING), *others)

    def _set(self, index: int, **values: int) -> None:
        for name, value in values.items():
            _NUMBER.pack_into(self._page, self._at(index, _PLACES[name]), value)


def size_of(layout: Iterable[tuple[tuple[int, ...], np.dtype[Any]]]) -> int:
    """Return what arrays of these shapes and dtypes take in a slot, beside the alignment of large ones."""
    return sum(-(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED for shape, dtype in layout)


def needed(snapshot: Snapshot) -> int:
    """Return what a whole snapshot takes, its manifest included.

    Raises:
        ValueError, TypeError, RecursionError: it cannot be told in JSON.
    """
    arrays = {key: np.asarray(array, order="C") for key, array in snapshot.arrays.items()}
    size = size_of((array.shape, array.dtype) for array in arrays.values())
    return size + len(manifest.render(snapshot, "", arrays, dict.fromkeys(arrays, size)))


def _least(size: int) -> int:
    """Return what a slot needs for arrays of so many bytes: with what their alignment may take."""
    return size + size * _PAGE // _LARGE + _REST


def _newest(slots: list[Slot], kind: Kind) -> list[Slot]:
    found = [slot for slot in slots if slot.whole and slot.kind is kind]
    return sorted(found, key=lambda slot: -slot.committed)


def _populate(memory: np.ndarray[Any, Any]) -> None:
    """Have the pages there before they are needed: the first touch of a page costs more than its copying.

    Raises:
        OSError: there is no memory for them.
    """
    address = memory.__array_interface__["data"][0]
    if _libc.madvise(address, memory.size, _MADV_POPULATE_WRITE) != 0:
        problem = ctypes.get_errno()
        if problem != 22:  # EINVAL: an older kernel
            raise OSError(problem, os.strerror(problem))
        memory[::_PAGE] = 0
