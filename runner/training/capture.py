"""A fit's whole state as a snapshot, and back.

A snapshot is taken between two steps: the callbacks of the one are done, the batch of the next is not yet
drawn. Its arrays are copies that nobody changes while a writer reads them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from runner.storage.checkpoint import Snapshot
from runner.storage.manifest import Constant, ConstantList
from runner.training import chance, listeners, variables
from runner.training.chance import Use
from runner.training.codec import SKIP, Encoder, Node, class_name
from runner.training.decode import Decoder
from runner.training.entropy import Entropy
from runner.training.held import Values, array_of
from runner.training.holders import Holder
from runner.training.listeners import Listener
from runner.training.variables import ChangedScriptError, Lend, Reader

VERSION = 1
_TRACE = "trace"
#: Of Keras and TensorFlow: random generators, whose state is one variable.
_GENERATORS = {"SeedGenerator", "Generator"}
#: Of TensorFlow: what has a state that cannot be read, or not put back.
_HIDING = {"IteratorBase", "NumpyIterator", "MutableHashTable", "DenseHashTable", "QueueBase"}
#: The state of the random generators, and its arrays.
Trace = tuple[Node, dict[str, np.ndarray]]


class Camera:
    """Takes snapshots of one model and its training."""

    def __init__(
        self,
        model: Any,
        entropy: Entropy,
        collect: Callable[[], list[Any]] | None = None,
        lend: Lend | None = None,
    ):
        """Point it at a model.

        Args:
            model: laid out in the file for Keras's `load_weights`; None where there is no single one.
            entropy: the job's.
            collect: lists all that is trained; by default what `fit` trains.
            lend: gives memory for the variables' values.
        """
        self._lend = lend
        self.model = model
        self._collect = collect or (lambda: variables.all_variables(model))
        self.missed: list[str] = []
        self._entropy = entropy
        self._given_up: set[str] = set()
        self._film: _Film | None = None

    def take(
        self,
        *,
        step: int,
        epoch: int,
        callbacks: Sequence[Any],
        owners: Sequence[Holder] = (),
        logs: Any,
        state: Mapping[str, Any],
        values: Values = Values.COPIED,
    ) -> Snapshot:
        """Return a snapshot of the present moment.

        Args:
            step: completed steps, over all fits.
            epoch: Keras's index of the present epoch.
            callbacks: all of the fit's, in order.
            owners: of the script's own code in the step.
            logs: what the last step returned.
            state: what else belongs to it: JSON.
            values: those of the variables; where they are held, it is whole only after `develop`.
        """
        film = (self._film if values is Values.HELD else None) or self._loaded()
        arrays = dict(zip(film.names, self._values(film.reader, values), strict=True))
        encoder = Encoder(arrays, "state", _KerasKinds(film.keys, arrays).node)
        listening, self.missed = listeners.capture(
            encoder, [*map(Listener, callbacks), *owners], self._given_up
        )
        links, attributes = self._keras_layout(film, arrays)
        return Snapshot(
            step=step,
            epoch=epoch,
            state={
                **state,
                "version": VERSION,
                "variables": film.described,
                "chance": chance.capture(encoder, self._entropy),
                "listeners": listening,
                "logs": _encode_logs(encoder, logs),
                "stop_training": bool(getattr(self.model, "stop_training", False)),
            },
            arrays=arrays,
            links=links,
            attributes=attributes,
        )

    def _values(self, reader: Reader, values: Values) -> list[Any]:
        if values is Values.HELD:
            return reader.hold()
        return reader.view() if values is Values.VIEWED else reader.read(self._lend)

    def develop(self, snapshot: Snapshot) -> bool:
        """Complete a snapshot whose values are held, in any thread; False where it is of no use.

        Whether the variables are still the same ones is looked at here, not while training waits.
        """
        film = self._film
        if film is None or snapshot.state["variables"] is not film.described:
            return False  # others were found meanwhile
        if not film.fits(self._collect()):
            self._film = None
            return False
        for name in film.names:
            snapshot.arrays[name] = array_of(snapshot.arrays[name])
        return True

    def known_size(self) -> int | None:
        """Return how many bytes the variables had when they were looked at last; None before that."""
        film = self._film  # another thread may drop it
        return film.reader.size if film is not None else None

    def size(self) -> int:
        """Return how many bytes the variables have."""
        return self._loaded().reader.size

    def prepare(self) -> None:
        """Have memory of its own ready for the first snapshot."""
        self._loaded().reader.buffers.prepare()

    def portrait(self, *, step: int, epoch: int, lend: Lend) -> Snapshot:
        """Return a snapshot of the model and its optimizer alone, as a kept model needs it.

        Args:
            step: completed steps, over all fits.
            epoch: Keras's index of the present epoch.
            lend: gives memory for the variables' values, as the camera's own does.
        """
        film = self._loaded()
        arrays = dict(zip(film.names, film.reader.read(lend), strict=True))
        links, attributes = self._keras_layout(film, arrays)
        state = {"version": VERSION, "kind": "model", "variables": film.described}
        return Snapshot(
            step=step, epoch=epoch, state=state, arrays=arrays, links=links, attributes=attributes
        )

    def _loaded(self) -> _Film:
        """Return the film for the variables that there are now."""
        tracked, film = self._collect(), self._film
        if film is None or not film.fits(tracked):
            film = self._film = _Film(tracked)
        return film

    def _keras_layout(self, film: _Film, arrays: dict[str, np.ndarray]) -> Any:
        """Return links and attributes; walked once as long as the variables stay the same ones."""
        if film.layout is not None:
            return film.layout
        if self.model is None:
            return {}, {}
        extra = 0

        def add(place: str, value: np.ndarray) -> str:
            nonlocal extra
            extra += 1
            key = f"keras/{place}"
            arrays[key] = np.array(value, order="C")
            return key

        links, attributes = variables.keras_links(self.model, film.keys, add)
        film.layout = (Constant(links), Constant(attributes)) if not extra else None
        return links, attributes


class _Film:
    """What stays the same from one snapshot to the next, as long as the variables are the same ones."""

    def __init__(self, tracked: Sequence[Any]):
        self._tracked = list(tracked)
        self.reader = Reader(tracked)
        self.described = ConstantList(variables.describe(tracked))
        self.names = [f"variables/{index:05d}" for index in range(len(tracked))]
        #: id of a variable, and of the TensorFlow variable beneath, -> key of its array
        self.keys = {
            id(one): name
            for variable, name in zip(tracked, self.names, strict=True)
            for one in (variable, variables.tensor_of(variable))
        }
        self.layout: tuple[dict[str, str], dict[str, dict[str, str]]] | None = None

    def fits(self, tracked: Sequence[Any]) -> bool:
        """Tell whether these are the same variables."""
        mine = self._tracked
        return len(mine) == len(tracked) and all(a is b for a, b in zip(mine, tracked, strict=True))


def capture_chance(entropy: Entropy, name: str = "now") -> Trace:
    """Return the state of the shared random generators alone; its arrays are named after `name`."""
    arrays: dict[str, np.ndarray] = {}
    return chance.capture(Encoder(arrays, f"{_TRACE}/{name}"), entropy), arrays


@contextlib.contextmanager
def chance_of(trace: Trace, entropy: Entropy) -> Iterator[None]:
    """Let the block find the generators as they were at `trace`, and leave them as they are now."""
    now, arrays = capture_chance(entropy)
    chance.restore_host(Decoder(trace[1]), trace[0], entropy)
    try:
        yield
    finally:
        chance.restore_host(Decoder(arrays), now, entropy)


def traces_of(snapshot: Snapshot) -> dict[str, Trace]:
    """Return the states of chance before each function was first traced, as a snapshot has them."""
    return {
        name: (
            node,
            {key: array for key, array in snapshot.arrays.items() if key.startswith(f"{_TRACE}/{name}/")},
        )
        for name, node in snapshot.state["traces"].items()
    }


def restore_variables(snapshot: Snapshot, tracked: Sequence[Any]) -> None:
    """Give variables the values of the snapshot.

    Raises:
        ChangedScriptError: they are not those of the snapshot.
    """
    saved = snapshot.state["variables"]
    variables.check_same(saved, tracked)
    variables.assign(tracked, [snapshot.arrays[f"variables/{i:05d}"] for i in range(len(saved))])


def restore_chance(snapshot: Snapshot, entropy: Entropy, *, host: bool = True) -> None:
    """Put the shared random generators back; those that are no variables only if `host`."""
    chance.restore(Decoder(snapshot.arrays), snapshot.state["chance"], entropy, host=host)


def chance_differs(snapshot: Snapshot, entropy: Entropy, which: Use) -> bool:
    """Tell whether one of these that are no variables is not as the snapshot has it."""
    return chance.differs(Decoder(snapshot.arrays), snapshot.state["chance"], entropy, which)


def restore_unused(snapshot: Snapshot, entropy: Entropy, used: Use) -> None:
    """Put back those that are no variables and have not been used."""
    chance.restore_unused(Decoder(snapshot.arrays), snapshot.state["chance"], entropy, used)


def restore(
    model: Any,
    snapshot: Snapshot,
    callbacks: Sequence[Any],
    owners: Sequence[Holder] = (),
    tracked: Sequence[Any] | None = None,
    leave: Set[str] = frozenset(),
) -> list[str]:
    """Put variables and callbacks back; return what could not be. Chance is `restore_chance`'s.

    Args:
        model: that is trained.
        snapshot: of it.
        callbacks: all of the fit's, in order.
        owners: of the script's own code in the step.
        tracked: the variables, by default all that `fit` trains.
        leave: names of what callbacks have that is left as it is (`listeners.values`).

    Raises:
        ChangedScriptError: the script's model or callbacks are not those of the snapshot.
    """
    restore_variables(snapshot, variables.all_variables(model) if tracked is None else tracked)
    unmade: list[str] = []
    known = functools.partial(_restore_keras_kind, snapshot.arrays, unmade)
    decoder = Decoder(snapshot.arrays, known, unmade)
    try:
        holders = [*map(Listener, callbacks), *owners]
        return listeners.restore(decoder, holders, snapshot.state["listeners"], leave)
    except ValueError as reason:
        raise ChangedScriptError(str(reason)) from None


class _KerasKinds:
    """How the encoder sees what belongs to Keras or TensorFlow."""

    def __init__(self, known: Mapping[int, str], arrays: dict[str, np.ndarray]):
        self._known = known
        self._arrays = arrays

    def node(self, value: Any) -> Node:
        """Return the node of a Keras or TensorFlow object; None for any other."""
        module = type(value).__module__ or ""
        if isinstance(value, np.ndarray | np.generic):
            return None
        for name, function in _comparisons().items():
            if value is function:
                return {"t": "comparison", "v": name}
        if hasattr(value, "numpy") and hasattr(value, "shape") and hasattr(value, "dtype"):
            return self._tensor(value)
        held = _held(value)
        if held is not None:
            return self._holder(value, held)
        if module.startswith(("keras.", "tensorflow.")):
            if not _HIDING.isdisjoint(kind.__name__ for kind in type(value).__mro__):
                return {"t": "skip", "doubt": f"a {class_name(value)}"}
            return {"t": "skip"}
        return None

    def _tensor(self, value: Any) -> Node:
        if id(value) in self._known:
            return {"t": "skip"}
        array = np.asarray(value.numpy())
        if array.dtype.hasobject:
            return {"t": "skip"}
        key = f"objects/{len(self._arrays):05d}"
        self._arrays[key] = np.array(array, order="C")
        return {"t": "variable" if hasattr(value, "assign") else "tensor", "v": key}

    def _holder(self, value: Any, held: list[Any]) -> Node:
        """Return the node of a layer, metric, generator or the like: its variables but the model's."""
        nodes = [self._tensor(variable) for variable in held]
        if all(node["t"] == "skip" for node in nodes):
            return {"t": "skip"}
        return {"t": "holder", "v": nodes, "class": class_name(value)}


