"""What holds state that goes into a snapshot and comes back in place: callbacks, owners of code in a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from runner.training import reach
from runner.training.codec import Node


class Holder:
    """An object of the script's or of Keras's."""

    #: Whether it is known only once the step has been traced.
    of_step = False

    def __init__(self, value: Any):
        self.value = value
        self.name = type(value).__name__

    def members(self) -> Iterable[tuple[str, Any]]:
        """Return the attributes that are captured, by name."""
        return list(vars(self.value).items())

    def functions(self) -> Iterator[Any]:
        """Yield the functions that it is made with, and those among its attributes."""
        yield from reach.functions_of([self.value])

    def classes(self) -> list[type]:
        """Return its class, and those of the objects that it has."""
        return [reach.class_of(self.value), *(reach.class_of(value) for _, value in self.members())]

    def place(self) -> Node:
        """Return how far its files are; None where it has none."""
        return None

    def put(self, name: str, value: Any) -> None:
        """Give an attribute another value; what runs, no file may replace."""
        if not name.startswith("__") and not callable(getattr(type(self.value), name, None)):
            self._put(name, value)

    def _put(self, name: str, value: Any) -> None:
        setattr(self.value, name, value)
