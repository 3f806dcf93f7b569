"""Shuffles that training shares with validation, and both with whoever else looks at the data.

All iterators over a `shuffle` take their orders from one source, one after the other, whoever opens them:
training, validation, a callback that evaluates on the data or looks at a batch. So what had been opened
before the present training iterator is opened again before it, and the rest after it.

Limits: only what is opened at once, by one call, is counted. Where a shared shuffle is cached, opened while
others are read (by repeat, concatenate, another shuffle) or read within a compiled function, the fit is not
exact, and `Sharing.flaw` says why. A function that was compiled before the fit is not noticed.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from runner.training.datasets import (
    begins_anew,
    draws_order,
    is_ours,
    iterate,
    make_earlier,
    opened_late,
    reshuffles_late,
    reshuffling,
    walk,
)

if TYPE_CHECKING:
    from runner.training.position import Position

#: Methods of a dataset that open an iterator over it.
_OPENING = ("__iter__", "reduce", "get_single_element")
_watching: weakref.WeakSet[Sharing] = weakref.WeakSet()
_END = "resumed at the epoch's start"


class Sharing:
    """The shuffles of one fit's data, and how often others than its training have opened them."""

    def __init__(self, arguments: Mapping[str, Any]):
        """Begin.

        Args:
            arguments: of the call of `fit`, by name.
        """
        self._train = _dataset_in(arguments.get("x"))
        self._held = _dataset_in(arguments.get("validation_data"))
        nodes = {id(one): one for one in (*_walk(self._train), *_walk(self._held))}
        self._nodes = list(nodes.values())
        #: The number of each dataset of which each iterator has another order.
        shuffled = reshuffling(self._nodes)
        self._numbers = {key: i for i, key in enumerate(nodes) if key in shuffled}
        self._in_steps = bool(arguments.get("steps_per_epoch"))
        common = _shuffles(self._train) & _shuffles(self._held)
        self._together = bool(common)  #: training's and validation's iterators take orders from one source
        self.flaw = self._why_not(common) if common else ""  #: why they cannot be opened as they were
        self._opened: Counter[int] = Counter()  #: by others, in this process
        self._validated = 0, 0  #: iterators of validation, and those read, that a resume has opened
        self._validation: Position | None = None
        self._opening = self._place()  #: what had been opened when the present training iterator was
        self._target: Mapping[str, Any] | None = None

    def watch(self) -> None:
        """Count from now on what others open."""
        _watching.clear()
        if self._numbers:
            _install()
            _watching.add(self)

    def know(self, validation: Position) -> None:
        """Take the position in the validation data."""
        self._validation = validation

    def opened(self, dataset: Any, *, at_once: bool) -> None:
        """Note that somebody else opens a dataset.

        Args:
            dataset: that is read.
            at_once: now, and only once; else each time that a compiled function is called.
        """
        tops = list(self._tops(dataset))
        if not tops:
            return
        self._opened.update(tops)
        if not at_once:
            self.flaw = self.flaw or f"a compiled function reads what the fit shuffles: {_END}"
            return
        common = _shuffles(dataset) & {id(one) for one in self._nodes}
        self.flaw = self.flaw or self._why_not(common, dataset)

    def _tops(self, dataset: Any) -> Iterator[int]:
        """Yield the numbers of the shuffled datasets that a dataset is made of; one in another not again."""
        todo, seen = [dataset], set()
        while todo:
            one = todo.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if id(one) in self._numbers:
                yield self._numbers[id(one)]
            else:
                todo += one._inputs()

    def _why_not(self, common: set[int], other: Any = None) -> str:
        """Say why iterators over shared shuffles cannot be opened again as they were; "" where they can.

        Args:
            common: the ids of these shuffles.
            other: what somebody else opens; None: it is about training and validation alone.
        """

        def holds(dataset: Any) -> bool:
            return not common.isdisjoint(_shuffles(dataset))

        who = "training and validation share" if other is None else "others read too"
        concerned = [one for top in (self._train, self._held, other) for one in _walk(top) if holds(one)]
        if any("Cache" in type(one).__name__ for one in concerned):
            return f"a shuffle that {who} is cached: {_END}"
        held_late = self._held is not None and reshuffles_late(self._held)
        if held_late or any(map(begins_anew, concerned)):
            return f"a shuffle that {who} is begun anew while it is read: {_END}"
        # These open it at their first read, not when they are opened themselves.
        hasty = [other] if other is not None else []
        hasty += [self._train] if self._in_steps or other is not None else []
        late = (one for top in hasty if top is not None for one in opened_late(top))
        return f"a shuffle that {who} is shuffled again: {_END}" if any(map(holds, late)) else ""

    # -- the place ------------------------------------------------------------------------------------------

    def note_opening(self) -> None:
        """Note that training opens its next iterator."""
        self._opening = self._place()

    def state(self, *, fresh: bool) -> dict[str, Any]:
        """Return what was opened, as JSON.

        Args:
            fresh: training's present iterator has not been opened yet.
        """
        now = self._place()
        return {"opening": now if fresh else self._opening, "now": now, "flaw": self.flaw}

    def _place(self) -> dict[str, Any]:
        position = self._validation
        validated = [0, 0] if position is None else [position.iterators, position.past_reads()]
        return {"validation": validated, "others": {str(i): n for i, n in sorted(self._opened.items())}}

    def go_to(self, state: Mapping[str, Any], validation: Position) -> None:
        """Prepare to open again what a snapshot says was opened; training's next iterator is the present."""
        self._validation = validation
        self._target = state
        self.flaw = self.flaw or state["flaw"]
        both = self._together or bool(state["now"]["others"])
        if both and self._held is not None and not reshuffles_late(self._held):
            self._together = validation.caught_up = True

    def catch_up(self) -> None:
        """Open what had been opened before training's present iterator."""
        if self._target is not None:
            self._opening = self._target["opening"]
            self._open(self._opening)

    def catch_up_wholly(self) -> None:
        """Open what had been opened since, too."""
        target, self._target = self._target, None
        if target is not None:
            self._open(target["now"])

    def _open(self, place: Mapping[str, Any]) -> None:
        if any(self._opened[i] > place["others"].get(str(i), 0) for i in self._opened):
            self.flaw = self.flaw or f"a callback reads what is shuffled when an epoch begins: {_END}"
        self.open_for_others(place["others"])
        if self._together:
            iterators, reads = place["validation"]
            make_earlier(self._held, iterators - self._validated[0], reads - self._validated[1])
            self._validated = iterators, reads

    def open_for_others(self, counts: Mapping[str, int]) -> None:
        """Open what others have opened, as often as they have; what they have in this process counts."""
        known = set(self._numbers.values())
        for number, count in counts.items():
            if int(number) not in known:
                self.flaw = self.flaw or "the data are not what others have read before"
                continue
            for _ in range(count - self._opened[int(number)]):
                iterate(self._nodes[int(number)])
            self._opened[int(number)] = max(count, self._opened[int(number)])

    def left_behind(self) -> dict[str, int]:
        """Return how often others have opened what is shuffled."""
        counts: dict[str, int] = self._place()["others"]
        return counts


