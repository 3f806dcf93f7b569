"""Doing something right after a module has been imported for the first time.

One finder in front of `sys.meta_path`: for a module somebody waits for, the ordinary finders are asked, and
the loader they give is wrapped for the moment of its execution. The module itself shows its own loader.
A module that is imported already is handed over at once.

Python's collector of garbage rests while one of the large packages is imported: it would look again and again
at all that these make, which is no garbage, for a seventh of the time to a script's first step.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

#: While these are imported, with all that they import, nothing is collected.
_LARGE = frozenset({"tensorflow", "keras", "tf_keras"})
_waiting: dict[str, list[Callable[[ModuleType], None]]] = {}
_watchers: list[Callable[[str], None]] = []


def install() -> None:
    """Put the finder in front."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def after(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with the module `name` once it has been imported; now, if it has been."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and not getattr(spec, "_initializing", False):
        action(module)
    else:
        _waiting.setdefault(name, []).append(action)


def watch(action: Callable[[str], None]) -> None:
    """Call `action` with the name of each module that is looked for from now on."""
    _watchers.append(action)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let the collector rest during the block; what comes into being there counts as old at once."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation; nothing is looked at
        gc.enable()


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for action in _watchers:
            action(fullname)
        if fullname not in _waiting and fullname not in _LARGE:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: importlib.machinery.ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Executes the module as its own loader does, puts that loader back, and tells who waited."""

    def __init__(self, loader: Any):
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader
        try:
            module: ModuleType | None = self._loader.create_module(spec)
        finally:
            spec.loader = self
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with _uncollected() if module.__name__ in _LARGE else contextlib.nullcontext():
            self._loader.exec_module(module)
        for action in _waiting.pop(module.__name__, []):
            action(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
