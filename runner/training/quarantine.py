"""Quarantine: a file that must not be used is set aside with its reason, never deleted and never loaded.

It failed verification; or it is rejected: as it was written, and no good for what it holds. Copies of a
damaged file may be good, those of a rejected one are not (see `mirrored.rejected`); its name tells which.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from runner.storage import durable
from runner.storage.layout import JobPaths, rejected_name

#: Takes a fact, such as {"event": "checkpoint", "step": 12}; called from the writer thread too.
Report = Callable[[dict[str, Any]], None]


def set_aside(paths: JobPaths, path: Path, reason: str, report: Report, *, rejected: bool = False) -> None:
    """Move `path` to the job's quarantine, the reason beside it, and report it.

    Where that fails (a read-only disk), the file stays and a warning says so; it is not loaded either way.
    """
    try:
        durable.make_folder(paths.quarantine, paths.dir)
        target = _free(paths.quarantine, rejected_name(path.name) if rejected else path.name)
        durable.write(target.with_name(target.name + ".reason"), f"{reason}\n".encode())
        durable.move(path, target)
    except OSError as error:
        report(
            {"event": "warning", "message": f"{path} is not used ({reason}), nor could it be moved: {error}"}
        )
        return
    found, to = path.relative_to(paths.dir), target.relative_to(paths.dir)
    report({"event": "quarantined", "path": str(found), "to": str(to), "reason": reason})


def _free(folder: Path, name: str) -> Path:
    names = (name if number == 1 else f"{number}-{name}" for number in count(1))
    return next(folder / free for free in names if not (folder / free).exists())
