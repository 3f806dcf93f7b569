"""What a script's own functions can reach and so change: closure cells, globals, attributes of classes.

Functions of installed packages are not looked into. What a function calls is followed as long as it is the
script's own, and so are the methods of the script's own objects and classes that it reaches, and what these
classes hold. Globals that a function binds are among them while they do not exist, and cells while they are
empty: their value is `ABSENT`.

Limits: a global array above 1 MiB that no function binds is taken for data, not for state.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import functools
import itertools
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_GLOBAL_ARRAY_BYTES_MAX = 1 << 20
#: The value of a place where there is none.
ABSENT = object()
_IMMUTABLE = (int, float, str, bytes, tuple, bool, complex, frozenset, type(None))


class Cell:
    """A closure cell."""

    is_bound = True

    def __init__(self, name: str, cell: Any):
        self.name = name
        self._cell = cell

    @property
    def value(self) -> Any:
        """What is there now."""
        try:
            return self._cell.cell_contents
        except ValueError:
            return ABSENT

    def put(self, value: Any) -> None:
        """Put another value there."""
        self._cell.cell_contents = value

    def clear(self) -> None:
        """Leave nothing there."""
        with contextlib.suppress(ValueError):
            del self._cell.cell_contents


class Global:
    """A global variable of a function's module."""

    def __init__(self, name: str, namespace: dict[str, Any], key: str, *, is_bound: bool):
        self.name = name
        self.is_bound = is_bound  #: by the function that reaches it
        self._namespace = namespace
        self._key = key

    @property
    def value(self) -> Any:
        """What is there now."""
        return self._namespace.get(self._key, ABSENT)

    def put(self, value: Any) -> None:
        """Put another value there."""
        self._namespace[self._key] = value

    def clear(self) -> None:
        """Leave nothing there."""
        self._namespace.pop(self._key, None)


class ClassAttribute:
    """An attribute of a class of the script's, which all its objects share."""

    is_bound = False

    def __init__(self, name: str, kind: type, key: str):
        self.name = name
        self._kind = kind
        self._key = key

    @property
    def value(self) -> Any:
        """What is there now."""
        return vars(self._kind).get(self._key, ABSENT)

    def put(self, value: Any) -> None:
        """Put another value there."""
        if self.value is not value:
            setattr(self._kind, self._key, value)

    def clear(self) -> None:
        """Leave nothing there."""
        if self.value is not ABSENT:
            delattr(self._kind, self._key)


Place = Cell | Global | ClassAttribute
Named = TypeVar("Named", bound=Any)


def reached(
    functions: Iterable[types.FunctionType], classes: Iterable[type] = (), *, big: bool = False
) -> Iterator[Place]:
    """Yield the places that these functions can change, in an order that a second run repeats.

    Args:
        functions: to begin with.
        classes: those of the objects whose methods these are.
        big: global arrays above 1 MiB too.
    """
    return _Search(functions, classes, big).places()


class _Search:
    """Goes from function to function, and from class to class."""

    def __init__(self, functions: Iterable[types.FunctionType], classes: Iterable[type], big: bool):
        self._functions = list(functions)
        self._kinds = list(classes)
        self._big = big
        self._seen: set[Any] = set()
        self._found: list[type] = []
        self._assigned: set[str] = set()

    def places(self) -> Iterator[Place]:
        """Yield what is found."""
        while self._kinds or self._functions:
            if self._kinds:
                self._look_into_class(self._kinds.pop(0))
            else:
                yield from self._look_into(self._functions.pop(0))
        for kind in self._found:
            yield from _attributes_of(kind, self._assigned, self._big)

    def _is_new(self, key: Any) -> bool:
        found = key not in self._seen
        self._seen.add(key)
        return found

    def _follow(self, value: Any) -> None:
        """Look into what code that has the value can run and change."""
        self._functions += functions_in(value)
        self._kinds.append(value if isinstance(value, type) else type(value))

    def _look_into_class(self, kind: type) -> None:
        if not self._is_new(id(kind)):
            return
        self._kinds += kind.__mro__
        if is_of_script(kind):
            self._found.append(kind)
            for value in list(vars(kind).values()):
                self._follow(value)

    def _look_into(self, function: types.FunctionType) -> Iterator[Place]:
        if not _of_script(function) or not self._is_new(id(function)):
            return
        self._assigned |= _assigned_in(function.__code__, own=False)
        where = f"{function.__module__}.{function.__qualname__}"
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            place: Place = Cell(f"{where}: {name}", cell)
            if not is_settled(place.value) and self._is_new(id(cell)):
                yield place
            self._follow(place.value)
        read, written = _global_names(function.__code__)
        for name in read:
            if name not in function.__globals__ and name not in written:
                continue
            full_name = f"{function.__module__}.{name}"
            place = Global(full_name, function.__globals__, name, is_bound=name in written)
            self._follow(place.value)
            may_change = not is_settled(place.value) and _may_change(place.value, place.is_bound, self._big)
            if may_change and self._is_new((id(function.__globals__), name)):
                yield place


