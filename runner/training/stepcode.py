"""Python code of the script's own in a training step: what it can change goes with the callbacks' state.

A step that runs eagerly is Python, and so is what `tf.py_function` and `tf.numpy_function` run within a
compiled one. Captured are the closure cells and globals that such code reaches, all attributes of plain
objects whose methods it is, and of the script's own models, layers, metrics and losses, which run eagerly,
the random generators and the public attributes that are plain values, lists and dicts of them too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from runner.training import pycode, reach

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, type(None))
#: Put back by others.
_NEVER = {"stop_training"}


class Owner:
    """An object whose code runs in a step."""

    def __init__(self, value: Any):
        self.value = value
        self.name = type(value).__name__
        self._whole = not any(reach.is_of_keras(kind) for kind in type(value).__mro__)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield what of it is captured."""
        for name, value in list(getattr(self.value, "__dict__", {}).items()):
            public = not name.startswith("_") and name not in _NEVER
            if self._whole or isinstance(value, _GENERATORS):
                yield name, value
            elif public and _is_plain(value):
                yield name, _untracked(value)

    def functions(self) -> list[Any]:
        """Return the functions that it is made with, and those among its attributes."""
        return list(reach.functions_of([self.value]))

    def put(self, name: str, value: Any) -> None:
        """Give an attribute another value; Keras's stand-ins for lists and dicts are changed in place."""
        present = getattr(self.value, name, None)
        if type(present) in {list, dict, set} or not isinstance(present, list | dict | set):
            setattr(self.value, name, value)
            return
        present.clear()
        present.extend(value) if isinstance(present, list) else present.update(value)


class Functions(Owner):
    """Functions that belong to no object."""

    def __init__(self, functions: list[Any]):
        super().__init__(functions)

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield nothing: what they reach is captured."""
        yield from ()

    def functions(self) -> list[Any]:
        """Return them."""
        return list(self.value)


def owners(model: Any, operations: Iterable[Any]) -> list[Owner]:
    """Return the objects whose Python code runs in the step that a model is trained by.

    Args:
        model: that is trained.
        operations: of the step, where it is compiled.
    """
    found: list[Any] = []
    functions: list[Any] = []
    if getattr(model, "run_eagerly", False):
        loss = getattr(model, "loss", None)
        parts = [model, *model._flatten_layers(), *getattr(model, "metrics", ()), loss]
        found += [part for part in parts if part is not None and _has_own_code(part)]
        functions += reach.functions_in(loss)
    code = pycode.code_in(operations)
    found += code.owners()
    functions += code.functions()
    once = {id(one): Owner(one) for one in found if not reach.is_settled(one)}
    return [*once.values(), *([Functions(functions)] if functions else [])]


def _has_own_code(value: Any) -> bool:
    return any(reach.is_of_script(kind) for kind in type(value).__mro__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | set | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(one) for key, one in value.items())
    return isinstance(value, _PLAIN)


def _untracked(value: Any) -> Any:
    """Return a list, dict or set as Python's own kind; Keras has its own, for those that hold variables."""
    for kind in (list, dict, set):
        if isinstance(value, kind):
            return kind(value)
    return value
