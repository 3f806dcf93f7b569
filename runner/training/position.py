"""Where a fit is in its data, how it gets there again, and whether that is exact.

Keras pulls batches from iterators over one dataset, a new one for each epoch (and a spare one at its end), or
one for all of them. The position is the number of iterators made and the batches drawn from the newest.
Getting there again means making that many iterators (each moves the dataset's own shuffle seeds on), and
skipping. Each source is classified before training starts; what is not exact is resumed at an epoch's start.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.training.maker import Maker

_RANDOM_OPS = {
    "RandomUniform",
    "RandomUniformInt",
    "RandomStandardNormal",
    "TruncatedNormal",
    "ParameterizedTruncatedNormal",
    "RandomShuffle",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "Multinomial",
    "RandomCrop",
    "SampleDistortedBoundingBox",
    "SampleDistortedBoundingBoxV2",
}
_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_INFINITE = -1  #: what TensorFlow says of an endless dataset's size
_NESTED_SHUFFLES = ("ShuffleDataset", "ShuffleAndRepeatDataset", "RandomDataset")


@dataclass(frozen=True)
class Exactness:
    """Whether a fit can be resumed exactly at any step, and why (not)."""

    exact: bool
    reason: str
    #: "skip" within TensorFlow, "pull" the present iterator batch by batch, "replay" all the iterators there
    #: were, or "epoch": only at an epoch's start.
    method: str


class Position:
    """How far one dataset has been consumed; stands between Keras and the dataset's `iter`."""

    def __init__(self, method: str, *, stateless: bool = False):
        """Begin at the beginning.

        Args:
            method: how to skip, see `Exactness`.
            stateless: an iterator does not depend on how many were made before it.
        """
        self.method = method
        self._stateless = stateless
        self.iterators = 0
        self.drawn = 0
        self.generators: list[np.ndarray] = []
        self.history: list[int] = []  #: for "replay": what was drawn from the iterators before the present
        self.maker: Maker | None = None  #: the Python code that makes the data, where it does
        self.settle: Callable[[], None] = lambda: None  #: called once the place is reached again
        self._target: tuple[int, int, list[np.ndarray]] | None = None

    def go_to(self, iterators: int, drawn: int, generators: list[np.ndarray]) -> None:
        """Let the next `iter` give the iterator number `iterators` (from 1), `drawn` batches in."""
        self._target = (iterators, drawn, generators)
        # A snapshot may be taken before that `iter`: it must say the same again.
        self.iterators, self.drawn = (iterators, drawn) if drawn else (iterators - 1, 0)
        self.generators = generators

    @property
    def reopens(self) -> bool:
        """Whether the next `iter` gives an iterator from which batches had been drawn."""
        return self._target is not None and self.drawn > 0

    def counted(self, dataset: Any) -> Counted:
        """Return what Keras shall iterate in the dataset's place."""
        return Counted(self, dataset)

    def open(self, dataset: Any) -> Iterator[Any]:
        """Make the next iterator."""
        target, self._target = self._target, None
        if target is None:
            if self.method == "replay" and self.iterators:
                self.history.append(self.drawn)
            self.iterators += 1
            self.drawn = 0
            if self.method == "pull":
                self.generators = [variable.numpy() for variable in captured_variables(dataset)]
            return _iterate(dataset)
        self.iterators, self.drawn, self.generators = target
        if not self._stateless:
            with self.maker.pulling_again() if self.maker is not None else contextlib.nullcontext():
                self._make_earlier(dataset)
        if self.generators:
            for variable, value in zip(captured_variables(dataset), self.generators, strict=True):
                variable.assign(value)
        if self.drawn == 0:
            return _iterate(dataset)
        filling = self.iterators == 1 and _has_cache(dataset)
        if self.method == "skip" and not filling:
            return _iterate(dataset.skip(self.drawn))
        iterator = _iterate(dataset)
        # The read that finds the end completes a cache; TensorFlow made it when it read ahead.
        last = filling and self.drawn == int(dataset.cardinality())
        for _ in itertools.islice(iterator, self.drawn + last):
            pass
        self.settle()
        return iterator

    def _make_earlier(self, dataset: Any) -> None:
        """Make the iterators before the present one; the first fills a cache, where there is one."""
        earlier = self.iterators - 1
        if self.method == "replay":
            for number in range(earlier):  # where it is not known how much was drawn, all was
                drawn = self.history[number] if number < len(self.history) else None
                # One more: an iterator is given up when it is found to be at its end.
                for _ in itertools.islice(_iterate(dataset), drawn and drawn + 1):
                    pass
            return
        if earlier > 0 and _has_cache(dataset):
            for _ in iter(dataset):
                pass
            earlier -= 1
        for _ in range(earlier):
            iter(dataset)


