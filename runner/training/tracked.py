"""What a loop of the script's own uses besides its model, kept: data by their position, values in place.

A tf.data dataset is handed back as one that counts its iterators and what is drawn from the newest; it is a
dataset in every other respect. A position is reached again by making as many iterators (each moves the
dataset's own shuffle seed on) and drawing as much. Any other iterator is drawn from as often as before.

Limits: what a compiled function draws from an iterator by itself is not seen; where that is so, or where a
position is ambiguous, it is told as a doubt, and the resume is not called exact.
"""

from __future__ import annotations

import functools
import random
import weakref
from collections import Counter as CounterDict
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runner.training import chance
from runner.training.classify import classify_dataset
from runner.training.codec import Encoder, Node, Uncapturable
from runner.training.datasets import captured_variables, make_unread, walk
from runner.training.decode import Decoder
from runner.training.variables import ChangedScriptError

#: Takes the reason why something is not exact.
Tell = Callable[[str], None]
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_IN_PLACE = (list, dict, set, deque, OrderedDict, defaultdict, CounterDict, bytearray)
_DRAWS_WATCHED = 4


class _Drawn:
    """How much was drawn; elements of a step that was only a rehearsal are put back."""

    def __init__(self) -> None:
        self.drawn = 0
        self._back: deque[Any] = deque()
        self._rehearsed: list[Any] | None = None

    def rehearse(self) -> None:
        """Remember what is drawn from now on, until `_go_back`."""
        self._rehearsed = []

    def _draw(self, pull: Callable[[], Any]) -> Any:
        element = self._back.popleft() if self._back else pull()
        self.drawn += 1
        if self._rehearsed is not None:
            self._rehearsed.append(element)
        return element

    def _go_back(self, count: int) -> None:
        """Put back what was drawn beyond `count`.

        Raises:
            ChangedScriptError: it was not drawn in a rehearsal.
        """
        rehearsed, self._rehearsed = self._rehearsed or [], None
        beyond = self.drawn - count
        if beyond > len(rehearsed):
            raise ChangedScriptError(f"{self.drawn} elements were drawn from tracked data instead of {count}")
        if beyond > 0:
            self._back.extendleft(reversed(rehearsed[-beyond:]))
            self.drawn = count


