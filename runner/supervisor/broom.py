"""Clears away, in a thread of its own, what the dead left behind: half-written files, folders being deleted.

A process that is killed leaves the temporary file of the moment, `.NAME.*.tmp`; a large folder that is
deleted is first renamed so. Nothing of that name is ever read.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: Other processes may be at work on what is younger: a `submit` copies a folder under such a name.
OTHERS_S = 24 * 3600.0


class Broom:
    """Deletes folders without making anybody wait."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def delete(self, path: Path | None) -> None:
        """Delete a file or a folder, as far as the disk lets; None is fine."""
        if path is not None:
            self._do(lambda: _delete(path))

    def sweep(self, folder: Path, older_s: float = 0.0) -> None:
        """Delete the leftovers directly in `folder` that nobody touched for `older_s` seconds."""
        self._do(lambda: sweep(folder, older_s))

    def _do(self, task: Callable[[], None]) -> None:
        self._waiting.put(task)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="broom", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            self._waiting.get()()


def sweep(folder: Path, older_s: float = 0.0) -> None:
    """Do as `Broom.sweep`, at once."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if not path.name.startswith(".") or not path.name.endswith(".tmp"):
                continue
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime >= older_s:
                    _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
