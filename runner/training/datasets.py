"""What a `tf.data` dataset is made of, and reading it again."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

#: Operations that run Python code.
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
#: In-memory data above this size are not copied to look at how a dataset reads them.
_COPIED_BYTES_MAX = 256 << 20
_INFINITE = -1  #: what TensorFlow says of an endless dataset's size
#: The name of the variable that carries the order into Keras's dataset.
OURS = "runner_order"
_opening = threading.local()  #: whether the runner itself opens an iterator


def is_distributed(dataset: Any) -> bool:
    """Tell whether this is tf.distribute's: that is no tf.data dataset, and cannot be looked into."""
    return not hasattr(dataset, "_inputs")


def walk(dataset: Any) -> Iterator[Any]:
    """Yield a dataset and all it is made of, each once; nothing of a distributed one."""
    seen: set[int] = set()
    todo = [] if is_distributed(dataset) else [dataset]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += one._inputs()


def operations(dataset: Any) -> Iterator[Any]:
    """Yield the operations of a dataset's functions, those of functions within them too."""
    for function in dataset._functions():
        yield from operations_of(function.function.graph)


def operations_of(graph: Any) -> Iterator[Any]:
    """Yield the operations of a graph, those of functions within it too."""
    definition = graph.as_graph_def()
    yield from definition.node
    for inner in definition.library.function:
        yield from inner.node_def


def operations_of_step(step: Any) -> list[Any]:
    """Return the operations of a training step that Keras has traced; a graph above 2 GiB gives none.

    Args:
        step: the tf.function; None where it is not known.
    """
    found: list[Any] = []
    for traced in getattr(step, "_list_all_concrete_functions", list)():
        with contextlib.suppress(ValueError):
            found += operations_of(traced.graph)
    return found


def is_unordered(dataset: Any) -> bool:
    """Tell whether a dataset itself, not those it is made of, may give its elements in any order."""
    if type(dataset).__name__ == "_ParallelInterleaveDataset":
        return any(_gives_any_order(op) for op in _operation_itself(dataset))
    return getattr(dataset, "_deterministic", None) in {"false", False} or any(
        map(_gives_any_order, operations(dataset))
    )


def _gives_any_order(op: Any) -> bool:
    return "deterministic" in op.attr and op.attr["deterministic"].s == b"false"


def _operation_itself(dataset: Any) -> list[Any]:
    """Return the operations of a dataset, its functions' too; none where it holds too much data."""
    import tensorflow as tf
    from tensorflow.python.data.ops.options import ExternalStatePolicy

    held = (tensor for one in walk(dataset) for tensor in getattr(one, "_tensors", ()))
    if sum(int(tensor.shape.num_elements() or 0) * tensor.dtype.size for tensor in held) > _COPIED_BYTES_MAX:
        return []
    try:
        text = dataset._as_serialized_graph(external_state_policy=ExternalStatePolicy.IGNORE).numpy()
    except tf.errors.OpError:
        return []
    return list(tf.compat.v1.GraphDef.FromString(text).node)


def captured_variables(dataset: Any) -> list[Any]:
    """List the variables (those of tf.random.Generator among them) that a dataset's functions use."""
    found: dict[int, Any] = {}
    for one in walk(dataset):
        for function in one._functions():
            for variable in function.function.graph.variables:
                if variable is not None and not variable.name.startswith(OURS):
                    found.setdefault(id(variable), variable)
    return list(found.values())


def has_cache(dataset: Any) -> bool:
    """Tell whether a dataset keeps what was read from it."""
    return any("Cache" in type(one).__name__ for one in walk(dataset))


def reshuffles_late(dataset: Any) -> bool:
    """Tell whether one iterator draws several orders of a shuffle, each when it gets there, and then ends."""
    return any(begins_anew(one) and int(one.cardinality()) != _INFINITE for one in walk(dataset))


def begins_anew(dataset: Any) -> bool:
    """Tell whether a dataset opens what it is made of while it is read, and that is shuffled each time."""
    return type(dataset).__name__ in {"_RepeatDataset", "_ConcatenateDataset"} and reshuffles(dataset)


def reshuffles(dataset: Any) -> bool:
    """Tell whether each iterator over a dataset has another order."""
    return any(map(draws_order, walk(dataset)))


def draws_order(dataset: Any) -> bool:
    """Tell whether a dataset itself draws something for each iterator, from a source that outlives it."""
    return any(getattr(dataset, name, None) for name in ("_reshuffle_each_iteration", "_rerandomize"))


def opened_late(dataset: Any) -> list[Any]:
    """List what is opened at the first read only, and has another order each time: what a shuffle shuffles.

    An iterator that is made and not read leaves the order of these as it is.
    """
    shuffled = (one for one in walk(dataset) if "Shuffle" in type(one).__name__)
    inputs = (one for shuffle in shuffled for one in shuffle._inputs())
    return [one for one in inputs if _reshuffles_uncached(one)]


def _reshuffles_uncached(dataset: Any) -> bool:
    """Tell whether the order is another one each time even when the caches in a dataset are filled."""
    todo, seen = [dataset], set()
    while todo:
        one = todo.pop()
        if id(one) in seen or "Cache" in type(one).__name__:
            continue
        if draws_order(one):
            return True
        seen.add(id(one))
        todo += one._inputs()
    return False


def reshuffling(datasets: Iterable[Any]) -> set[int]:
    """Return the ids of those of which each iterator has another order; all inputs are among them."""
    above: dict[int, list[Any]] = {}
    todo = []
    for one in datasets:
        for inner in one._inputs():
            above.setdefault(id(inner), []).append(one)
        if draws_order(one):
            todo.append(one)
    found: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) not in found:
            found.add(id(one))
            todo += above.get(id(one), [])
    return found


def make_unread(dataset: Any, iterators: int, reads: int) -> None:
    """Move a dataset's orders on as so many iterators have, of which some were read from."""
    for _ in range(iterators):
        iterate(dataset)
    for one in opened_late(dataset):
        for _ in range(reads):
            iterate(one)


def make_earlier(dataset: Any, iterators: int, reads: int) -> None:
    """Do the same; the first iterator fills a cache, where there is one."""
    if iterators > 0 and has_cache(dataset):
        for _ in iterate(dataset):
            pass
        iterators, reads = iterators - 1, reads - 1
    make_unread(dataset, iterators, reads)


def iterate(dataset: Any) -> Iterator[Any]:
    """Return a new iterator; see `is_ours`."""
    _opening.ours = True
    try:
        iterator: Iterator[Any] = iter(dataset)
    finally:
        _opening.ours = False
    return iterator


def is_ours() -> bool:
    """Tell whether the iterator that this thread opens is training's or validation's, or the runner's own."""
    return getattr(_opening, "ours", False)


def read_through(dataset: Any, history: Sequence[int | None]) -> None:
    """Read a dataset again: of each iterator so many elements; None: all."""
    for drawn in history:
        # One more: an iterator is given up when it is found to be at its end.
        for _ in itertools.islice(iterate(dataset), drawn and drawn + 1):
            pass
