"""Data that Python code makes batch by batch, in a thread that TensorFlow reads ahead with.

A generator cannot be moved: it is run again from its start, and pulled as often as before. A PyDataset can:
its attributes are put back as they were when the present epoch's first batch was asked for, and the epoch's
batches are asked for again. What such code draws from Python's and NumPy's shared generators it draws in that
thread, ahead of training; so their state is noted there, just before the first batch, put back there, and
left as the repeated pulling leaves it.

Limits: code that shares these generators with the rest of the script (a callback that draws from `np.random`,
say) races with it, undisturbed as well. Arrays above 1 MiB among a PyDataset's attributes are captured only
where their contents have changed since the fit began.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runner.training import chance
from runner.training.capture import Trace, capture_chance
from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder
from runner.training.entropy import Entropy

_BIG_BYTES = 1 << 20
#: What Keras keeps in a PyDataset for itself.
_KERAS_OWN = {"_workers", "_use_multiprocessing", "_max_queue_size"}


class Maker:
    """The runner's side of one generator or PyDataset that a fit trains on or validates with."""

    def __init__(self, source: Any, entropy: Entropy, role: str):
        """Begin to watch.

        Args:
            source: the script's generator or PyDataset.
            entropy: the job's.
            role: "train" or "validation"; names the arrays.
        """
        self.source = source
        self.is_generator = not hasattr(source, "__getitem__")
        self.threaded = False  #: Keras's own threads or processes make the batches, from an epoch's begin on
        self.missed: list[str] = []
        self._entropy = entropy
        self._role = role
        self._sums: dict[int, int] = {}
        self._begun: Trace | None = None
        self._target: Trace | None = None
        self._drawing_from: Any = None
        self._peeked: Trace | None = None
        if not self.is_generator:
            self._sums = {id(value): _sum(value) for value in vars(source).values() if _is_big(value)}

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

    def started(self) -> None:
        """Note that the first batch of an iterator is about to be made; put back what is to be put back."""
        if self._role == "validation":
            return
        if self._target is not None:
            self._begun, self._target = self._target, None
            self._put(self._begun)
            self._drawing_from = chance.fingerprint()
        elif self._begun is None or not self.is_generator:
            self._begun = self._now()

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
            for _ in itertools.islice(self.source, pulled):
                pass
        else:
            self._put_members(state)

    # -- state ----------------------------------------------------------------------------------------------

    def state(self, *, fresh: bool) -> Trace:
        """Return what a resume needs, as a node and arrays.

        Args:
            fresh: nothing has been drawn from the present iterator.
        """
        if self._target is not None:
            return self._target
        return self._now() if self._begun is None or fresh or self._at_rest() else self._begun

    def _at_rest(self) -> bool:
        return self._role == "validation" and not self.is_generator

    def aim(self, state: Trace, *, at_once: bool) -> None:
        """Have a captured state put back: when the next iterator starts, or (attributes only) at once."""
        if at_once or self._at_rest():
            self._put_members(state)
        else:
            self._target = state

    def has_drawn(self) -> bool:
        """Tell whether the pulling that was repeated has used the shared generators."""
        return self._drawing_from is not None and chance.fingerprint() != self._drawing_from

    @contextlib.contextmanager
    def pulling_again(self) -> Iterator[None]:
        """Let the block pull the batches of earlier validations, without touching the present."""
        if self._peeked is None:
            yield
            return
        now = self._now()
        self._put(self._peeked)
        try:
            yield
        finally:
            self._put(now)

    def _now(self) -> Trace:
        node, arrays = capture_chance(self._entropy, f"{self._role}-data")
        members: dict[str, Node] = {}
        if not self.is_generator:
            encoder = Encoder(arrays, f"data/{self._role}", self._unchanged)
            wanted = [(name, value) for name, value in vars(self.source).items() if name not in _KERAS_OWN]
            members, failed = encode_members(encoder, wanted)
            self.missed = [f"{type(self.source).__name__}.{name} ({why})" for name, why in failed.items()]
        return {"chance": node, "members": members}, arrays

    def _put(self, state: Trace) -> None:
        self._put_members(state)
        chance.restore_drawn(Decoder(state[1]), state[0]["chance"], self._entropy)

    def _put_members(self, state: Trace) -> None:
        node, arrays = state
        decoder = Decoder(arrays)
        for name, member in node["members"].items():
            value = decoder.merge(vars(self.source).get(name), member)
            if value is not SKIP:
                vars(self.source)[name] = value

    def _unchanged(self, value: Any) -> Node:
        """Return the node that leaves a big array as the script made it, where it still is so."""
        if not _is_big(value):
            return None
        total = _sum(value)
        return {"t": "skip"} if self._sums.get(id(value)) == total else None


def _is_big(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.nbytes > _BIG_BYTES and not value.dtype.hasobject


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B"))
