"""`events.jsonl`: append-only, one JSON object a line, numbered by `seq` without gaps.

The record's outbox makes it exactly-once: a turn's events are durable in the record first, then appended
here; after a crash in between, what the log lacks is appended from the outbox. A torn last line (a crash in
the middle of an append) is completed to a line of its own, so that it can be reported and is never glued to
the next event.

Limit: where a supervisor died between the write and the sync of a line and then the sync of its successor
fails too, a second try cannot tell whether the disk has the line.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.storage import durable, jsontext

_TAIL_BYTES = 64 * 1024
#: Read at once by `read_from`; it bounds what one turn of the supervisor takes in, and a single line.
READ_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Torn:
    """A line that is not a whole JSON object; `line` counts from 1."""

    line: int
    text: str


def append(path: Path, events: Sequence[dict[str, Any]]) -> None:
    """Append those of `events` that the log does not have yet, and make them durable.

    Raises:
        OSError: they could not be made durable; calling again later is safe.
    """
    if not events:
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        last = _last_seq(fd, size)
        fresh = [event for event in events if event["seq"] > last]
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        lines = [b"\n"] if fresh and torn else []
        lines += [jsontext.encode(event) + b"\n" for event in fresh]
        try:
            durable.write_all(fd, b"".join(lines))
            os.fdatasync(fd)  # also where nothing is fresh: whoever wrote it may have died before this
        except BaseException:
            # What failed to reach the disk must not be found here by the next try, and taken for durable.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
            raise
        if size == 0 or len(fresh) < len(events):
            durable.sync_folder(path.parent)
    finally:
        os.close(fd)


def read(path: Path) -> Iterator[dict[str, Any] | Torn]:
    """Yield the events in order; a line that is torn or damaged comes as `Torn` in its place."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, 1):
            event = _parse(line)
            yield (
                event if event is not None else Torn(number, line[:200].decode(errors="replace").rstrip("\n"))
            )


def read_from(path: Path, offset: int, size_max: int = READ_BYTES_MAX) -> tuple[list[dict[str, Any]], int]:
    """Read whole lines from byte `offset` on, at most `size_max` bytes; return them and the new offset.

    A line without its newline is left for the next call; one that is damaged, or longer than `size_max`, is
    passed over. What is no regular file, or cannot be read, has nothing new: others may write here.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size_max, offset) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0:
        return [], offset + (len(data) if len(data) >= size_max else 0)
    lines = (_parse(line) for line in data[:end].split(b"\n"))
    return [line for line in lines if line is not None], offset + end


def _last_seq(fd: int, size: int) -> int:
    """Return the number of the last whole event; the tail looked at grows until it holds one."""
    length = _TAIL_BYTES
    while True:
        tail = os.pread(fd, length, max(0, size - length))
        for line in reversed(tail.split(b"\n")):
            event = _parse(line)
            if event is not None and isinstance(event.get("seq"), int):
                return int(event["seq"])
        if length >= size:
            return 0
        length *= 4


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = jsontext.decode(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