def _attributes_of(kind: type, assigned: Set[str], big: bool) -> Iterator[ClassAttribute]:
    """Yield what a class holds that can change in place, and what may be assigned, there yet or not."""
    if issubclass(kind, enum.Enum):
        return
    for name in sorted({*vars(kind), *assigned}):
        place = ClassAttribute(f"{kind.__module__}.{kind.__qualname__}.{name}", kind, name)
        value = place.value
        is_code = is_settled(value) or hasattr(type(value), "__get__")
        if name.startswith(("__", "_abc_")) or is_code:
            continue
        if _may_change(value, name in assigned, big):
            yield place


@functools.lru_cache(maxsize=1024)
def assigned_by(kind: type) -> frozenset[str]:
    """Return the names of the attributes that the methods of a class of the script's assign."""
    if not is_of_script(kind):
        return frozenset()
    codes = [one.__code__ for value in vars(kind).values() for one in _plain_functions_in(value)]
    return frozenset[str]().union(*(_assigned_in(code, own=True) for code in codes))


@functools.lru_cache(maxsize=4096)
def _assigned_in(code: types.CodeType, *, own: bool) -> frozenset[str]:
    """Return the names of the attributes that code assigns or deletes, of whatever object.

    Args:
        code: of a function.
        own: those too that it assigns to its first argument, which is no class.
    """
    first = next(iter(code.co_varnames[: code.co_argcount]), "")
    found, of_first = set(), False
    for one in dis.get_instructions(code):
        if one.opname in {"STORE_ATTR", "DELETE_ATTR"} and (own or not of_first or first == "cls"):
            found.add(str(one.argval))
        # From Python 3.13 on one instruction may load two variables.
        last = one.argval[-1:] if isinstance(one.argval, tuple) else (one.argval,)
        of_first = one.opname.startswith("LOAD_FAST") and last == (first,)
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(found).union(*(_assigned_in(one, own=own) for one in inner))


def by_name(places: Iterable[Named]) -> dict[str, Named]:
    """Return places by their names; where several have the same, the later ones are numbered."""
    several = list(places)
    return dict(zip(each_once(place.name for place in several), several, strict=True))


def each_once(names: Iterable[str]) -> list[str]:
    """Return the names; of those that repeat, the later ones are numbered."""
    found: dict[str, None] = {}
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        found[next(one for one in itertools.chain([name], numbered) if one not in found)] = None
    return list(found)


def functions_of(objects: Iterable[Any]) -> Iterator[types.FunctionType]:
    """Yield the functions that objects are made with, and those among their attributes."""
    for one in objects:
        for kind in type(one).__mro__:
            for member in list(vars(kind).values()):
                yield from _plain_functions_in(member)
        for member in list(getattr(one, "__dict__", {}).values()):
            yield from _plain_functions_in(member)


def functions_in(value: Any) -> list[types.FunctionType]:
    """Return what runs when the value is called or, where it is of a class of the script's own, used."""
    found = _plain_functions_in(value)
    if not found and is_of_script_class(value):
        found = list(functions_of([value]))
    return found


def _plain_functions_in(value: Any) -> list[types.FunctionType]:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if isinstance(f, types.FunctionType)]
    return [value] if isinstance(value, types.FunctionType) else []


def is_of_script_class(value: Any) -> bool:
    """Tell whether the value's class is the script's own, and not derived from one of Keras's."""
    kinds = [kind for kind in type(value).__mro__ if kind is not object]
    modules = [sys.modules.get(kind.__module__) for kind in kinds]
    files = [getattr(module, "__file__", None) for module in modules]
    return bool(kinds) and all(file is not None and not is_installed(file) for file in files)


def is_of_script(kind: type) -> bool:
    """Tell whether a class is the script's own."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind is not object and file is not None and not is_installed(file)


def is_of_keras(kind: type) -> bool:
    """Tell whether a class is Keras's or TensorFlow's."""
    return (kind.__module__ or "").split(".")[0] in {"keras", "tensorflow"}


def _of_script(function: types.FunctionType) -> bool:
    return not is_installed(function.__code__.co_filename)


def is_installed(file: str) -> bool:
    """Tell whether a file belongs to Python or to an installed package."""
    return file.startswith(_library_folders())


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


def is_settled(value: Any) -> bool:
    """Tell whether the value is code: made anew by the script, and never changed."""
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type)


def _may_change(value: Any, rebound: bool, big: bool) -> bool:
    if rebound or isinstance(value, _IMMUTABLE):
        return rebound
    return big or not (isinstance(value, np.ndarray) and value.nbytes > _GLOBAL_ARRAY_BYTES_MAX)
