"""A job's checkpoints on the disk: which of them stay, and which go for a newer one.

Limits: what cannot be removed stays until the next time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from runner.core import retention
from runner.core.spec import CadenceUnit, CheckpointSpec, Every
from runner.errors import StorageError
from runner.storage import checkpoint, disk, durable
from runner.storage.layout import JobPaths
from runner.training.quarantine import Report


class Stock:
    """The checkpoints that there are."""

    def __init__(self, paths: JobPaths, spec: CheckpointSpec, tell: Report) -> None:
        self._paths = paths
        self._spec = spec
        self._tell = tell

    def evict(self, verified: int | None) -> None:
        """Remove what the retention does not keep; `verified` is the last step known to be good."""
        found = dict(self._paths.list_checkpoints())
        for step in retention.evicted(found, self._spec.keep, self._kept(found, verified)):
            with contextlib.suppress(OSError):
                durable.remove(found[step])

    def make_room(self, verified: int | None, needed: int | None = None) -> bool:
        """Remove what may go in need, oldest first, until there is room; tell whether there is.

        The newest checkpoint that is known to be good stays, and what has a reason of its own. Where even
        without the others there would be no room, they stay too.

        Args:
            verified: the last step known to be good; None: which may go cannot be told.
            needed: bytes; None: nobody knows, as with quotas: all goes that may.
        """
        if verified is None:
            return False
        found, folder = dict(self._paths.list_checkpoints()), self._paths.checkpoints
        spare = retention.evicted(found, 1, self._kept(found, verified))
        with contextlib.suppress(OSError):
            gain = sum(found[step].stat().st_size for step in spare)
            if disk.free_bytes(folder) + gain < (needed or 0):
                return False
        gone = []
        for step in spare:
            if needed is not None and disk.trouble(folder, needed) is None:
                break
            with contextlib.suppress(OSError):
                durable.remove(found[step])
            if not os.path.lexists(found[step]):  # also where that was not made durable
                gone.append(step)
        if gone:
            reason = "the disk has no room for the next checkpoint"
            self._tell({"event": "pruned", "steps": gone, "reason": reason})
        return bool(gone) if needed is None else disk.trouble(folder, needed) is None

    def _kept(self, found: Mapping[int, Path], verified: int | None) -> retention.Kept:
        pinned = frozenset(step for step in found if self._paths.pin(step).exists())
        archived = self._archived(found)
        return retention.Kept(verified=verified, pinned=pinned, archived=archived)

    def _archived(self, found: Mapping[int, Path]) -> frozenset[int]:
        """Return the steps that are kept for ever; one whose place cannot be read counts as such."""
        period, places, unknown = self._spec.archive, dict[int, float](), set[int]()
        if period is None:
            return frozenset()
        for step, path in found.items():
            try:
                places[step] = self._place(period, step, path)
            except (OSError, StorageError):
                unknown.add(step)
        return retention.archived(places, period.count) | unknown

    def _place(self, period: Every, step: int, path: Path) -> float:
        """Return where a checkpoint lies, counted in what the period is."""
        match period.unit:
            case CadenceUnit.STEPS:
                return step
            case CadenceUnit.EPOCHS:
                return checkpoint.describe(path).epoch
            case _:
                return path.stat().st_mtime
