"""Records: `job.json` and the small JSON files beside it, written durably and read back strictly.

A record that is there but cannot be read is an error that names it; it is never taken for an empty one.
`job.json` ends with a digest of everything before it: JSON alone would not notice a changed letter, and a
field of which the name is damaged would silently be its default again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.job import RECORD_VERSION, Job
from runner.errors import UnreadableRecordError
from runner.storage import durable, jsontext

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: No record of ours comes near this; a larger file is not read into memory.
RECORD_BYTES_MAX = 16 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SEAL = b',\n "sha256": "'
_END = b'"\n}\n'


@cache
def _jobs() -> TypeAdapter[Job]:
    from pydantic import TypeAdapter  # 0.1 s that commands which only look need not pay

    return TypeAdapter(Job)


def save_job(path: Path, job: Job) -> None:
    """Replace the record at `path` durably; its folder is made where it is missing.

    Raises:
        OSError: it could not be made durable.
    """
    durable.make_folder(path.parent)
    body = jsontext.encode(_jobs().dump_python(job), indent=1).removesuffix(b"\n}")
    durable.write(path, body + _SEAL + _digest(body) + _END)


def load_job(path: Path) -> Job:
    """Read the record at `path`.

    Raises:
        FileNotFoundError: there is none.
        UnreadableRecordError: it is damaged, or of a newer version.
    """
    data = read_bounded(path)
    try:
        return _parse_job(data)
    except ValueError as error:
        raise UnreadableRecordError(
            f"{path}: {error}; restore it from a backup, or `runner rm` the job"
        ) from None


def _parse_job(data: bytes) -> Job:
    from pydantic import ValidationError

    try:
        value = jsontext.decode(data)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > RECORD_VERSION:
        raise ValueError(f"was written by a newer runner (record version {version})")
    body, _, seal = data.rpartition(_SEAL)
    if seal != _digest(body) + _END:
        raise ValueError("damaged: it does not match the sha256 at its end")
    try:
        return _jobs().validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ValueError(f"cannot be read: {place}: {first['msg']}") from None


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def save_json(path: Path, value: dict[str, Any], *, durably: bool = True) -> None:
    """Write a small JSON object, atomically, and durably unless told otherwise."""
    data = jsontext.encode(value, indent=1) + b"\n"
    if durably:
        durable.write(path, data)
    else:
        durable.publish(path, data)


def load_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        FileNotFoundError: there is none.
        UnreadableRecordError: it is not a JSON object.
    """
    data = read_bounded(path)
    try:
        value = jsontext.decode(data)
    except ValueError as error:
        raise UnreadableRecordError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnreadableRecordError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_bounded(path: Path, size_max: int = RECORD_BYTES_MAX) -> bytes:
    """Read a file that must be small.

    Raises:
        FileNotFoundError: there is none.
        UnreadableRecordError: it is too large, no regular file, or not readable.
    """
    try:
        # Looked at once it is open: another process may replace it meanwhile. A FIFO does not block this way.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise UnreadableRecordError(f"{path}: expected a regular file")
            data = _read_all(fd, about.st_size, size_max + 1)
        finally:
            os.close(fd)
    except (PermissionError, IsADirectoryError) as error:
        raise UnreadableRecordError(f"{path}: {error.strerror}") from None
    if len(data) > size_max:
        raise UnreadableRecordError(f"{path}: larger than {size_max} bytes; not one of ours")
    return data


def _read_all(fd: int, expected: int, size_max: int) -> bytes:
    """Read to the end of the file, `size_max` bytes at most; `expected`: what it is thought to hold."""
    data = os.read(fd, min(expected + 1, size_max))
    while len(data) < size_max and (more := os.read(fd, min(_READ_BYTES, size_max - len(data)))):
        data += more
    return data
