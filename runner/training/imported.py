"""What the job has imported, in which order, and how things stood before each: for a spare to import it too.

A spare imports before the script has begun. That comes to the same only where the script would have done
nothing by then that an import may read or that may read what an import does: change the environment, draw
chance (packages draw it too, as they are imported), change `sys.path`, the log's handlers or the folder. So
the situation is noted before each import, as a digest; a spare imports for as long as it is in the same one.
What the script puts into the environment before its first package (`TF_CPP_MIN_LOG_LEVEL`) a spare puts
there too, for the time of the imports.

Limits: a script that changes Python itself between two imports (a package patched before another is imported)
is not noticed. Modules of the standard library are not noted, those of the job's own folder never imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

from runner.storage import durable
from runner.training.entropy import Entropy

_STANDARD = frozenset(sys.stdlib_module_names)
#: Folders that installed packages lie in.
_INSTALLED = ("site-packages", "dist-packages")
_OURS = "runner"


class Imported:
    """The imports of this process so far: names, and from which one on which situation held."""

    def __init__(self, entropy: Entropy, environ: dict[str, str]):
        """Begin.

        Args:
            entropy: the job's.
            environ: the environment that the process was started with.
        """
        self.entropy = entropy
        self._environ = environ
        self._names: list[str] = []
        self._situations: list[tuple[int, str]] = []  # the first name of each
        self._seen: Any = None
        self.asked: set[str] = set()  #: what was looked for at all, by the first part of its name
        self.changed: dict[str, str | None] | None = None  #: in the environment, before the first package

    def note(self, name: str) -> None:
        """Take in that a module is looked for."""
        root = name.partition(".")[0]
        self.asked.add(root)
        if root in _STANDARD:
            return
        if self.changed is None and root != _OURS:
            self.changed = dict(_changes(self._environ))
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._situations.append((len(self._names), _digest(seen)))
        self._names.append(name)

    def situation(self) -> str:
        """Return how things stand now."""
        return _digest(self._look())

    def _look(self) -> tuple[Any, ...]:
        return (
            _changes(self._environ),
            sys.path[1:],  # the first is the script's folder, or, before it runs, ours
            Path.cwd().as_posix(),
            (len(logging.root.handlers), logging.root.level),
            _chance(self.entropy),
        )

    def as_json(self) -> dict[str, Any]:
        """Return what a spare needs: the changes to the environment, and [situation, names], in order."""
        groups, situations, names = [], list(self._situations), list(self._names)
        ends = [start for start, _ in situations[1:]] + [len(names)]
        for (start, situation), end in zip(situations, ends, strict=True):
            groups.append([situation, [name for name in names[start:end] if _is_installed(name)]])
        return {"version": 1, "changed": self.changed or {}, "imports": groups}

    def tell(self, path: Path) -> None:
        """Write that down; a disk that refuses it leaves the job without a spare."""
        with contextlib.suppress(OSError):
            durable.publish(path, json.dumps(self.as_json()).encode())


def files() -> dict[str, int]:
    """Return when each file of an imported package was last changed, in nanoseconds."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] not in _STANDARD:
            found[str(path)] = _changed_ns(str(path))
    return found


def have_changed(before: dict[str, int]) -> list[str]:
    """Return which of these files are not as they were."""
    return [path for path, changed in before.items() if _changed_ns(path) != changed]


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - of thousands, at a take-over
    except OSError:
        return -1


def _is_installed(name: str) -> bool:
    """Tell whether that module was imported, and came from where packages lie, or from us."""
    path = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(path, str):
        return False
    return name.startswith(f"{_OURS}.") or any(part in _INSTALLED for part in Path(path).parts)


def _changes(environ: dict[str, str]) -> list[tuple[str, str | None]]:
    """Return what differs in the environment; what the runner itself sets does not count."""
    now = os.environ
    new: list[tuple[str, str | None]] = [(k, v) for k, v in now.items() if environ.get(k) != v]
    new += [(k, None) for k in environ if k not in now]
    return sorted((k, v) for k, v in new if not k.startswith("RUNNER_"))


def _chance(entropy: Entropy) -> tuple[Any, ...]:
    """Return something that differs whenever one of the generators that all share has been used."""
    words = random.getstate()[1]
    python = (words[-1], words[0])
    numpy = sys.modules.get("numpy.random")
    get_state = getattr(numpy, "get_state", None)
    if get_state is None:
        return python, entropy.pool_draws, entropy.op_draws
    _, key, position, has_gauss, gauss = get_state()
    return python, entropy.pool_draws, entropy.op_draws, int(key[0]), position, has_gauss, gauss


def _digest(seen: Any) -> str:
    return hashlib.sha256(repr(seen).encode(errors="surrogateescape")).hexdigest()[:16]