def _dataset_in(argument: Any) -> Any:
    """Return the dataset that an argument of `fit` is; None where it is none."""
    inner = argument[0] if isinstance(argument, tuple | list) and len(argument) == 1 else argument
    return inner if hasattr(inner, "element_spec") and hasattr(inner, "_inputs") else None


def _walk(dataset: Any) -> Iterator[Any]:
    return walk(dataset) if dataset is not None else iter(())


def _shuffles(dataset: Any) -> set[int]:
    """Return the ids of the shuffles in a dataset that give each iterator another order."""
    return {id(one) for one in _walk(dataset) if draws_order(one)}


@functools.cache
def _install() -> None:
    """Have those that watch told of what is opened; once in a process."""
    import tensorflow as tf

    def wrap(name: str) -> None:
        original: Callable[..., Any] = getattr(tf.data.Dataset, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            for sharing in () if is_ours() else list(_watching):
                try:
                    sharing.opened(self, at_once=tf.executing_eagerly())
                except Exception as error:  # noqa: BLE001 - the script's own reading must not fail for it
                    sharing.flaw = sharing.flaw or f"what else is read is not understood ({error}): {_END}"
            return original(self, *args, **kwargs)

        setattr(tf.data.Dataset, name, method)

    for name in _OPENING:
        wrap(name)
