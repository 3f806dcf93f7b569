"""What a script's own functions can reach and so change: closure cells, globals, attributes of classes.

Functions of installed packages are not looked into. What a function calls is followed as long as it is the
script's own, and so are the methods of the script's own objects that it reaches, and those methods and
attributes of the script's own classes whose names it mentions. Globals that a function binds are among them
while they do not exist, attributes that it gives to a class likewise, and cells while they are empty: their
value is `ABSENT`.

Limits: a global array above 1 MiB that no function binds is taken for data, not for state. What is reached
by `setattr`, `globals()`, a metaclass, or from within a list or dict alone, is not seen.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import io
import itertools
import operator
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runner.training import bytecode

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

    def __init__(self, name: str, kind: type, key: str, *, is_bound: bool):
        self.name = name
        self.is_bound = is_bound  #: by code that gives it to this very class
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
        self._mentioned: set[str] = set()
        self._waiting: dict[str, list[Any]] = {}  # what classes hold under names that nobody mentions yet
        self._owners: dict[int, list[type]] = {}  # the classes that have a function as a method, by its id
        self._looked_into: list[types.FunctionType] = []

    def places(self) -> Iterator[Place]:
        """Yield what is found."""
        while self._kinds or self._functions:
            if self._kinds:
                self._look_into_class(self._kinds.pop(0))
            else:
                yield from self._look_into(self._functions.pop(0))
        assigned, perhaps = self._assigned()
        for kind in self._found:
            yield from self._attributes_of(kind, assigned[kind], perhaps)

    def _is_new(self, key: Any) -> bool:
        found = key not in self._seen
        self._seen.add(key)
        return found

    def _follow(self, value: Any) -> None:
        """Look into what code that has the value can run and change."""
        self._functions += functions_in(value)
        self._kinds.append(class_of(value))

    def _look_into_class(self, kind: type) -> None:
        if not self._is_new(id(kind)):
            return
        self._kinds += kind.__mro__
        if not is_of_script(kind) or issubclass(kind, enum.Enum):
            return
        self._found.append(kind)
        for name, value in list(vars(kind).items()):
            for function in _plain_functions_in(value):
                self._owners.setdefault(id(function), []).append(kind)
            if name in self._mentioned or (name.startswith("__") and _plain_functions_in(value)):
                self._follow(value)
            else:
                self._waiting.setdefault(name, []).append(value)

    def _look_into(self, function: types.FunctionType) -> Iterator[Place]:
        if not _of_script(function) or not self._is_new(id(function)):
            return
        self._looked_into.append(function)
        for name in bytecode.attributes_in(function.__code__).mentioned - self._mentioned:
            self._mentioned.add(name)
            for value in self._waiting.pop(name, ()):
                self._follow(value)
        where = f"{function.__module__}.{function.__qualname__}"
        for name, cell in _cells_of(function):
            place: Place = Cell(f"{where}: {name}", cell)
            if not is_settled(place.value) and self._is_new(id(cell)):
                yield place
            self._follow(place.value)
        read, written = bytecode.global_names(function.__code__)
        for name in read:
            if name not in function.__globals__ and name not in written:
                continue
            full_name = f"{function.__module__}.{name}"
            place = Global(full_name, function.__globals__, name, is_bound=name in written)
            self._follow(place.value)
            may_change = not is_settled(place.value) and _may_change(place.value, place.is_bound, self._big)
            if may_change and self._is_new((id(function.__globals__), name)):
                yield place

    def _assigned(self) -> tuple[dict[type, set[str]], set[str]]:
        """Return the names that the code gives to each class, and those that it gives to what is unknown."""
        certain: dict[type, set[str]] = {kind: set() for kind in self._found}
        perhaps: set[str] = set()
        for function in self._looked_into:
            for receiver, name in bytecode.attributes_in(function.__code__).assigned:
                if receiver is bytecode.ITS_CLASS or (
                    receiver is bytecode.FIRST and id(function) in self._owners
                ):
                    kinds = self._classes_bound_to(function, receiver)
                elif isinstance(receiver, str):
                    value = dict(_cells_of(function)).get(receiver)
                    value = Cell("", value).value if value is not None else function.__globals__.get(receiver)
                    kinds = [value] if isinstance(value, type) else []
                else:
                    perhaps.add(name)
                    continue
                for kind in kinds:
                    if kind in certain:
                        certain[kind].add(name)
        return certain, perhaps

    def _classes_bound_to(self, function: types.FunctionType, receiver: object) -> list[type]:
        """Return the classes that a method may give an attribute to, as `cls` or as the class of `self`."""
        owners = self._owners.get(id(function), [])
        if receiver is bytecode.FIRST and not any(_is_classmethod(kind, function) for kind in owners):
            return []
        return [kind for kind in self._found if any(issubclass(kind, owner) for owner in owners)]

    def _attributes_of(self, kind: type, assigned: Set[str], perhaps: Set[str]) -> Iterator[ClassAttribute]:
        """Yield what a class holds that can change in place, and what it is given, there yet or not."""
        for name in sorted(({*vars(kind)} & self._mentioned) | assigned):
            is_bound = name in assigned
            place = ClassAttribute(
                f"{kind.__module__}.{kind.__qualname__}.{name}", kind, name, is_bound=is_bound
            )
            value = place.value
            if name.startswith("__") or is_settled(value) or hasattr(type(value), "__get__"):
                continue
            given = is_bound or (name in perhaps and isinstance(value, _IMMUTABLE))
            if _may_change(value, given, self._big):
                yield place


def class_of(value: Any) -> type:
    """Return the class whose attributes code that has the value can change: it may be the value itself."""
    return value if isinstance(value, type) else type(value)


def _cells_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _is_classmethod(kind: type, function: types.FunctionType) -> bool:
    found = vars(kind).get(function.__name__)
    return isinstance(found, classmethod) and found.__func__ is function


@functools.lru_cache(maxsize=1024)
def assigned_by(kind: type) -> frozenset[str]:
    """Return the names of the attributes that the methods of a class of the script's assign."""
    if not is_of_script(kind):
        return frozenset()
    codes = [one.__code__ for value in vars(kind).values() for one in _plain_functions_in(value)]
    return frozenset(name for code in codes for _, name in bytecode.attributes_in(code).assigned)


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
            yield from _functions_of_class(kind)
        for member in list(getattr(one, "__dict__", {}).values()):
            yield from _plain_functions_in(member)


