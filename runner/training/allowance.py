"""What keeping the ends of fits may take of time and disk.

Each end is a durable, verified file with the whole model. Ordinary scripts have a few; one that calls `fit`
thousands of times, for a few steps each, would spend most of its time and all of its disk on them.

Promise: up to the fit that the warning names every end is kept, so a later attempt restores these and runs
the others again; as every fit, exactly. Time is counted by attempts.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.training.worker import Worker

#: So much time keeping ends may take in any case, and beyond that this share of all.
FREE_S = 10.0
SHARE = 0.1
#: All ends together may take this share of what the disk has for them.
DISK_SHARE = 0.5


class Allowance:
    """Keeps the account, for one process."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._began = time.monotonic()
        self._spent_s = 0.0
        self._bytes: int | None = None
        self._last_bytes = 0
        self._over = False

    @contextlib.contextmanager
    def spending(self) -> Iterator[Callable[[int], None]]:
        """Take the time of the block into account, and the bytes that it tells."""
        began = time.monotonic()
        try:
            yield self._spend
        finally:
            self._spent_s += time.monotonic() - began

    def _spend(self, size: int) -> None:
        self._last_bytes = size
        self._bytes = (self._bytes or 0) + size

    def allowed(self, number: int) -> bool:
        """Tell whether the end of fit `number` is to be kept; once it is not, no later one is."""
        if self._over:
            return False
        why = self._excess()
        if why:
            self._over = True
            atexit.register(self._worker.flush_best)
            self._worker.facts.warn(
                f"{why}: from fit {number} on they are not kept; after a kill, the fits from there on are run"
                " again. A loop with runner.attach goes on where it was: docs/api.md"
            )
        return not self._over

    def _excess(self) -> str:
        lasted_s = time.monotonic() - self._began
        if self._spent_s > FREE_S + SHARE * lasted_s:
            return f"keeping the ends of fits has taken {self._spent_s:.0f} of {lasted_s:.0f} seconds"
        with contextlib.suppress(OSError):
            paths = self._worker.launch.paths
            if self._bytes is None:
                self._bytes = sum(path.stat().st_size for _, path in paths.list_fits())
            free = shutil.disk_usage(paths.dir).free
            if self._bytes + self._last_bytes > DISK_SHARE * (self._bytes + free):
                gigabytes = self._bytes / 1e9
                return f"the ends of fits take {gigabytes:.1f} GB, and the disk has {free / 1e9:.1f} left"
        return ""
