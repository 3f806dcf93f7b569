"""What `faults` fails and kills: `victim.py ROOT SCENARIO FOLDER`."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, sys.argv[1])

from runner.storage import durable, eventlog

FOLDER = Path(sys.argv[3])
TARGET = FOLDER / "target"
NEW = b"new" * 1000
EVENTS = [{"seq": seq, "event": f"number {seq}"} for seq in range(1, 6)]


def replaced_twice_when_told_of_an_error() -> None:
    with suppress(OSError):
        durable.write(TARGET, NEW)
    durable.write(TARGET, NEW)


def moved() -> None:
    durable.move(FOLDER / ".staged", FOLDER / "moved")


def appended_again_when_told_of_an_error() -> None:
    try:
        eventlog.append(FOLDER / "events.jsonl", EVENTS)
    except OSError:
        eventlog.append(FOLDER / "events.jsonl", EVENTS)


def control_in_place() -> None:
    fd = os.open(TARGET, os.O_WRONLY | os.O_TRUNC)
    for part in (NEW[:1000], NEW[1000:]):
        durable.write_all(fd, part)
    os.fsync(fd)
    os.close(fd)


def control_deaf() -> None:
    """Rename whatever became of the writing."""
    temporary = FOLDER / "temporary"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        os.write(fd, NEW)
        os.fsync(fd)
    os.close(fd)
    temporary.rename(TARGET)


def control_careless() -> None:
    """Leave the temporary file where something fails, under a new name each time."""
    temporary = FOLDER / f"{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT)
    os.write(fd, NEW)
    os.fsync(fd)
    os.close(fd)
    temporary.rename(TARGET)
    durable.sync_folder(FOLDER)


def control_glued() -> None:
    """Append without a look at what is there."""
    with (FOLDER / "events.jsonl").open("ab", buffering=0) as log:
        for event in EVENTS:
            log.write(eventlog.jsontext.encode(event) + b"\n")


SCENARIOS: dict[str, Callable[[], object]] = {
    "write": lambda: durable.write(TARGET, NEW),
    "publish": lambda: durable.publish(TARGET, NEW),
    "link": lambda: durable.link(FOLDER / "link", "new"),
    "move": moved,
    "make_folder": lambda: durable.make_folder(FOLDER / "a" / "b"),
    "write again": replaced_twice_when_told_of_an_error,
    "append": lambda: eventlog.append(FOLDER / "events.jsonl", EVENTS),
    "append again": appended_again_when_told_of_an_error,
    "in place": control_in_place,
    "deaf": control_deaf,
    "careless": control_careless,
    "glued": control_glued,
}


def main() -> int:
    scenario = SCENARIOS[sys.argv[2]]
    os.access("mark: begin", os.F_OK)
    code = 0
    try:
        scenario()
    except OSError:
        code = 3
    os.access("mark: end", os.F_OK)
    return code


os._exit(main())
