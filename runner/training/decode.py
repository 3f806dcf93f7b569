"""Nodes of `codec` back into Python values, merged in place into what is there; no code of the file is run.

Objects are never constructed from a class that a file names: an object node only refills an existing object
of the same class.
"""

from __future__ import annotations

import base64
import collections
import enum
import pathlib
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runner.training.codec import FACTORIES, SKIP, Node, class_name


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
            target.default_factory = FACTORIES.get(node["factory"])
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
        if present is None or present is SKIP or class_name(present) != node["class"]:
            return SKIP
        self.keep(node, present)
        for name, item in node["v"]:
            value = self.merge(vars(present).get(name), item)
            if value is not SKIP:
                vars(present)[name] = value
        return present

    def _enum(self, present: Any, node: Node) -> Any:
        if isinstance(present, enum.Enum) and class_name(present) == node["class"]:
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
