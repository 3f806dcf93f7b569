"""What makes a fit's data, as far as its state can be seen: a generator, code in a dataset, a PyDataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from runner.training import reach
from runner.training.pycode import Code

#: Stands before the names of a PyDataset's attributes.
SELF = "self."
#: What Keras keeps in a PyDataset for itself.
_KERAS_OWN = {"_workers", "_use_multiprocessing", "_max_queue_size"}


class Source(Protocol):
    """What makes the data, as far as its state can be looked at."""

    def members(self) -> list[tuple[str, Any]]:
        """Return the parts of its state by name."""

    def put(self, parts: Mapping[str, Any]) -> list[str]:
        """Put parts back; return the names of those that have no place."""

    def is_state(self, name: str) -> bool:
        """Tell whether a part that cannot be captured is likely to change."""


class Opaque:
    """A generator: nothing can be looked at."""

    def members(self) -> list[tuple[str, Any]]:
        """Return the parts of its state by name."""
        return []

    def put(self, parts: Mapping[str, Any]) -> list[str]:
        """Put parts back; return the names of those that have no place."""
        return list(parts)

    def is_state(self, name: str) -> bool:  # noqa: ARG002 - there are none
        """Tell whether a part that cannot be captured is likely to change."""
        return True


class Reached:
    """What the Python code in a dataset reaches."""

    def __init__(self, code: Code):
        self._code = code

    def _places(self) -> dict[str, Any]:
        return reach.by_name(self._code.places())

    def members(self) -> list[tuple[str, Any]]:
        """Return the parts of its state by name."""
        values = [(name, place.value) for name, place in self._places().items()]
        return [(name, value) for name, value in values if value is not reach.ABSENT]

    def put(self, parts: Mapping[str, Any]) -> list[str]:
        """Put parts back; return the names of those that have no place."""
        left = dict(parts)
        while found := {name: place for name, place in self._places().items() if name in left}:
            for name, place in found.items():  # what is put there may let the code reach more
                place.put(left.pop(name))
        return list(left)

    def is_state(self, name: str) -> bool:  # noqa: ARG002 - whatever a dataset's code reaches may be
        """Tell whether a part that cannot be captured is likely to change."""
        return True


class Object(Reached):
    """A PyDataset: its attributes, and what its code reaches."""

    def __init__(self, owner: Any):
        self._owner = owner

    def _places(self) -> dict[str, Any]:
        classes = [type(self._owner), *map(reach.class_of, vars(self._owner).values())]
        return reach.by_name(reach.reached(reach.functions_of([self._owner]), classes, big=True))

    def members(self) -> list[tuple[str, Any]]:
        """Return the parts of its state by name."""
        own = [(name, value) for name, value in vars(self._owner).items() if name not in _KERAS_OWN]
        return [*((f"{SELF}{name}", value) for name, value in own), *super().members()]

    def put(self, parts: Mapping[str, Any]) -> list[str]:
        """Put parts back; return the names of those that have no place."""
        own = {name.removeprefix(SELF): one for name, one in parts.items() if name.startswith(SELF)}
        vars(self._owner).update(own)
        return super().put({name: one for name, one in parts.items() if not name.startswith(SELF)})

    def is_state(self, name: str) -> bool:
        """Tell whether a part that cannot be captured is likely to change."""
        return name.startswith(SELF) or reach.is_state(self._places()[name])
