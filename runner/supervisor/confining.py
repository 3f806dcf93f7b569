"""`supervise --isolate`: each job writes in its own folders alone, whether its job.toml asks for that or not.

What its job.toml names besides (`isolation.write`) it may write to as well, but nothing that another job of
the home has; a folder for its mirror has to lie where no job writes. Limits: this is about files (see
`landlock`); all jobs are still one user's processes.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runner.core.job import Job
from runner.core.spec import IsolationSpec
from runner.errors import UsageError
from runner.storage.layout import Home
from runner.supervisor import landlock


def check(home: Home) -> None:
    """See that isolation protects the jobs of this home.

    Raises:
        UsageError: it does not: the kernel cannot do it, or any program may write where the home is.
    """
    if landlock.version(ctypes.CDLL(None)) < landlock.REFER_SINCE:
        raise UsageError("--isolate needs Landlock (Linux 5.19 or newer, lsm=); run without it")
    for folder in map(Path, landlock.usual()):
        for own in (home.root, home.jobs, home.state):
            if _real(own).is_relative_to(_real(folder)):
                raise UsageError(
                    f"--isolate protects nothing in {own}: every job may write below {folder};"
                    " put the home elsewhere (or TMPDIR, where it is that)"
                )


def confined(home: Home, job: Job) -> Job:
    """Return the record as its attempt is to be started.

    Raises:
        OSError: its job.toml wants to write, or to have its mirror, where other jobs have their files.
    """
    roots = [_real(folder) for folder in (home.root, home.jobs, home.state)]
    write = [_real(path) for path in job.spec.isolation.write or ()]
    for path, folder in zip(job.spec.isolation.write or (), write, strict=True):
        if _meet([folder], roots):
            raise OSError(f"isolation.write names {path}, where other jobs have their files")
    mirror = urlsplit(job.spec.checkpoint.mirror or "")
    # Nobody confines who copies there: no job may put a link in its way.
    links = [*roots[1:], *write, *map(_real, landlock.usual())]
    if mirror.scheme == "file" and _meet([_real(unquote(mirror.path))], links):
        raise OSError(f"checkpoint.mirror is in {mirror.path}, where this or other jobs may write")
    return replace(job, spec=replace(job.spec, isolation=IsolationSpec(write=tuple(map(str, write)))))


def _meet(some: list[Path], others: list[Path]) -> bool:
    """Tell whether one of these folders holds, or is, one of those."""
    return any(a.is_relative_to(b) or b.is_relative_to(a) for a in some for b in others)


def _real(path: Path | str) -> Path:
    """Return where a path leads; links in a circle raise nothing, unlike in `Path.resolve`."""
    return Path(os.path.realpath(path))
