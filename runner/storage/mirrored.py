"""What of a job's state belongs on its mirror, and what the mirror is known to hold: `mirror/status.json`.

Read by everybody, written only by who holds the lock beside it: the process that copies, or one that fetches.
Every entry stands for a file that was read back from the medium and was what this home has.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UnreadableRecordError
from runner.storage import durable, records
from runner.storage.layout import JobPaths

VERSION = 1
CHECKPOINTS, BEST, METRICS = "checkpoints", "best", "metrics.jsonl"

_STEP = re.compile(rf"{CHECKPOINTS}/step-(\d{{12}})\.weights\.h5")
_PIN = re.compile(rf"{CHECKPOINTS}/step-(\d{{12}})\.weights\.h5\.pinned")
_ENDS = re.compile(rf"{CHECKPOINTS}/(fit|loop)-\d{{3,}}\.weights\.h5")
_BEGUN = re.compile(rf"{CHECKPOINTS}/fit-\d{{3,}}\.begun\.json")


@dataclass(frozen=True)
class Held:
    """A file that the mirror holds."""

    size_bytes: int
    stamp: tuple[int, int, int]  #: of the local file that it is a copy of: inode, time, size
    epoch: int | None = None  #: of a checkpoint


@dataclass(frozen=True)
class Status:
    """What is known of a job's mirror."""

    place: str = ""  #: the mirror's URL with the job's name; "" before it was used
    owner: str = ""  #: the name by which the mirror is this home's (see `core.mirroring`)
    fetching: bool = False  #: a fetch has begun and is not done
    strange: bool = False  #: it holds checkpoints that are not among `files`
    error: str = ""  #: why the last try failed; "" where it did not
    failing_since: str | None = None
    files: dict[str, Held] = field(default_factory=dict)  #: by name, such as "best/best.weights.h5"


def load(paths: JobPaths) -> Status:
    """Read a job's status; one that is missing or cannot be understood is that of a mirror never used."""
    try:
        value = records.load_json(paths.mirror_status)
        files = {
            str(name): Held(int(held["size_bytes"]), _stamp(held["stamp"]), held["epoch"])
            for name, held in value["files"].items()
        }
        since = value["failing_since"]
        return Status(
            place=str(value["place"]),
            owner=str(value["owner"]),
            fetching=bool(value["fetching"]),
            strange=bool(value["strange"]),
            error=str(value["error"]),
            failing_since=None if since is None else str(since),
            files=files,
        )
    except (OSError, UnreadableRecordError, KeyError, TypeError, ValueError, AttributeError):
        return Status()


def save(paths: JobPaths, status: Status) -> None:
    """Replace a job's status durably; raises OSError, also where the job's state is gone."""
    records.save_json(paths.mirror_status, {"version": VERSION, **asdict(status)})


def make_folder(paths: JobPaths) -> None:
    """Make the folder of the status; never the job's own, which may just have been removed."""
    if not paths.mirror.is_dir():
        paths.mirror.mkdir(exist_ok=True)
        durable.sync_folder(paths.dir)


def place(url: str, name: str) -> str:
    """Return where in a mirror a job's files lie."""
    return f"{url}/{name}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint; None for any other file."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def pinned_step(name: str) -> int | None:
    """Return the step that a mark pins; None for any other file."""
    match = _PIN.fullmatch(name)
    return int(match[1]) if match else None


def is_checkpoint(name: str) -> bool:
    """Tell whether training can go on from a file of that name."""
    return bool(_STEP.fullmatch(name) or _ENDS.fullmatch(name))


def belongs(name: str) -> bool:
    """Tell whether a file of that name is kept on a mirror."""
    if any(pattern.fullmatch(name) for pattern in (_STEP, _PIN, _ENDS, _BEGUN)) or name == METRICS:
        return True
    folder, _, file = name.partition("/")
    return folder == BEST and bool(file) and "/" not in file and not file.startswith(".")


def local(paths: JobPaths) -> dict[str, tuple[int, int, int]]:
    """List the committed files of a job that belong on its mirror, with their stamps."""
    found = {}
    names = [f"{folder}/{file}" for folder in (CHECKPOINTS, BEST) for file in _files(paths.dir / folder)]
    for name in (*names, METRICS):
        if belongs(name):
            try:
                status = os.lstat(paths.dir / name)
            except OSError:
                continue  # evicted meanwhile
            found[name] = stamp_of(status)
    return found


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return what tells one version of a local file from another."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def behind(paths: JobPaths, status: Status) -> list[str]:
    """List the committed files that the mirror does not hold as they are now; the metrics do not count."""
    now = local(paths)
    now.pop(METRICS, None)
    return [
        name for name, stamp in now.items() if name not in status.files or status.files[name].stamp != stamp
    ]


def must_fetch(paths: JobPaths, url: str, name: str) -> bool:
    """Tell whether a job has to look for its checkpoints on its mirror before it may train."""
    status = load(paths)
    if status.fetching:
        return True
    if any(map(is_checkpoint, local(paths))):
        return False
    known = status.place == place(url, name) and status.owner
    held = status.files.keys() - set(rejected(paths, status))
    return not known or status.strange or any(map(is_checkpoint, held))


def rejected(paths: JobPaths, status: Status) -> list[str]:
    """List the copies that the mirror holds of what was put aside here because of what it holds.

    Nobody shall go on from them in another home. What has the same name and was saved later is another file.
    """
    stamps = set()
    for path in paths.list_rejected():
        with contextlib.suppress(OSError):
            stamps.add(stamp_of(path.lstat()))
    return sorted(name for name, held in status.files.items() if held.stamp in stamps)


def _files(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stamp(value: Any) -> tuple[int, int, int]:
    inode, time_ns, size = (int(number) for number in value)
    return inode, time_ns, size
