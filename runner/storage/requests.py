"""Requests of the command line to the supervisor: a file each in `jobs/.requests/`, staged and renamed.

A request works while no supervisor runs, and takes effect when one does. Files are named by the time of
asking, so that they are taken in order; the supervisor removes each when it has been carried out or refused.
Each says when the job that is meant was submitted, where it has a record: one that is carried out again, as
its supervisor died before it could remove it, finds no other job of that name.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UnreadableRecordError
from runner.storage import durable, jsontext, records
from runner.storage.layout import Home

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


def submit_request(home: Home, verb: str, name: str, args: dict[str, Any] | None = None) -> Path:
    """Leave a request for the supervisor; return its file, which vanishes once it has been dealt with.

    Raises:
        OSError: the request could not be made durable.
    """
    durable.make_folder(home.requests)
    path = home.requests / f"{time.time_ns():020d}-{os.urandom(4).hex()}.json"
    value = {"version": VERSION, "verb": verb, "name": name, "args": args or {}}
    value["submitted_at"] = _submitted_at(home, name)
    with durable.replacing(path) as fd:
        os.fchmod(fd, 0o644)  # whatever the umask: the supervisor may be another user
        durable.write_all(fd, jsontext.encode(value))
    return path


def _submitted_at(home: Home, name: str) -> str | None:
    try:
        found = records.load_json(home.job(name).record).get("submitted_at")
    except (OSError, UnreadableRecordError):
        return None
    return found if isinstance(found, str) else None


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
    submitted_at = value.get("submitted_at")
    return RequestFile(path, verb, name, args, submitted_at if isinstance(submitted_at, str) else None)
