"""Python values as JSON plus arrays, and back (`decode`), without ever running code of the file.

A value becomes a node: None, bool, int, str and finite floats stand for themselves; everything else is a
JSON object `{"t": KIND, ...}`. Arrays are put aside under a key. Decoding merges a node into the value that
is there: lists, dicts, sets, arrays, generators and plain objects are changed **in place**, so that other
names for them keep seeing them. Where there is none, plain objects are made of the script's own classes, as
long as these are found by their names (`made_again`): by `object.__new__` alone, nothing of theirs runs.

What cannot be captured raises `Uncapturable`, naming where and why; aliases and cycles within one encoder are
kept. Not captured on purpose, and without a word: functions, classes, modules and the model's own parts,
which the script makes anew (`SKIP`).

Limits: an object of an installed package's class, or of a class that is made in a function, only comes back
where the script makes one in the same place.
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
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from runner.training import reach

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
FACTORIES: dict[str, Callable[[], Any]] = {
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
        self._flaws: dict[type, str] = {}
        self.nodes = 0
        #: Of what has been encoded: comes back only where the script makes one by itself.
        self.doubts: list[str] = []

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
            node["v"] = [[self._key(key), self.encode(item)] for key, item in value.items()]
        else:
            encode = self._key if isinstance(value, set | frozenset) else self.encode
            node["v"] = [encode(item) for item in value]
        if isinstance(value, collections.deque):
            node["maxlen"] = value.maxlen
        if isinstance(value, collections.defaultdict):
            factory = getattr(value.default_factory, "__name__", None)
            if value.default_factory is not None and FACTORIES.get(str(factory)) is not value.default_factory:
                raise Uncapturable(f"a defaultdict of {value.default_factory!r}")
            node["factory"] = factory

    def _key(self, value: Any) -> Node:
        """Return the node of a dict's key or a set's element: it must be found again by its value."""
        node = self.encode(value)
        kind = node.get("t") if isinstance(node, dict) else None
        by_identity: Any = object.__hash__
        if kind == "skip" or (kind == "object" and type(value).__hash__ is by_identity):
            raise Uncapturable(f"a {class_name(value)} as a key or in a set")
        return node

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
                self.doubts += [node.pop("doubt")] if "doubt" in node else []
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
            return self._enum(value)
        return self._object(value)

    def _enum(self, value: enum.Enum) -> Node:
        if value.name not in type(value).__members__:
            raise Uncapturable(f"a {class_name(value)} of several flags")
        self._look_at_class(type(value))
        return {"t": "enum", "v": value.name, "class": class_name(value)}

    def array(self, value: np.ndarray) -> dict[str, Any]:
        """Put a copy of an array aside; return its node."""
        if value.dtype.kind not in "biufcV" or value.dtype.names or value.dtype.hasobject:
            raise Uncapturable(f"an array of dtype {value.dtype}")
        key = f"{self._prefix}/{len(self._arrays):05d}"
        # The order of the elements in memory is not part of the value: a C-ordered copy.
        self._arrays[key] = np.array(value, order="C")
        return {"t": "array", "v": key}

    def _object(self, value: Any) -> Node:
        kind = type(value)
        if isinstance(value, BaseException) or not _is_plain_class(kind) or not _is_transparent(value):
            raise Uncapturable(f"a {class_name(value)}")
        self._look_at_class(kind)
        node = self._remember(value, {"t": "object", "class": class_name(value)})
        node["v"] = [[name, self.encode(member)] for name, member in members_of(value)]
        return node

    def _look_at_class(self, kind: type) -> None:
        """Notice a class of the script's that is not found again."""
        if kind not in self._flaws:
            self._flaws[kind] = _flaw_of(kind)
        if self._flaws[kind]:
            self.doubts.append(self._flaws[kind])


def _flaw_of(kind: type) -> str:
    """Say why a class of the script's is not found again; "" where it is, or is another's."""
    if not _is_scripts(kind) or made_again(full_name(kind)) is kind:
        return ""
    why = "is made in a function" if "<locals>" in kind.__qualname__ else "cannot be made again by its name"
    return f"a {full_name(kind)}, whose class {why}"


def members_of(value: Any) -> list[tuple[str, Any]]:
    """Return an object's own attributes and the slots that are filled, by name."""
    found = list(getattr(value, "__dict__", {}).items())
    kind: Any = type(value)
    for name, slot in slots_of(kind).items():
        try:
            found.append((name, slot.__get__(value)))
        except AttributeError:
            continue
    return found


@functools.lru_cache(maxsize=1024)
def slots_of(kind: type) -> dict[str, Any]:
    """Return the descriptors of a class's slots by their names."""
    return {
        name: one
        for base in reversed(kind.__mro__)
        for name, one in vars(base).items()
        if isinstance(one, types.MemberDescriptorType)
    }


def made_again(name: str) -> type | None:
    """Return the script's class of that full name whose objects or members may be made; nothing is imported.

    None where there is no such class, or where making an object would run code of it, or dropping it.
    """
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:count]))
        for part in parts[count:]:
            found = vars(found).get(part) if isinstance(found, types.ModuleType | type) else None
        if isinstance(found, type) and full_name(found) == name:
            return found if _is_scripts(found) and _may_be_made(found) else None
    return None


def _may_be_made(kind: type) -> bool:
    if issubclass(kind, enum.Enum):
        return True
    return _is_plain_class(kind) and kind.__new__ is object.__new__ and not hasattr(kind, "__del__")


def _is_scripts(kind: type) -> bool:
    """Tell whether a class is of the script or a module beside it."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return isinstance(file, str) and not reach.is_installed(file)


def _is_transparent(value: Any) -> bool:
    """Tell whether all attributes can be seen: they are in a dict, or in slots."""
    if hasattr(value, "__dict__"):
        return True
    return all("__slots__" in vars(base) for base in type(value).__mro__ if base is not object)


def _is_plain_class(kind: type) -> bool:
    """Tell whether objects of the class are no more than their attributes: made in Python, all the way up."""
    if kind.__flags__ & (1 << 9) == 0:  # Py_TPFLAGS_HEAPTYPE
        return False
    return all(base.__flags__ & (1 << 9) or base is object for base in kind.__mro__)


def class_name(value: Any) -> str:
    """Return the full name of the value's class."""
    return full_name(type(value))


def full_name(kind: type) -> str:
    """Return the class's name with that of its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


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


def encode_members(
    encoder: Encoder, members: Iterable[tuple[str, Any]], doubtful: dict[str, str] | None = None
) -> tuple[dict[str, Node], dict[str, str]]:
    """Encode named values one by one; return the nodes, and why the others could not be captured.

    Args:
        encoder: takes the arrays.
        members: the values by name.
        doubtful: receives what in those that were captured may not come back.
    """
    nodes: dict[str, Node] = {}
    missed: dict[str, str] = {}
    for name, value in members:
        mark = encoder.mark()
        encoder.nodes = 0
        encoder.doubts.clear()
        try:
            nodes[name] = encoder.encode(value)
        except (Uncapturable, RuntimeError) as reason:  # too deep, or it changes meanwhile
            encoder.forget(mark)
            missed[name] = str(reason)
        else:
            if encoder.doubts and doubtful is not None:
                doubtful[name] = encoder.doubts[0]
    return nodes, missed
