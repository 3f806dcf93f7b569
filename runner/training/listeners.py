"""The state of a fit's callbacks: their attributes, and what the script's code in them can reach.

Captured are all attributes of each callback (History among them), the closure cells and the globals that the
script's own callback functions use, and the position in a CSVLogger's file. All is put back in place, so
that the script's other names for the same list or dict keep seeing it.

Limits: a global array above 1 MiB is taken for data and not captured. What cannot be captured (an open file,
a lock, a thread) is named in `missed`, and stays as the script made it.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runner.training.codec import SKIP, Encoder, Node, encode_members
from runner.training.decode import Decoder

_GLOBAL_ARRAY_BYTES_MAX = 1 << 20
#: What the script or Keras makes anew for each fit.
_NEVER = {"model", "_model", "params", "_params", "validation_data"}
_NEVER_OF = {
    "CSVLogger": {"csv_file", "writer", "append", "append_header"},
    "TensorBoard": {"_writers", "_train_writer", "_val_writer", "writer", "summary", "_file_writer"},
}
_IMMUTABLE = (int, float, str, bytes, tuple, bool, complex, frozenset, type(None))


def capture(
    encoder: Encoder, callbacks: Sequence[Any], given_up: set[str]
) -> tuple[dict[str, Node], list[str]]:
    """Return the state of the callbacks and of what their code reaches; and what could not be captured.

    Args:
        encoder: takes the arrays.
        callbacks: all of the fit's, in order.
        given_up: names of what could not be captured before and is not tried again; grows.
    """
    missed: list[str] = []
    states = []
    for callback in callbacks:
        nodes, failed = encode_members(encoder, _members(callback))
        states.append({"class": type(callback).__name__, "members": nodes, "file": _file_position(callback)})
        missed += [f"{type(callback).__name__}.{name} ({why})" for name, why in failed.items()]
    reached = list(_reached(callbacks))
    wanted = [(str(i), place.value) for i, place in enumerate(reached) if place.name not in given_up]
    nodes, failed = encode_members(encoder, wanted)
    given_up.update(reached[int(i)].name for i in failed)
    missed += [f"{reached[int(i)].name} ({why})" for i, why in failed.items() if reached[int(i)].is_cell]
    names = [place.name for place in reached]
    return {"callbacks": states, "reached": nodes, "names": names}, missed


def restore(decoder: Decoder, callbacks: Sequence[Any], state: dict[str, Node]) -> None:
    """Put callbacks and what their code reaches back, in place.

    Raises:
        ValueError: the callbacks are not those that were captured.
    """
    saved = state["callbacks"]
    present = [type(callback).__name__ for callback in callbacks]
    if present != [one["class"] for one in saved]:
        raise ValueError(
            f"the script's callbacks are {', '.join(present)}; the checkpoint's {_names_of(saved)}"
        )
    for callback, one in zip(callbacks, saved, strict=True):
        never = _never(callback)
        for name, node in one["members"].items():
            value = decoder.merge(getattr(callback, name, None), node)
            if value is not SKIP and name not in never:
                setattr(callback, name, value)
    reached = list(_reached(callbacks))
    if [place.name for place in reached] != state["names"]:
        raise ValueError("the functions of the script's callbacks use other names than in the checkpoint")
    for index, node in state["reached"].items():
        place = reached[int(index)]
        value = decoder.merge(place.value, node)
        if value is not SKIP:
            place.put(value)


def _names_of(saved: Iterable[dict[str, Any]]) -> str:
    return ", ".join(one["class"] for one in saved)


def rewind_files(callbacks: Sequence[Any], state: dict[str, Node]) -> tuple[list[Any], list[str]]:
    """Cut the files of CSVLoggers back, and have them appended to; call before `on_train_begin`.

    Returns:
        The callbacks whose `append` was switched on and must be switched off again; and complaints.
    """
    switched, complaints = [], []
    for callback, one in zip(callbacks, state["callbacks"], strict=False):
        size = one["file"]
        if size is None or type(callback).__name__ != one["class"]:
            continue
        path = Path(callback.filename)
        length = path.stat().st_size if path.exists() else 0
        if length < size:
            complaints.append(
                f"{path} has {length} bytes, {size} when the checkpoint was taken: rows are lost"
            )
        elif length > size:
            os.truncate(path, size)
        if not callback.append:
            callback.append = True
            switched.append(callback)
    return switched, complaints


def _never(callback: Any) -> set[str]:
    return _NEVER | _NEVER_OF.get(type(callback).__name__, set())


def _members(callback: Any) -> Iterator[tuple[str, Any]]:
    if type(callback).__name__ == "ProgbarLogger":
        return
    never = _never(callback)
    for name, value in list(vars(callback).items()):
        if name not in never:
            yield name, value


def _file_position(callback: Any) -> int | None:
    file = getattr(callback, "csv_file", None)
    if file is None or getattr(file, "closed", True) or not hasattr(callback, "filename"):
        return None
    file.flush()
    with contextlib.suppress(OSError):
        return Path(callback.filename).stat().st_size
    return None


class _Cell:
    """A closure cell."""

    is_cell = True

    def __init__(self, name: str, cell: Any):
        self.name = name
        self._cell = cell

    @property
    def value(self) -> Any:
        return self._cell.cell_contents

    def put(self, value: Any) -> None:
        self._cell.cell_contents = value


class _Global:
    """A global variable of a function's module."""

    is_cell = False

    def __init__(self, name: str, namespace: dict[str, Any], key: str):
        self.name = name
        self._namespace = namespace
        self._key = key

    @property
    def value(self) -> Any:
        return self._namespace[self._key]

    def put(self, value: Any) -> None:
        self._namespace[self._key] = value


