"""The script's Python code that runs inside a `tf.data` dataset or a step: found, and its state looked at.

`from_generator`, `py_function` and `numpy_function` leave operations in the dataset's graphs that name Python
functions in a registry of TensorFlow's. From there the script's own functions are found, and what they reach
(`reach`): closure cells, globals, the objects that methods are bound to.

Limits: state inside installed packages is not seen.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from runner.training import reach
from runner.training.datasets import PYTHON_OPS, operations, walk


class Held:
    """An object that a method is bound to, or a function's fixed argument: changed in place only."""

    def __init__(self, name: str, value: Any):
        self.name = name
        self.value = value

    def put(self, value: Any) -> None:
        """Do nothing: what is put back has been merged into the object."""


class Code:
    """The script's Python code in one dataset, or in another graph."""

    def __init__(self, found: Iterable[tuple[Any, bool]]):
        """Look at it.

        Args:
            found: what TensorFlow has registered for each operation, and whether several of it run at once.
        """
        self.parallel = False
        self._callables: list[Any] = []
        self.foreign = ""  #: a callable whose state cannot be looked at, if there is one
        for registered, parallel in found:
            self.parallel = self.parallel or parallel
            self._add(registered)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._callables or self.foreign)

    def _add(self, value: Any, depth: int = 0) -> None:
        """Find the script's callables behind one that TensorFlow has registered."""
        own = _unwrapped(value)
        if any(own is one for one in self._callables) or depth > 8:
            return
        functions = reach.functions_in(own)
        if functions and not all(map(_is_installed, functions)):
            self._callables.append(own)
            return
        if isinstance(own, functools.partial):
            self._add(own.func, depth + 1)
            return
        inner = [] if not functions else list(_cells_of(functions[0]))
        if functions and _is_tensorflows(functions[0]):
            for one in inner:
                self._add(one, depth + 1)
        elif callable(own):
            self.foreign = self.foreign or _name_of(own)

    def places(self) -> Iterator[reach.Place | Held]:
        """Yield what the code can change, in an order that a second run repeats."""
        for index, one in enumerate(self._callables):
            if isinstance(one, functools.partial):
                values = [*one.args, *one.keywords.values()]
                yield from (
                    Held(f"{_name_of(one)}: argument {i}", value)
                    for i, value in enumerate(values)
                    if not reach.is_settled(value)
                )
            owner = _owner_of(one)
            if owner is not None:
                yield Held(f"{index}: {_name_of(one)}", owner)
        classes = [reach.class_of(one) for one in self.owners()]
        yield from reach.reached(self.functions(), classes, big=True)

    def functions(self) -> list[types.FunctionType]:
        """Return the functions that run."""
        return [function for one in self._callables for function in reach.functions_in(one)]

    def owners(self) -> list[Any]:
        """Return the objects whose methods run."""
        return [owner for owner in map(_owner_of, self._callables) if owner is not None]


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, functools.partial)


def _owner_of(value: Any) -> Any:
    return getattr(value, "__self__", None if isinstance(value, _FUNCTIONS) else value)


def code_of(dataset: Any) -> Code:
    """Return the script's Python code in a dataset."""
    return Code(_operations(dataset))


def code_in(operations: Iterable[Any]) -> Code:
    """Return the script's Python code in a graph's operations."""
    from tensorflow.python.ops import script_ops

    found = (op.attr["token"].s.decode() for op in operations if op.op in PYTHON_OPS)
    return Code((script_ops._py_funcs.get(token), False) for token in found)


def _operations(dataset: Any) -> Iterator[tuple[Any, bool]]:
    """Yield what stands behind each Python operation, and whether several of it run at once."""
    from tensorflow.python.ops import script_ops

    for one in walk(dataset):
        parallel = "Parallel" in type(one).__name__
        for op in operations(one):
            if op.op in PYTHON_OPS:
                yield script_ops._py_funcs.get(op.attr["token"].s.decode()), parallel


def _unwrapped(value: Any) -> Any:
    """Take off what TensorFlow puts around a function."""
    while True:
        if type(value).__name__ == "EagerFunc":
            value = value._func
        elif type(value).__name__ == "_GeneratorState":
            value = value._generator
        elif (
            isinstance(value, types.FunctionType) and hasattr(value, "__wrapped__") and _is_tensorflows(value)
        ):
            value = value.__wrapped__
        else:
            return value


def _is_tensorflows(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("tensorflow.") or _is_installed(function)


def _is_installed(function: Any) -> bool:
    return reach.is_installed(function.__code__.co_filename)


def _cells_of(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if callable(value) or type(value).__name__ == "_GeneratorState":
            yield value


def _name_of(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__)
