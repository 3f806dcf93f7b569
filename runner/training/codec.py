"""Python values as JSON plus arrays, and back, without ever running code of the file.

A value becomes a node: None, bool, int, str and finite floats stand for themselves; everything else is a
JSON object `{"t": KIND, ...}`. Arrays are put aside under a key. Decoding merges a node into the value that
is there: lists, dicts, sets, arrays, generators and plain objects are changed **in place**, so that other
names for them keep seeing them. Objects are never constructed from a class that a file names: an object
node only refills an existing object of the same class.

What cannot be captured raises `Uncapturable`, naming where and why; aliases and cycles within one encoder are
kept. Not captured on purpose, and without a word: functions, classes, modules and the model's own parts,
which the script makes anew (`SKIP`).
"""

from __future__ import annotations

import base64
import collections
import enum
import functools
import math
import pathlib
import random
import struct
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Node = Any
#: Decoded in place of what is left as the script made it.
SKIP = object()
#: Of one named value no more nodes than this are captured.
NODES_MAX = 200_000
#: Lists of this many numbers of one kind are kept as an array.
_PACKED_MIN = 32
_CODE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    functools.partial,
    np.ufunc,
    property,
)
_FACTORIES: dict[str, Callable[[], Any]] = {
    "list": list,
    "dict": dict,
    "int": int,
    "float": float,
    "set": set,
}


class Uncapturable(Exception):  # noqa: N818 - a finding, not a failure
    """Something in a value cannot be captured; its text says what."""


class Encoder:
    """Turns values into nodes; arrays go into `arrays` under `prefix`."""

    def __init__(
        self, arrays: dict[str, np.ndarray], prefix: str, known: Callable[[Any], Node] | None = None
    ):
        """Make an encoder.

        Args:
            arrays: receives copies of the arrays.
            prefix: of their keys.
            known: asked first about every object that is not a plain value; returns a node, or None.
        """
        self._arrays = arrays
        self._prefix = prefix
        self._known = known
        self._memo: dict[int, dict[str, Any]] = {}
        self._alive: list[Any] = []
        self._aliases = 0
        self.nodes = 0

    def encode(self, value: Any) -> Node:
        """Return the node of `value`.

        Raises:
            Uncapturable: something in it cannot be captured.
        """
        self.nodes += 1
        if self.nodes > NODES_MAX:
            raise Uncapturable(f"more than {NODES_MAX} values")
        kind = type(value)
        if value is None or kind is bool or kind is int or kind is str:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"t": "float", "v": struct.pack(">d", value).hex()}
        if id(value) in self._memo:
            return self._alias(value)
        simple = _SIMPLE.get(kind)
        if simple is not None:
            return simple(value)
        container = _CONTAINERS.get(kind)
        if container is not None:
            node = self._remember(value, {"t": container})
            self._fill(node, value)
            return node
        return self._special(value)

    def mark(self) -> int:
        """Return where the memory of seen objects stands, for `forget`."""
        return len(self._alive)

    def forget(self, mark: int) -> None:
        """Forget the objects seen since `mark`: what they were part of could not be captured."""
        for value in self._alive[mark:]:
            self._memo.pop(id(value), None)
        del self._alive[mark:]

    def _remember(self, value: Any, node: dict[str, Any]) -> dict[str, Any]:
        self._memo[id(value)] = node
        self._alive.append(value)
        return node

    def _alias(self, value: Any) -> Node:
        node = self._memo[id(value)]
        if node.get("t") == "skip":
            return node
        if "i" not in node:
            node["i"] = self._aliases
            self._aliases += 1
        return {"t": "alias", "v": node["i"]}

    def _fill(self, node: dict[str, Any], value: Any) -> None:
        if type(value) is list and len(value) >= _PACKED_MIN and self._pack(node, value):
            return
        if isinstance(value, dict):
            node["v"] = [[self.encode(key), self.encode(item)] for key, item in value.items()]
        else:
            node["v"] = [self.encode(item) for item in value]
        if isinstance(value, collections.deque):
            node["maxlen"] = value.maxlen
        if isinstance(value, collections.defaultdict):
            factory = getattr(value.default_factory, "__name__", None)
            if (
                value.default_factory is not None
                and _FACTORIES.get(str(factory)) is not value.default_factory
            ):
                raise Uncapturable(f"a defaultdict of {value.default_factory!r}")
            node["factory"] = factory

    def _pack(self, node: dict[str, Any], value: list[Any]) -> bool:
        kind = type(value[0])
        if kind not in _PACKED or any(type(item) is not kind for item in value):
            return False
        try:
            packed: np.ndarray = np.array(value, _PACKED[kind])
        except OverflowError:
            return False
        node.update(t="packed", v=self.array(packed)["v"])
        return True

    def _special(self, value: Any) -> Node:
        if self._known is not None:
            node = self._known(value)
            if node is not None:
                return node
        if isinstance(value, np.ndarray):
            return self._remember(value, self.array(value))
        if isinstance(value, np.generic):
            return {"t": "scalar", "dtype": value.dtype.str, "v": value.tobytes().hex()}
        if isinstance(value, np.random.Generator):
            state = self.encode(value.bit_generator.state)
            return self._remember(value, {"t": "generator", "v": state})
        if isinstance(value, np.random.RandomState):
            return self._remember(
                value, {"t": "randomstate", "v": self.encode(value.get_state(legacy=False))}
            )
        if type(value) is random.Random:
            return self._remember(value, {"t": "random", "v": self.encode(value.getstate())})
        if isinstance(value, _CODE):
            return {"t": "skip"}
        if isinstance(value, enum.Enum):
            return {"t": "enum", "v": value.name, "class": _class_name(value)}
        return self._object(value)

    def array(self, value: np.ndarray) -> dict[str, Any]:
        """Put a copy of an array aside; return its node."""
        if value.dtype.kind not in "biufcV" or value.dtype.names or value.dtype.hasobject:
            raise Uncapturable(f"an array of dtype {value.dtype}")
        key = f"{self._prefix}/{len(self._arrays):05d}"
        # The order of the elements in memory is not part of the value: a C-ordered copy.
        self._arrays[key] = np.array(value, order="C")
        return {"t": "array", "v": key}

    def _object(self, value: Any) -> Node:
        members = getattr(value, "__dict__", None)
        if members is None or isinstance(value, BaseException) or not _is_plain_class(type(value)):
            raise Uncapturable(f"a {_class_name(value)}")
        node = self._remember(value, {"t": "object", "class": _class_name(value)})
        node["v"] = [[name, self.encode(member)] for name, member in members.items()]
        return node


