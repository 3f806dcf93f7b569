"""Data that Python code makes batch by batch, in a thread that TensorFlow reads ahead with.

A generator cannot be moved: it is run again from its start, and pulled as often as before. So is Python code
inside a `tf.data` dataset whose state cannot be looked at. A PyDataset can be moved, and so can most such
code: its state (attributes; what the code reaches) is put back as it was when the present epoch's first batch
was asked for, and the epoch's batches are asked for again. What such code draws from Python's and NumPy's
shared generators it draws in that thread, ahead of training; so their state is noted just before the first
batch, put back there, and left as the repeated pulling leaves it.

Limits: code that shares these generators with the rest of the script (a callback that draws from `np.random`,
say) races with it, undisturbed as well; where they draw by turns, the order is lost, which is noticed of a
generator only. Arrays above 1 MiB are captured only where their contents have
changed since the fit began; read-only ones are never. State inside installed packages is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runner.storage.checkpoint import Snapshot
from runner.training import capture, chance, sources
from runner.training.ahead import ReadAhead, consume
from runner.training.capture import Trace, capture_chance
from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder
from runner.training.entropy import Entropy
from runner.training.pycode import Code

_BIG_BYTES = 1 << 20
#: So many batches of a generator are taken beforehand by Keras.
PEEKED = 2


class Maker:
    """The runner's side of one generator, PyDataset or dataset that a fit trains on or validates with."""

    def __init__(self, source: Any, entropy: Entropy, role: str, code: Code | None = None):
        """Begin to watch.

        Args:
            source: the script's generator, PyDataset or dataset.
            entropy: the job's.
            role: "train" or "validation"; names the arrays.
            code: the Python code in it, where it is a dataset.
        """
        self.source = source
        self.code = code
        self.is_generator = code is None and not hasattr(source, "__getitem__")
        self.threaded = False  #: Keras's own threads or processes make the batches, from an epoch's begin on
        self.missed: list[str] = []  #: what of its state could not be captured just now
        self.lost: list[str] = []  #: what of it could not be put back
        self._entropy = entropy
        self._role = role
        self._sums: dict[int, int] = {}
        self._known_arrays: list[np.ndarray] = []
        self._begun: Trace | None = None
        self._target: Trace | None = None
        self._drawing_from: chance.Use | None = None
        self._peeked: Trace | None = None
        self._ahead: ReadAhead | None = None  #: of a generator
        self._source: sources.Source
        if code is not None:
            self._source = sources.Reached(code)
        else:
            self._source = sources.Opaque() if self.is_generator else sources.Object(source)
        self._learning = True
        self._now()
        self._learning = False
        self.opaque = self._why_opaque()  #: where its state is hidden: why
        self.from_start = False  #: it is run again from its very start, for its state is not put back
        if self.opaque:
            self.run_from_start()

    def run_from_start(self) -> None:
        """Let it be run again from its very start, even where its state could be put back."""
        self.from_start = True
        if self._role == "train":
            self._source = sources.Opaque()

    def _why_opaque(self) -> str:
        if self.is_generator:
            return "a generator"
        if self.code is None:
            return ""
        missed, self.missed = self.missed, []
        return self.code.foreign or ", ".join(missed)

    # -- hooks into Keras's adapters ------------------------------------------------------------------------

    @contextlib.contextmanager
    def peeking(self) -> Iterator[None]:
        """Stand around the making of a generator's adapter, which pulls two batches."""
        target, self._target = (self._target, None) if self._role == "validation" else (None, self._target)
        if target is None:
            if self._role == "validation":
                self._begun = self._now()
            yield
            return
        now = self._now()
        self._begun = target
        self._put(target)
        yield
        self._peeked = self._now()
        self._put(now)

    def read_ahead(self, source: Iterator[Any]) -> ReadAhead:
        """Return what Keras shall read in a generator's place."""
        self._ahead = ReadAhead(source)
        return self._ahead

    @property
    def asked(self) -> int | None:
        """How many batches have been asked of a generator, with what was read ahead; None of other data."""
        return None if self._ahead is None else self._ahead.asked

    def started(self) -> None:
        """Note that the first batch of an iterator is about to be made; put back what is to be put back."""
        if self._role == "validation":
            if self._begun is None and not self.is_generator:
                self._begun = self._now()
            return
        if self._target is not None:
            self._begun, self._target = self._target, None
            self._put(self._begun)
            self._drawing_from = chance.use(self._entropy)
        elif self._begun is None or not self.from_start:
            self._begun = self._now()
            self._drawing_from = chance.use(self._entropy) if self.code is not None else None

    def opened(self) -> None:
        """Note that an iterator over a dataset is about to be read."""
        if self.code is not None:
            self.started()

    @property
    def pending(self) -> bool:
        """Whether a state waits to be put back when the next iterator is read."""
        return self._target is not None

    def watched(self, make: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
        """Return a stand-in for the function that gives a new iterator to TensorFlow's thread."""

        @functools.wraps(make)
        def started_and_made() -> Iterator[Any]:
            if not self.threaded:
                self.started()
            return make()

        return started_and_made

    def finish(self, state: Trace, pulled: int | None) -> None:
        """Leave the source as a finished fit did; the shared generators are put back by others.

        Args:
            state: as that fit left it.
            pulled: how many batches were taken from a generator; None: all.
        """
        if self.is_generator:
            self._put(state)
            if not consume(self.source, pulled):
                self.lost.append("how far it was read, for it waits for the training")
        elif self.code is not None and self.from_start:
            self._put(state)  # the reading again follows
        elif not self.from_start:
            self._put_members(state)

    # -- state ----------------------------------------------------------------------------------------------

    def state(self, *, fresh: bool) -> Trace:
        """Return what a resume needs, as a node and arrays.

        Args:
            fresh: nothing has been drawn from the present iterator.
        """
        if self._target is not None:
            return self._target
        if self._begun is None or self._at_rest() or (fresh and not self.from_start):
            return self._now()
        return self._begun

    def _at_rest(self) -> bool:
        return self._role == "validation" and not self.from_start

    def aim(self, state: Trace, *, at_once: bool) -> None:
        """Have a captured state put back: when the next iterator starts, or (attributes only) at once."""
        if self._at_rest() or (at_once and not self.from_start):
            self._put_members(state)
        elif self._role == "validation" and not self.is_generator:
            self._begun = self._peeked = state
        else:
            self._target = state

    def prepare(self) -> None:
        """Put back at once what waits to be put back when the next iterator starts, but for chance."""
        if self._target is not None:
            self._put_members(self._target)

    def disturbed(self) -> str:
        """Say why code that runs in parallel is not reproducible; "" where it is, as far as one can see."""
        if self.code is None or not self.code.parallel or self._begun is None:
            return ""
        if self._drawing_from is not None and chance.use(self._entropy) != self._drawing_from:
            return "Python code in a parallel map draws random numbers: not reproducible, even undisturbed"
        if not _same(self._begun, self._now()):
            return "Python code in a parallel map changes its state: not reproducible, even undisturbed"
        return ""

    @contextlib.contextmanager
    def still(self) -> Iterator[bool]:
        """Let a generator draw nothing during the block; tell whether it does not."""
        if self._ahead is None:
            yield True
            return
        with self._ahead.still() as is_still:
            yield is_still

    @contextlib.contextmanager
    def replaying(self, saved: Snapshot) -> Iterator[None]:
        """Let the block reach the place in the data again; put back then what the data do not draw from.

        A snapshot may know of draws for what had been read ahead of it: a generator is read as far again, no
        further. Where other code draws from the same generators, how their draws followed each other is lost.
        """
        ahead = saved.state.get("ahead")
        if self._ahead is None or ahead is None:
            yield
            self._put_back_unused(saved)
            return
        with self._ahead.limited(ahead["asked"]):
            yield
            if not self._ahead.reach(ahead["asked"]):
                self.lost.append("how far it was read ahead, for it waits for the training")
            used = self._put_back_unused(saved)
            if ahead["still"] and capture.chance_differs(saved, self._entropy, used):
                self.lost.append("the order of random draws, for other code draws as well")

    def _put_back_unused(self, saved: Snapshot) -> chance.Use:
        """Put back the shared generators that have not been used for the data; return which have."""
        used = chance.used_since(self._drawing_from or chance.use(self._entropy), self._entropy)
        capture.restore_unused(saved, self._entropy, used)
        return used

    @contextlib.contextmanager
    def pulling_again(self, drawn: int) -> Iterator[None]:
        """Let the block read again what earlier iterators had given.

        Args:
            drawn: how much of the present iterator is to be read again after that; where it is nothing, the
                shared generators are left as they were.
        """
        begun: Trace | None = None
        if self._role == "validation":
            begun = self._peeked
        elif self.from_start and self._target is not None:
            begun = self._begun = self._target
            self._target = None
        if begun is None:
            yield
            return
        now = self._now()
        self._put(begun)
        self._drawing_from = chance.use(self._entropy)
        try:
            yield
        finally:
            if drawn == 0:
                self._put(now)

    def _now(self) -> Trace:
        node, arrays = capture_chance(self._entropy, f"{self._role}-data")
        encoder = Encoder(arrays, f"data/{self._role}", self._left_alone)
        members, failed = encode_members(encoder, self._source.members())
        owner = f"{type(self.source).__name__}."
        self.missed = [
            f"{name.replace(sources.SELF, owner, 1)} ({why})"
            for name, why in failed.items()
            if self._source.is_state(name)
        ]
        return {"chance": node, "members": members}, arrays

    def _put(self, state: Trace) -> None:
        self._put_members(state)
        chance.restore_host(Decoder(state[1]), state[0]["chance"], self._entropy)

    def _put_members(self, state: Trace) -> None:
        node, arrays = state
        decoder, present = Decoder(arrays), dict(self._source.members())
        merged = {name: decoder.merge(present.get(name), one) for name, one in node["members"].items()}
        left = self._source.put({name: value for name, value in merged.items() if value is not SKIP})
        self.lost += dict.fromkeys(decoder.lost)
        self.lost += [f"{name} (the script does not use it now)" for name in left]

    def _left_alone(self, value: Any) -> Node:
        """Return the node of what stays as the script makes it: read-only, or big and unchanged."""
        if _is_read_only(value):
            return {"t": "skip"}
        if not _is_big(value):
            return None
        total = _sum(value)
        if self._learning:
            self._known_arrays.append(value)  # so that no other gets its id
            self._sums[id(value)] = total
        return {"t": "skip"} if self._sums.get(id(value)) == total else None


def _same(one: Trace, other: Trace) -> bool:
    """Compare two states but for the shared generators."""
    keys = {key for key in (*one[1], *other[1]) if key.startswith("data/")}
    return one[0]["members"] == other[0]["members"] and all(
        key in one[1] and key in other[1] and np.array_equal(one[1][key], other[1][key]) for key in keys
    )


def _is_read_only(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.flags.writeable
    module = type(value).__module__ or ""
    if module.startswith("h5py."):
        file = getattr(value, "file", None)
        return file is not None and file.mode == "r"
    return type(value).__name__ == "EagerTensor"


def _is_big(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.nbytes > _BIG_BYTES and not value.dtype.hasobject


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B"))