def bound(iterator: Any, count: int) -> Any:
    """Let the thread that reads a generator ahead stop after `count` batches; return the dataset.

    Without this, how far it is ahead when the training ends is left to chance.

    Args:
        iterator: Keras's, over a generator's data, which Keras prefetches.
        count: how many batches will be asked for at most.
    """
    import tensorflow as tf

    dataset = iterator._distributed_dataset
    if "Prefetch" in type(dataset).__name__ and "Take" not in type(dataset._input_dataset).__name__:
        bounded = dataset._input_dataset.take(count)
        dataset = iterator._distributed_dataset = bounded.prefetch(tf.data.AUTOTUNE)
    return dataset


def _has_cache(dataset: Any) -> bool:
    return any("Cache" in type(one).__name__ for one in walk(dataset))


def _iterate(dataset: Any) -> Iterator[Any]:
    iterator: Iterator[Any] = iter(dataset)
    return iterator


class Counted:
    """A dataset whose iterators are counted."""

    def __init__(self, position: Position, dataset: Any):
        self._position = position
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return self._position.open(self._dataset)


def classify(adapter: Any, dataset: Any, distributed: bool, watched: bool) -> Exactness:
    """Tell how exactly a fit over this data can be resumed.

    Args:
        adapter: Keras's data adapter of the fit.
        dataset: the tf.data dataset that Keras made of it.
        distributed: whether a tf.distribute strategy is at work.
        watched: whether a `Maker` stands before the Python code that makes the data, where it does.
    """
    if distributed:
        return Exactness(False, "tf.distribute: resumed at the epoch's start", "epoch")
    kind = type(adapter).__name__
    if kind == "ArrayDataAdapter":
        return Exactness(True, "", "skip")
    if kind == "TFDatasetAdapter":
        return classify_dataset(dataset)
    if watched:
        return _classify_made(adapter)
    return Exactness(False, f"the data come from a {kind}: resumed at the epoch's start", "epoch")


def _classify_made(adapter: Any) -> Exactness:
    """Classify data that Python code makes."""
    if type(adapter).__name__ == "GeneratorDataAdapter":
        return Exactness(True, "by replay: a Python generator makes the data", "replay")
    if adapter.enqueuer is None or adapter.num_batches is not None:
        return Exactness(True, "by replay of the epoch: a PyDataset makes the data", "pull")
    reason = "the data come from an endless PyDataset with workers, which are ahead by chance"
    return Exactness(False, f"{reason}: resumed at the epoch's start", "epoch")


def classify_dataset(dataset: Any) -> Exactness:
    """Tell how exactly a position in a tf.data dataset can be reached again."""
    found = [(one, op) for one in walk(dataset) for op in _operations(one)]
    for one, op in found:
        refusal = _refusal(one, op)
        if refusal:
            return Exactness(False, f"{refusal}: resumed at the epoch's start", "epoch")
    if any(_reshuffles_late(one) and int(one.cardinality()) != _INFINITE for one in walk(dataset)):
        # One iterator draws several orders, each when it gets there: those before the present are not known.
        reason = "a shuffle is begun anew within an epoch, by repeat or concatenate"
        return Exactness(False, f"{reason}: resumed at the epoch's start", "epoch")
    if not _is_deterministic(dataset):
        return Exactness(False, "the dataset's option deterministic is off", "epoch")
    if any(op.op in _RANDOM_OPS for _, op in found) or captured_variables(dataset):
        return Exactness(True, "by replay: the dataset draws random numbers", "pull")
    return Exactness(True, "", "skip")


