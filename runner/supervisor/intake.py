"""What comes in through `jobs/`: folders to accept or reject, and requests."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from runner.core.job import Job, Moment, State
from runner.core.spec import JobSpec
from runner.core.table import publish
from runner.errors import BadJobError, UnreadableRecordError
from runner.settings import load_spec
from runner.storage import records
from runner.storage.layout import SUBMITTED_MARK, Home, is_job_name, printable_name

log = logging.getLogger(__name__)

#: A folder dropped in by hand is taken up when nothing in it changed for this long.
QUIET_S = 1.0
#: Entries looked at to tell whether a folder is quiet; beyond them it is taken for quiet.
_ENTRIES_MAX = 5000


def is_quiet(folder: Path, now_s: float) -> bool:
    """Tell whether `folder` is whole: submitted, or unchanged for a second (`now_s` since the epoch)."""
    if (folder / SUBMITTED_MARK).exists():
        return True
    for number, changed_s in enumerate(_changes(folder)):
        if now_s - QUIET_S < changed_s <= now_s + 60:
            return False
        if number >= _ENTRIES_MAX:
            break
    return True


def _changes(folder: Path) -> Iterator[float]:
    stack = [folder]
    while stack:
        current = stack.pop()
        try:
            yield current.lstat().st_ctime
            entries = list(os.scandir(current))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                stack.append(Path(entry.path))
            else:
                try:
                    yield entry.stat(follow_symlinks=False).st_ctime
                except OSError:
                    continue


def take_up(home: Home, folder: str, order: int, moment: Moment) -> Job:
    """Make a record of a folder in `jobs/`: queued, or rejected with the reason."""
    name = printable_name(folder)
    try:
        spec = _spec(home, folder)
    except BadJobError as error:
        job = Job(name, State.REJECTED, moment.iso, order, reason=str(error), finished_at=moment.iso)
        return publish(job, moment, State.REJECTED.value, reason=str(error))
    job = Job(
        name,
        State.QUEUED,
        moment.iso,
        order,
        spec,
        seed=spec.seed if spec.seed is not None else secrets.randbits(31),
        threads=len(os.sched_getaffinity(0)),
        source=_source(home.folder(name)),
    )
    return publish(job, moment, State.QUEUED.value, seed=job.seed, threads=job.threads)


def _spec(home: Home, folder: str) -> JobSpec:
    if not is_job_name(folder):
        raise BadJobError(
            f"jobs/{printable_name(folder)}: not a name for a job; expected letters, digits, '.', '_' "
            "and '-', at most 64, the first a letter or digit; rename the folder"
        )
    path = home.folder(folder)
    if path.is_symlink():
        raise BadJobError(f"jobs/{folder}: a symbolic link; expected a folder: `runner submit` copies one")
    return load_spec(path)


def _source(folder: Path) -> str | None:
    try:
        source = records.load_json(folder / SUBMITTED_MARK).get("source")
    except (OSError, UnreadableRecordError):
        return None
    return source if isinstance(source, str) else None


def load_again(home: Home, name: str) -> JobSpec:
    """Read the settings of a job that shall run again, as its folder has them now.

    Raises:
        BadJobError: they cannot be accepted, or the folder is gone.
    """
    if not home.folder(name).is_dir():
        raise BadJobError(f"jobs/{name}: the folder is gone; submit it again")
    return _spec(home, name)


def unclaimed(home: Home, known: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield (folder, quiet) of every folder in `jobs/` that no job in `known` stands for."""
    now_s = time.time()
    for folder in home.submitted():
        if printable_name(folder) not in known:
            yield folder, is_quiet(home.jobs / folder, now_s)