def _is_plain_class(kind: type) -> bool:
    """Tell whether objects of the class are no more than their attributes: made in Python, all the way up."""
    if kind.__flags__ & (1 << 9) == 0:  # Py_TPFLAGS_HEAPTYPE
        return False
    return all(base.__flags__ & (1 << 9) or base is object for base in kind.__mro__)


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_SIMPLE: dict[type, Callable[[Any], Node]] = {
    bytes: lambda value: {"t": "bytes", "v": base64.b64encode(value).decode()},
    complex: lambda value: {"t": "complex", "v": struct.pack(">dd", value.real, value.imag).hex()},
    range: lambda value: {"t": "range", "v": [value.start, value.stop, value.step]},
    type(Ellipsis): lambda _: {"t": "skip"},
    pathlib.PosixPath: lambda value: {"t": "path", "v": str(value)},
}
_PACKED: dict[type, type] = {float: np.float64, int: np.int64}
_CONTAINERS: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    dict: "dict",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
    collections.OrderedDict: "ordered",
    collections.defaultdict: "defaultdict",
    collections.Counter: "counter",
    bytearray: "bytearray",
}


class Decoder:
    """Turns nodes back into values, merging into what is there."""

    def __init__(self, arrays: Mapping[str, np.ndarray], known: Callable[[Any, Node], Any] | None = None):
        """Make a decoder.

        Args:
            arrays: what the encoder put aside.
            known: given the present value and a node of a kind that is not known here.
        """
        self._arrays = arrays
        self._known = known
        self._aliases: dict[int, Any] = {}

    def merge(self, present: Any, node: Node) -> Any:
        """Return the value of `node`, made out of `present` in place wherever the kinds agree.

        Raises:
            ValueError: the node is malformed.
        """
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a bare list is no value")
            return node
        kind = node.get("t")
        merge = _MERGES.get(kind)
        if merge is None:
            if self._known is not None:
                return self._known(present, node)
            raise ValueError(f"unknown kind of value {kind!r}")
        return merge(self, present, node)

    def keep(self, node: Mapping[str, Any], value: Any) -> Any:
        """Note a value that aliases may point at."""
        if "i" in node:
            self._aliases[node["i"]] = value
        return value

    def _alias(self, _present: Any, node: Node) -> Any:
        return self._aliases[node["v"]]

    def _list(self, present: Any, node: Node) -> Any:
        target: Any
        if node["t"] == "deque":
            same = type(present) is collections.deque and present.maxlen == node["maxlen"]
            target = present if same else collections.deque(maxlen=node["maxlen"])
        else:
            wanted = bytearray if node["t"] == "bytearray" else list
            target = present if type(present) is wanted else wanted()
        before = list(target)
        self.keep(node, target)
        items = [self.merge(_at(before, i), item) for i, item in enumerate(node["v"])]
        target.clear()
        target.extend(before[i] if item is SKIP and i < len(before) else item for i, item in enumerate(items))
        return target

    def _packed(self, present: Any, node: Node) -> Any:
        target = present if type(present) is list else []
        target[:] = self._arrays[node["v"]].tolist()
        return self.keep(node, target)

    def _tuple(self, present: Any, node: Node) -> Any:
        before = present if type(present) is tuple else ()
        items = [self.merge(_at(before, i), item) for i, item in enumerate(node["v"])]
        return self.keep(
            node, tuple(_at(before, i) if item is SKIP else item for i, item in enumerate(items))
        )

    def _dict(self, present: Any, node: Node) -> Any:
        kind = _DICTS[node["t"]]
        target: Any = present if type(present) is kind else kind()
        if node["t"] == "defaultdict":
            target.default_factory = _FACTORIES.get(node["factory"])
        self.keep(node, target)
        before = dict(target)
        pairs = []
        for key_node, item in node["v"]:
            key = self.merge(None, key_node)
            value = self.merge(before.get(key), item)
            if value is not SKIP or key in before:
                pairs.append((key, before[key] if value is SKIP else value))
        target.clear()
        target.update(pairs)
        return target

    def _set(self, present: Any, node: Node) -> Any:
        target = present if type(present) is set else set()
        items = [self.merge(None, item) for item in node["v"]]
        target.clear()
        target.update(items)
        return self.keep(node, target)

    def _frozenset(self, _present: Any, node: Node) -> Any:
        return self.keep(node, frozenset(self.merge(None, item) for item in node["v"]))

    def _array(self, present: Any, node: Node) -> Any:
        value = self._arrays[node["v"]]
        if (
            type(present) is np.ndarray
            and present.shape == value.shape
            and present.dtype == value.dtype
            and present.flags.writeable
        ):
            present[...] = value
            return self.keep(node, present)
        return self.keep(node, value.copy())

    def _generator(self, present: Any, node: Node) -> Any:
        state = self.merge(None, node["v"])
        if not isinstance(present, np.random.Generator) or (
            present.bit_generator.state["bit_generator"] != state["bit_generator"]
        ):
            present = np.random.Generator(_BITS[state["bit_generator"]](0))
        present.bit_generator.state = state
        return self.keep(node, present)

    def _randomstate(self, present: Any, node: Node) -> Any:
        state = self.merge(None, node["v"])
        if not isinstance(present, np.random.RandomState):
            present = np.random.RandomState(_BITS[state["bit_generator"]](0))
        present.set_state(state)
        return self.keep(node, present)

    def _random(self, present: Any, node: Node) -> Any:
        if type(present) is not random.Random:
            present = random.Random(0)
        present.setstate(self.merge(None, node["v"]))
        return self.keep(node, present)

    def _object(self, present: Any, node: Node) -> Any:
        if present is None or present is SKIP or _class_name(present) != node["class"]:
            return SKIP
        self.keep(node, present)
        for name, item in node["v"]:
            value = self.merge(vars(present).get(name), item)
            if value is not SKIP:
                vars(present)[name] = value
        return present

    def _enum(self, present: Any, node: Node) -> Any:
        if isinstance(present, enum.Enum) and _class_name(present) == node["class"]:
            return type(present)[node["v"]]
        return SKIP


