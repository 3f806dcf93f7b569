"""The files that Keras's callbacks add to as they go: CSVLogger's rows, TensorBoard's events.

With each snapshot goes how far they were. A resumed fit cuts them back to there, so that nothing is told
twice; a fit that was begun by an earlier attempt, and left no checkpoint, cuts them back to what was there
before it.

Limits: an event file is looked at only where a process of this fit's attempts has made it, by the name that
TensorFlow gives it: others may write into the same folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.storage import durable
from runner.training.codec import Node

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.(.*)\.(\d+)\.\d+\.v2")
_STARTED_S = int(time.time())
#: A process that a fit ran in: its host, number, and when it began; its number alone in older records.
Process = list[Any] | int
#: Those of the present fit's earlier attempts.
_earlier: list[Process] = []


def _is(callback: Any, kind: str) -> bool:
    return any(one.__name__ == kind for one in type(callback).__mro__)


def place(callback: Any) -> Node:
    """Return how far a callback's files are: a size, or each event file's; None where it has none."""
    if _is(callback, "TensorBoard"):
        for writer in getattr(callback, "_writers", {}).values():
            writer.flush()
        ours = (path for path in _event_files(callback) if _is_here(path) or _is_of(path, _earlier))
        return {str(path): path.stat().st_size for path in ours}
    file = getattr(callback, "csv_file", None)
    if file is None or getattr(file, "closed", True) or not hasattr(callback, "filename"):
        return None
    file.flush()
    return _size(callback.filename)


def _size(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return Path(path).stat().st_size
    return None


def _event_files(callback: Any) -> Iterator[Path]:
    for folder in (getattr(callback, "_train_dir", None), getattr(callback, "_val_dir", None)):
        if folder is not None and Path(folder).is_dir():
            yield from (path for path in sorted(Path(folder).iterdir()) if _EVENTS.fullmatch(path.name))


def begin(record: Path, callbacks: Sequence[Any]) -> list[str]:
    """Note how far the files are before a fit begins; cut them back to that where it had begun before.

    Args:
        record: where that is kept; nothing is written where no callback has such files.
        callbacks: all of the fit's; none has begun.

    Returns:
        Complaints: the fit begins all the same.
    """
    try:
        _begin(record, callbacks)
    except OSError as error:
        return [_doubt(error)]
    return []


def _begin(record: Path, callbacks: Sequence[Any]) -> None:
    known = _read(record)
    _earlier[:] = (known or {}).get("processes", [])
    before = [_place_before(callback) for callback in callbacks]
    if known is None and all(one is None for one in before):
        return
    if known is not None:
        for callback, one in zip(callbacks, known["files"], strict=False):
            if one is not None:
                _cut(callback, one)
        before = known["files"]
    processes = [*_earlier, _here()]
    durable.make_folder(record.parent, record.parent.parent)
    durable.write(record, json.dumps({"files": before, "processes": processes}).encode())


def _place_before(callback: Any) -> Node:
    if _is(callback, "CSVLogger"):
        return (_size(callback.filename) or 0) if callback.append else None
    return place(callback)


def _read(record: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        value: dict[str, Any] = json.loads(record.read_bytes())
        return value
    return None


def resume(
    record: Path, callbacks: Sequence[Any], state: Iterable[Mapping[str, Any]]
) -> tuple[list[Any], list[str]]:
    """Cut the files back to where they were, and have them added to; call before `on_train_begin`.

    Args:
        record: as for `begin`.
        callbacks: all of the fit's.
        state: of each callback, as captured.

    Returns:
        The CSVLoggers whose `append` was switched on and must be switched off again; and complaints.
    """
    switched, complaints = [], []
    known = _read(record) or {"files": [], "processes": []}
    _earlier[:] = known["processes"]
    for callback, one in zip(callbacks, state, strict=False):
        if one["file"] is None or type(callback).__name__ != one["class"]:
            continue
        complaints += _cut(callback, one["file"])
        if not getattr(callback, "append", True):
            callback.append = True
            switched.append(callback)
    if known["files"]:
        known["processes"].append(_here())
        try:
            durable.write(record, json.dumps(known).encode())
        except OSError as error:
            complaints.append(_doubt(error))
    return switched, complaints


def _doubt(error: OSError) -> str:
    return f"the files of callbacks may tell things twice after a kill: {error}"


def _cut(callback: Any, wanted: Node) -> list[str]:
    """Cut a callback's files back; return complaints."""
    if not isinstance(wanted, dict):
        return _cut_file(Path(callback.filename), wanted)
    complaints = []
    for path, size in wanted.items():
        if _is_of(Path(path), _earlier):
            complaints += _cut_file(Path(path), size)
    for path in _event_files(callback):
        if str(path) not in wanted and _is_of(path, _earlier):
            path.unlink(missing_ok=True)
    return complaints


def _cut_file(path: Path, size: int) -> list[str]:
    length = _size(str(path)) or 0
    if length > size:
        os.truncate(path, size)
    if length < size:
        return [f"{path} has {length} bytes, {size} when the checkpoint was taken: rows are lost"]
    return []


def _here() -> list[Any]:
    return [socket.gethostname(), os.getpid(), _STARTED_S]


def _is_here(path: Path) -> bool:
    """Tell whether this process has made an event file."""
    return _is_made_by(path, _here())


def _is_of(path: Path, processes: Sequence[Process]) -> bool:
    """Tell whether an earlier attempt's process has made an event file; this one's own are kept."""
    return not _is_here(path) and any(_is_made_by(path, process) for process in processes)


def _is_made_by(path: Path, process: Process) -> bool:
    found = _EVENTS.fullmatch(path.name)
    if found is None:
        return False
    created_s, host, number = int(found[1]), found[2], int(found[3])
    if isinstance(process, int):
        return number == process
    return [host, number] == process[:2] and created_s >= process[2]
