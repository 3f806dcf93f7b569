"""Nodes of `codec` back into Python values, merged in place into what is there; no code of the file is run.

An object node refills the object of the same class that is there. Where there is none, one is made of the
class if that is the script's own and found again (`codec.made_again`): by `object.__new__`, its attributes
put in place one by one. None of its methods runs, but those by which it is hashed and compared as a key.

What can be neither is left out of what holds it, and named in `lost`.
"""

from __future__ import annotations

import base64
import collections
import enum
import functools
import pathlib
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runner.training.codec import FACTORIES, SKIP, Node, class_name, made_again, slots_of


class Decoder:
    """Turns nodes back into values, merging into what is there."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        known: Callable[[Any, Node], Any] | None = None,
        lost: list[str] | None = None,
    ):
        """Make a decoder.

        Args:
            arrays: what the encoder put aside.
            known: given the present value and a node of a kind that is not known here.
            lost: takes what cannot be put back.
        """
        self._arrays = arrays
        self._known = known
        self._aliases: dict[int, Any] = {}
        self._taken: dict[int, Any] = {}
        self._find = functools.cache(made_again)
        #: What could not be put back, since the caller looked last.
        self.lost: list[str] = [] if lost is None else lost

    def merge(self, present: Any, node: Node) -> Any:
        """Return the value of `node`, made out of `present` in place wherever the kinds agree.

        Raises:
            ValueError: the node is malformed.
        """
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a bare list is no value")
            return node
        if id(present) in self._taken:
            present = None  # it is what another node has become
        kind = node.get("t")
        merge = _MERGES.get(kind)
        if merge is None:
            if self._known is not None:
                return self._known(present, node)
            raise ValueError(f"unknown kind of value {kind!r}")
        return merge(self, present, node)

    def keep(self, node: Mapping[str, Any], value: Any) -> Any:
        """Note a value that aliases may point at."""
        self._taken[id(value)] = value
        if "i" in node:
            self._aliases[node["i"]] = value
        return value

    def _lose(self, what: str) -> Any:
        self.lost.append(what)
        return SKIP

    def _alias(self, _present: Any, node: Node) -> Any:
        return self._aliases[node["v"]] if node["v"] in self._aliases else self._lose("what is held twice")

    def _kept(self, before: Any, items: list[Any]) -> list[Any]:
        """Return the items; one that was skipped as it was before, or left out."""
        kept = [_at(before, i, SKIP) if item is SKIP else item for i, item in enumerate(items)]
        found = [item for item in kept if item is not SKIP]
        if len(found) < len(kept):
            self._lose(f"{len(kept) - len(found)} of {len(kept)} elements")
        return found

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
        kept = self._kept(before, items)
        target.clear()
        target.extend(kept)
        return target

    def _packed(self, present: Any, node: Node) -> Any:
        target = present if type(present) is list else []
        target[:] = self._arrays[node["v"]].tolist()
        return self.keep(node, target)

    def _tuple(self, present: Any, node: Node) -> Any:
        before = present if type(present) is tuple else ()
        items = [self.merge(_at(before, i), item) for i, item in enumerate(node["v"])]
        kept = self._kept(before, items)
        return self.keep(node, tuple(kept)) if len(kept) == len(items) else SKIP

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
            value = SKIP if key is SKIP else self.merge(before.get(key), item)
            if value is SKIP and key in before:
                value = before[key]
            if value is SKIP:
                self._lose("an entry" if key is SKIP else f"the entry {key!r}")
            else:
                pairs.append((key, value))
        target.clear()
        target.update(pairs)
        return target

    def _set(self, present: Any, node: Node) -> Any:
        target = present if type(present) is set else set()
        items = self._kept((), [self.merge(None, item) for item in node["v"]])
        target.clear()
        target.update(items)
        return self.keep(node, target)

    def _frozenset(self, _present: Any, node: Node) -> Any:
        return self.keep(node, frozenset(self._kept((), [self.merge(None, item) for item in node["v"]])))

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
            return self._make(node)
        self.keep(node, present)
        for name, item in node["v"]:
            value = self.merge(_attribute(present, name), item)
            if value is not SKIP:
                set_attribute(present, name, value)
        return present

    def _make(self, node: Node) -> Any:
        """Return a new object; it must be whole."""
        kind = self._find(node["class"])
        if kind is None or issubclass(kind, enum.Enum):
            return self._lose(f"a {node['class']}")
        made = self.keep(node, object.__new__(kind))
        for name, item in node["v"]:
            value = self.merge(None, item)
            if value is SKIP:
                self._aliases.pop(node.get("i", -1), None)
                return self._lose(f"a {node['class']}, for its {name}")
            set_attribute(made, name, value)
        return made

    def _enum(self, present: Any, node: Node) -> Any:
        same = isinstance(present, enum.Enum) and class_name(present) == node["class"]
        kind: Any = type(present) if same else self._find(node["class"])
        members: Any = kind.__members__ if isinstance(kind, enum.EnumMeta) else {}
        return members[node["v"]] if node["v"] in members else self._lose(f"a {node['class']}")


def _attribute(owner: Any, name: str) -> Any:
    """Return what an object has of its own under a name; None where it has nothing."""
    kind: Any = type(owner)
    slot = slots_of(kind).get(name)
    if slot is None:
        return vars(owner).get(name) if hasattr(owner, "__dict__") else None
    try:
        return slot.__get__(owner)
    except AttributeError:
        return None


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Put a value into an object's slot or dict; no code of its class runs."""
    kind: Any = type(owner)
    slot = slots_of(kind).get(name)
    if slot is not None:
        slot.__set__(owner, value)
    elif hasattr(owner, "__dict__"):
        vars(owner)[name] = value


def _at(items: Any, index: int, default: Any = None) -> Any:
    return items[index] if index < len(items) else default


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