def _reached(callbacks: Sequence[Any]) -> Iterator[_Cell | _Global]:
    """Yield the places that callback code can change, in an order that a second run repeats."""
    seen: set[Any] = set()
    todo = [function for callback in callbacks for function in _functions_of(callback)]
    while todo:
        function = todo.pop(0)
        if id(function) in seen or not _of_script(function):
            continue
        seen.add(id(function))
        where = f"{function.__module__}.{function.__qualname__}"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                if id(cell) not in seen and not _is_settled(cell.cell_contents):
                    seen.add(id(cell))
                    yield _Cell(f"{where}: {name}", cell)
                todo += _functions_in(cell.cell_contents)
        read, written = _global_names(function.__code__)
        for name in read:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            todo += _functions_in(value)
            key = (id(function.__globals__), name)
            if key in seen or _is_settled(value) or not _may_change(value, name in written):
                continue
            seen.add(key)
            yield _Global(f"{function.__module__}.{name}", function.__globals__, name)


def _functions_of(callback: Any) -> Iterator[types.FunctionType]:
    for kind in type(callback).__mro__:
        for member in list(vars(kind).values()):
            yield from _functions_in(member)
    for member in list(vars(callback).values()):
        yield from _functions_in(member)


def _functions_in(value: Any) -> list[types.FunctionType]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if isinstance(f, types.FunctionType)]
    return [value] if isinstance(value, types.FunctionType) else []


def _of_script(function: types.FunctionType) -> bool:
    return not function.__code__.co_filename.startswith(_library_folders())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    ours = str(Path(__file__).parent.parent)
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    extra = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return tuple({*paths, *extra, ours, "<frozen"})


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the global names that a function's code reads (nested code too), and those that it rebinds."""
    read: dict[str, None] = {}
    written: set[str] = set()
    for one in dis.get_instructions(code):
        if one.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            read[str(one.argval)] = None
        elif one.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            read[str(one.argval)] = None
            written.add(str(one.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_read, inner_written = _global_names(constant)
            read.update(dict.fromkeys(inner_read))
            written |= inner_written
    return tuple(read), frozenset(written)


def _is_settled(value: Any) -> bool:
    """Tell whether the value is code: made anew by the script, and never changed."""
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type)


def _may_change(value: Any, rebound: bool) -> bool:
    if isinstance(value, _IMMUTABLE):
        return rebound
    return not (isinstance(value, np.ndarray) and value.nbytes > _GLOBAL_ARRAY_BYTES_MAX)