class Stream(_Drawn):
    """A tf.data dataset; or one iterator over it, which the script has made: drawn is from the newest."""

    def __init__(self, dataset: Any, tell: Tell, *, seeded: bool):
        super().__init__()
        self.dataset = dataset
        self.iterators = 0
        self._generators: list[np.ndarray] = []
        self._newest: Callable[[], Any] = lambda: None
        self._over = False
        self._tell = tell
        exactness = classify_dataset(dataset)
        if not exactness.exact:
            tell(exactness.reason.partition(": resumed")[0])
        if not seeded and _is_unseeded(dataset):
            tell("a shuffle in tracked data has no seed: its order differs in each process")

    def adopt(self, iterator: Any) -> Any:
        """Count from now on what is drawn from `iterator`, the newest."""
        self._generators = [variable.numpy() for variable in captured_variables(self.dataset)]
        iterator.__class__ = _counting()[0]
        iterator.stream = self
        self._newest = weakref.ref(iterator)
        self.iterators += 1
        self.drawn, self._over = 0, False
        self._back.clear()
        return iterator

    def draw(self, iterator: Any, pull: Callable[[], Any]) -> Any:
        """Return the iterator's next element."""
        if self._newest() is not iterator:
            self._tell("tracked data are drawn from two iterators at once")
            return pull()
        return self._draw(pull)

    def ended(self, iterator: Any) -> None:
        """Note that an iterator has no more."""
        if self._newest() is iterator:
            self._over = True

    def given_away(self) -> None:
        """Note that a compiled function was given the iterator."""
        self._tell("a compiled function draws from a tracked iterator, which cannot be counted")

    @property
    def _live(self) -> Any:
        """The newest iterator, while the script holds it and it has more."""
        return None if self._over else self._newest()

    def node(self, encoder: Encoder, ahead: int) -> Node:
        """Return the position, `ahead` elements less far."""
        return {
            "iterators": self.iterators,
            "drawn": self.drawn - ahead,
            "alive": self._live is not None,
            "generators": [encoder.array(state) for state in self._generators],
        }

    def approach(self, start: Node, now: Node) -> None:
        """At a resumed epoch's start: let the next iterator be the one it was in that epoch."""
        goes_on = now["alive"] and now["iterators"] == start["iterators"]
        self._make(start["iterators"] - goes_on)
        if self.iterators == start["iterators"] and start["alive"]:
            self._go_to(start["drawn"])

    def arrive(self, decoder: Decoder, now: Node) -> None:
        """Go to the position.

        Raises:
            ChangedScriptError: the script has gone beyond it.
        """
        if self.iterators < now["iterators"]:
            if now["alive"]:
                self._tell(
                    "an iterator over tracked data was made inside the loop:"
                    " make it before, or use run.batches"
                )
            self._make(now["iterators"])
        elif self._live is not None and now["alive"] and self.iterators == now["iterators"]:
            if self.drawn == 0 and now["generators"]:
                self._generators = [decoder.merge(None, one) for one in now["generators"]]
                for variable, value in zip(captured_variables(self.dataset), self._generators, strict=True):
                    variable.assign(value)
            self._go_to(now["drawn"])
        elif self.iterators > now["iterators"]:
            raise ChangedScriptError(
                f"the script made {self.iterators} iterators over tracked data"
                f" where there were {now['iterators']}"
            )

    def _go_to(self, count: int) -> None:
        live = self._live
        self._go_back(count)
        while live is not None and self.drawn < count and next(live, self) is not self:
            pass

    def _make(self, count: int) -> None:
        """Make iterators until there were `count`; the first fills a cache, where there is one."""
        kinds = {type(one).__name__ for one in walk(self.dataset)}
        if self.iterators < count and any("Repeat" in kind for kind in kinds):
            self._tell("iterators over repeating tracked data were left before their end")
        while self.iterators < count:
            if self.iterators == 0 and any("Cache" in kind for kind in kinds):
                for _ in iter(self.dataset):
                    pass
            else:
                make_unread(self.dataset, 1, 1)
            self.iterators += 1
            self._over = True


def _is_unseeded(dataset: Any) -> bool:
    """Tell whether a shuffle draws its seed from the operating system."""
    for one in walk(dataset):
        seeds = [getattr(one, name, None) for name in ("_seed", "_seed2")]
        if "Shuffle" in type(one).__name__ and not any(s is not None and int(s) for s in seeds):
            return True
    return False


@functools.cache
def _counting() -> tuple[type, type]:
    """Return the classes of iterators and datasets that count."""
    from tensorflow.python.data.ops import dataset_ops, iterator_ops
    from tensorflow.python.eager import context
    from tensorflow.python.framework import errors

    class CountedIterator(iterator_ops.OwnedIterator):  # type: ignore[misc]
        stream: Stream

        def _next_internal(self) -> Any:
            try:
                return self.stream.draw(self, super()._next_internal)
            except errors.OutOfRangeError:
                self.stream.ended(self)
                raise

        @property
        def _type_spec(self) -> Any:
            self.stream.given_away()
            return super()._type_spec

    class CountedDataset(dataset_ops.UnaryUnchangedStructureDataset):  # type: ignore[misc]
        def __init__(self, dataset: Any, stream: Stream):
            self.stream = stream
            super().__init__(dataset, dataset._variant_tensor)

        def __iter__(self) -> Any:
            iterator = iter(self.stream.dataset)
            return self.stream.adopt(iterator) if context.executing_eagerly() else iterator

    return CountedIterator, CountedDataset