#: Of classes that live as long as their modules: what each had when it was looked at last, what was found.
_looked_at: dict[type, tuple[list[Any], list[types.FunctionType]]] = {}


def _functions_of_class(kind: type) -> list[types.FunctionType]:
    """Return the script's functions in a class, looked for anew only where it has other members."""
    members = list(vars(kind).values())
    before, found = _looked_at.get(kind, ([], []))
    if len(before) != len(members) or not all(map(operator.is_, before, members)):
        found = [one for member in members for one in _plain_functions_in(member) if _of_script(one)]
        if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
            _looked_at[kind] = members, found
    return found


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


def is_settled(value: Any) -> bool:
    """Tell whether the value is code: made anew by the script, and never changed."""
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type)


def _may_change(value: Any, rebound: bool, big: bool) -> bool:
    if rebound or isinstance(value, _IMMUTABLE):
        return rebound
    return big or not (isinstance(value, np.ndarray) and value.nbytes > _GLOBAL_ARRAY_BYTES_MAX)


def is_state(place: Place) -> bool:
    """Tell whether code is likely to change what cannot be captured: not a lock, a logger, a parser."""
    value = place.value
    if isinstance(value, io.IOBase):
        return not value.closed and value.writable() and value not in (sys.__stdout__, sys.__stderr__)
    return (
        place.is_bound
        or isinstance(value, (Iterator, dict, list, set, collections.deque))
        or type(value).__module__.startswith(("keras.", "tensorflow."))
        or is_of_script_class(value)
    )
