"""Requests of the command line to the supervisor: a file each in `jobs/.requests/`, staged and renamed.

A request works while no supervisor runs, and takes effect when one does. Files are named by the time of
asking, so that they are taken in order; the supervisor removes each when it has been carried out or refused.
Each says when the job that is meant was submitted, or, where no record tells that, when the mark of its
submission or its damaged record was written: one that is carried out again, as its supervisor died before it
could remove it, finds no other job of that name. Limits: of a folder that was put there by hand, and is not
taken up yet, nothing is said.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UnreadableRecordError
from runner.storage import durable, jsontext, records
from runner.storage.layout import SUBMITTED_MARK, Home

VERSION = 1
_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class RequestFile:
    """One request, as read."""

    path: Path
    verb: str
    name: str
    args: dict[str, Any] = field(default_factory=dict)
    submitted_at: str | None = None  #: of the job that is meant; None: of whichever has the name
    seen: str | None = None  #: what else tells which is meant, where that is not known


def submit_request(home: Home, verb: str, name: str, args: dict[str, Any] | None = None) -> Path:
    """Leave a request for the supervisor; return its file, which vanishes once it has been dealt with.

    Raises:
        OSError: the request could not be made durable.
    """
    durable.make_folder(home.requests)
    path = home.requests / f"{time.time_ns():020d}-{os.urandom(4).hex()}.json"
    value = {"version": VERSION, "verb": verb, "name": name, "args": args or {}}
    value["submitted_at"], value["seen"] = _which(home, name)
    with durable.replacing(path) as fd:
        os.fchmod(fd, 0o644)  # whatever the umask: the supervisor may be another user
        durable.write_all(fd, jsontext.encode(value))
    return path


def _which(home: Home, name: str) -> tuple[str | None, str | None]:
    """Return when the job was submitted, else what its folder or its damaged record shows."""
    record, mark = _shown_by(home, name)
    try:
        found = records.load_json(record).get("submitted_at")
    except FileNotFoundError:
        return None, _stamp(mark)
    except UnreadableRecordError:
        return None, _stamp(record)
    except OSError:
        return None, None
    return (found, None) if isinstance(found, str) else (None, _stamp(record))


def _shown_by(home: Home, name: str) -> tuple[Path, Path]:
    return home.job(name).record, home.folder(name) / SUBMITTED_MARK


def _stamp(path: Path) -> str | None:
    try:
        return f"{path.name} of {path.lstat().st_mtime_ns}"
    except OSError:
        return None


def means_another(home: Home, request: RequestFile) -> bool:
    """Tell whether what the request has `seen` of the job that it meant is there no more."""
    return request.seen is not None and request.seen not in map(_stamp, _shown_by(home, request.name))


def pending(home: Home, limit: int = 1000) -> list[Path]:
    """List the oldest `limit` request files, oldest first; what is no file is left alone."""
    try:
        with os.scandir(home.requests) as entries:
            found = [entry.name for entry in entries if _is_request(entry)]
    except FileNotFoundError:
        return []
    return [home.requests / name for name in sorted(found)[:limit]]


def _is_request(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and not entry.name.endswith(".tmp") and entry.is_file()
    except OSError:
        return False


def read(path: Path) -> RequestFile:
    """Read one request.

    Raises:
        UnreadableRecordError: it is not a request.
        FileNotFoundError: it is gone.
    """
    size = path.stat().st_size
    if size > _BYTES_MAX:
        raise UnreadableRecordError(f"{path}: a request of {size} bytes; at most {_BYTES_MAX} are read")
    value = records.load_json(path)
    version = value.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UnreadableRecordError(
            f"{path}: a request of version {version}; at most {VERSION} is understood"
        )
    verb, name, args = value.get("verb"), value.get("name"), value.get("args", {})
    if not isinstance(verb, str) or not isinstance(name, str) or not isinstance(args, dict):
        raise UnreadableRecordError(f"{path}: expected verb and name as strings and args as an object")
    which = [found if isinstance(found := value.get(key), str) else None for key in ("submitted_at", "seen")]
    return RequestFile(path, verb, name, args, *which)