def flaw_of_validation(iterator: Any, watched: bool) -> str:
    """Say why validation is not the same after a resume as without; "" where it is.

    Args:
        iterator: Keras's over the validation data; each validation opens a new one on the dataset.
        watched: as for `classify`.
    """
    kind, dataset = type(iterator.data_adapter).__name__, iterator._distributed_dataset
    if kind == "ArrayDataAdapter":
        return ""
    if kind in {"GeneratorDataAdapter", "PyDatasetAdapter"} and watched:
        return ""
    if kind != "TFDatasetAdapter":
        return f"the validation data come from a {kind}, which may keep a state"
    exactness = classify_dataset(dataset)
    if exactness.method != "skip":
        return f"the validation data: {exactness.reason}"
    if any(_reshuffles_late(one) for one in walk(dataset)):
        return "the validation data are shuffled, then repeated: TensorFlow shuffles as it reads ahead"
    steps = iterator.steps_per_epoch
    cached = (one for one in walk(dataset) if "Cache" in type(one).__name__)
    if steps and steps != int(dataset.cardinality()) and any(map(_reshuffles, cached)):
        return "the validation data are shuffled, then cached, and validation does not read all of them"
    return ""


def _reshuffles_late(dataset: Any) -> bool:
    """Tell whether a dataset opens what it is made of while it is read, and that is shuffled each time."""
    return type(dataset).__name__ in {"_RepeatDataset", "_ConcatenateDataset"} and _reshuffles(dataset)


def _reshuffles(dataset: Any) -> bool:
    """Tell whether each iterator over a dataset has another order."""
    return any(getattr(one, "_reshuffle_each_iteration", False) for one in walk(dataset))


def _refusal(dataset: Any, op: Any) -> str | None:
    """Say why an operation inside a dataset's function cannot be resumed exactly."""
    parallel = "Parallel" in type(dataset).__name__
    if op.op in _PYTHON_OPS:
        return "the dataset runs Python code"
    if op.op in _RANDOM_OPS:
        if op.attr["seed"].i == 0 and op.attr["seed2"].i == 0:
            return f"{op.op} in the dataset has no seed"
        if parallel:
            return f"{op.op} in a parallel map is not reproducible, even undisturbed"
    if parallel and op.op in {"RngReadAndSkip", "StatefulUniform", "StatefulStandardNormalV2"}:
        return "a random generator in a parallel map is not reproducible, even undisturbed"
    if op.op.startswith(_NESTED_SHUFFLES):
        return "a shuffle inside a dataset's function"
    return None


def _is_deterministic(dataset: Any) -> bool:
    options = dataset.options()
    return options.deterministic is not False


def walk(dataset: Any) -> Iterator[Any]:
    """Yield a dataset and all it is made of, each once."""
    seen: set[int] = set()
    todo = [dataset]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += one._inputs()


def _operations(dataset: Any) -> Iterator[Any]:
    for function in dataset._functions():
        graph = function.function.graph.as_graph_def()
        yield from graph.node
        for inner in graph.library.function:
            yield from inner.node_def


def captured_variables(dataset: Any) -> list[Any]:
    """List the variables (those of tf.random.Generator among them) that a dataset's functions use."""
    found: dict[int, Any] = {}
    for one in walk(dataset):
        for function in one._functions():
            for variable in function.function.graph.variables:
                if variable is not None and not variable.name.startswith(OURS):
                    found.setdefault(id(variable), variable)
    return list(found.values())


#: The name of the variable that carries the epoch into the shuffling of arrays.
OURS = "runner_epoch"


def own_shuffle(tensorflow: Any, seed: int, fit: int, epoch: Any) -> Callable[..., Any]:
    """Return a stand-in for `tf.random.shuffle`: the permutation depends on (seed, fit, epoch) alone.

    Args:
        tensorflow: the module.
        seed: the job's.
        fit: which call of `fit`, from 0.
        epoch: int64 variable that holds the present epoch.
    """

    def shuffle(value: Any, seed_: Any = None, name: Any = None) -> Any:  # noqa: ARG001 - tf's signature
        high = tensorflow.constant((seed * 1000003 + fit) % 2**31, tensorflow.int64)
        low = epoch * 2**32 + tensorflow.cast(value[0], tensorflow.int64)
        return tensorflow.random.experimental.stateless_shuffle(value, seed=tensorflow.stack([high, low]))

    return shuffle