class Pulled(_Drawn):
    """Any iterator: drawn from as often as before."""

    def __init__(self, iterator: Iterator[Any], tell: Tell):
        super().__init__()
        self._iterator = iterator
        self._tell = tell

    def __iter__(self) -> Pulled:
        return self

    def __next__(self) -> Any:
        watched = self.drawn < _DRAWS_WATCHED
        before = chance.shared() if watched else ()
        element = self._draw(self._iterator.__next__)
        if watched and chance.shared() != before:
            self._tell("a tracked iterator draws from Python's or NumPy's shared generator: give it its own")
        return element

    def node(self, _encoder: Encoder, ahead: int) -> Node:
        """Return the position, `ahead` elements less far."""
        return {"drawn": self.drawn - ahead}

    def approach(self, start: Node, _now: Node) -> None:
        """Go to where it was at the epoch's start."""
        self._go_to(start["drawn"])

    def arrive(self, _decoder: Decoder, now: Node) -> None:
        """Go to the position.

        Raises:
            ChangedScriptError: the script has gone beyond it.
        """
        self._go_to(now["drawn"])

    def _go_to(self, count: int) -> None:
        self._go_back(count)
        while self.drawn < count and next(self, self) is not self:
            pass


class Value:
    """Something that is changed in place: an array, a container, a generator, a plain object."""

    def __init__(self, value: Any):
        self.value = value
        self.is_generator = isinstance(value, _GENERATORS)

    def node(self, encoder: Encoder, _ahead: int) -> Node:
        """Return all of it."""
        encoder.nodes = 0
        return encoder.encode(self.value)

    def arrive(self, decoder: Decoder, node: Node) -> None:
        """Fill it.

        Raises:
            ChangedScriptError: the script has something else in its place.
        """
        if decoder.merge(self.value, node) is not self.value:
            raise ChangedScriptError(f"a tracked {type(self.value).__name__} is of another kind or shape")


Tracked = Stream | Pulled | Value


def track(data: Any, tell: Tell, *, seeded: bool) -> tuple[Any, Tracked | None]:
    """Return what stands for `data` and what keeps it; None where it is a holder of variables.

    Raises:
        TypeError: it cannot be captured.
    """
    if hasattr(data, "_variant_tensor") and hasattr(data, "element_spec"):
        stream = Stream(data, tell, seeded=seeded)
        return _counting()[1](data, stream), stream
    if type(data).__name__ == "OwnedIterator":
        stream = Stream(data._dataset, tell, seeded=seeded)
        return stream.adopt(data), stream
    if hasattr(data, "assign") or (type(data).__module__ or "").startswith(("keras.", "tensorflow.")):
        return data, None
    if isinstance(data, Iterator):
        pulled = Pulled(data, tell)
        return pulled, pulled
    return data, _value(data)


def _value(data: Any) -> Value:
    plain = hasattr(data, "__dict__") and not callable(data)
    frozen = isinstance(data, np.ndarray) and not data.flags.writeable
    if frozen or not (plain or isinstance(data, (np.ndarray, *_GENERATORS, *_IN_PLACE))):
        raise TypeError(
            f"run.track: a {type(data).__name__} cannot be changed in place; expected a dataset, an iterator,"
            " variables, a generator, a writable array, a list, dict, set or deque, or an object made of such"
        )
    value = Value(data)
    try:
        value.node(Encoder({}, "trial"), 0)
    except (Uncapturable, RecursionError) as reason:
        raise TypeError(f"run.track: a {type(data).__name__} cannot be captured: it has {reason}") from None
    return value


def watch_compiled_chance(tell: Tell) -> None:
    """Tell when a compiled function is made to draw from TensorFlow's stateful random operations.

    Their state lives in the compiled function and cannot be read; those of tf.data are classified apart.
    """
    from tensorflow.python.eager import context
    from tensorflow.python.framework import ops, random_seed

    original = random_seed.get_seed

    def get_seed(op_seed: Any) -> Any:
        if not context.executing_eagerly() and not str(ops.get_default_graph().name).startswith("Dataset_"):
            tell(
                "tf.random.* in a compiled function keeps its state there: use keras.random with a"
                " SeedGenerator, or tf.random.Generator, and track it"
            )
        return original(op_seed)

    get_seed.__doc__ = original.__doc__
    random_seed.get_seed = get_seed