def _at(items: Any, index: int) -> Any:
    return items[index] if index < len(items) else None


def _scalar(node: Node) -> Any:
    return np.frombuffer(bytes.fromhex(node["v"]), np.dtype(node["dtype"]))[0]


_BITS: dict[str, Any] = {
    name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
}
_DICTS: dict[str, type] = {
    "dict": dict,
    "ordered": collections.OrderedDict,
    "defaultdict": collections.defaultdict,
    "counter": collections.Counter,
}
_Merge = Callable[[Decoder, Any, Node], Any]
_MERGES: dict[Any, _Merge] = {
    "skip": lambda _d, _p, _n: SKIP,
    "float": lambda _d, _p, node: struct.unpack(">d", bytes.fromhex(node["v"]))[0],
    "bytes": lambda _d, _p, node: base64.b64decode(node["v"]),
    "complex": lambda _d, _p, node: complex(*struct.unpack(">dd", bytes.fromhex(node["v"]))),
    "range": lambda _d, _p, node: range(*node["v"]),
    "path": lambda _d, _p, node: pathlib.PosixPath(node["v"]),
    "scalar": lambda _d, _p, node: _scalar(node),
    "alias": Decoder._alias,
    "list": Decoder._list,
    "packed": Decoder._packed,
    "deque": Decoder._list,
    "bytearray": Decoder._list,
    "tuple": Decoder._tuple,
    "set": Decoder._set,
    "frozenset": Decoder._frozenset,
    "array": Decoder._array,
    "generator": Decoder._generator,
    "randomstate": Decoder._randomstate,
    "random": Decoder._random,
    "object": Decoder._object,
    "enum": Decoder._enum,
}
for _name in _DICTS:
    _MERGES[_name] = Decoder._dict


def encode_members(
    encoder: Encoder, members: Iterable[tuple[str, Any]]
) -> tuple[dict[str, Node], dict[str, str]]:
    """Encode named values one by one; return the nodes, and why the others could not be captured."""
    nodes: dict[str, Node] = {}
    missed: dict[str, str] = {}
    for name, value in members:
        mark = encoder.mark()
        encoder.nodes = 0
        try:
            nodes[name] = encoder.encode(value)
        except (Uncapturable, RecursionError) as reason:
            encoder.forget(mark)
            missed[name] = str(reason)
    return nodes, missed