def _held(value: Any) -> list[Any] | None:
    """Return the variables of what is no more than they are; None where it is of no such kind."""
    if any(one.__name__ in _GENERATORS and _is_theirs(one) for one in type(value).__mro__):
        return [value.state]
    held = getattr(value, "variables", None)
    return list(held) if isinstance(held, list | tuple) and hasattr(value, "get_config") else None


def _is_theirs(kind: type) -> bool:
    return (kind.__module__ or "").startswith(("keras.", "tensorflow."))


@functools.cache
def _comparisons() -> dict[str, Any]:
    """Return what Keras's callbacks keep as `monitor_op`: the only functions that are restored."""
    from keras import ops

    return {"less": ops.less, "greater": ops.greater, "np.less": np.less, "np.greater": np.greater}


def _restore_keras_kind(arrays: Mapping[str, np.ndarray], lost: list[str], present: Any, node: Node) -> Any:
    from keras import ops

    kind = node.get("t")
    if kind == "comparison":
        return _comparisons()[node["v"]]
    if kind == "tensor":
        return ops.convert_to_tensor(arrays[node["v"]])
    if kind == "variable" and hasattr(present, "assign"):
        present.assign(arrays[node["v"]])
        return present
    if kind == "holder":
        held = _held(present) or []
        for variable, one in zip(held, node["v"], strict=False):
            if one["t"] == "variable":
                variable.assign(arrays[one["v"]])
        if len(held) >= len(node["v"]):
            return SKIP
    lost.append(f"a {node.get('class', kind)} that the script has not made yet")
    return SKIP


def _encode_logs(encoder: Encoder, logs: Any) -> Node:
    """Keep the last step's logs: they are the epoch's, where a custom step reports what no metric tracks."""
    if not isinstance(logs, Mapping):
        return None
    return [[name, encoder.array(np.asarray(value))] for name, value in logs.items()]


def decode_logs(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the last step's logs as tensors."""
    from keras import ops

    node = snapshot.state["logs"]
    if node is None:
        return None
    return {name: ops.convert_to_tensor(snapshot.arrays[one["v"]]) for name, one in node}
