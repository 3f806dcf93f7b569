"""`supervise --isolate`: each job writes in its own folders alone, whether its job.toml asks for that or not.

What its job.toml names besides (`isolation.write`) it may write to as well, but nothing that another job of
the home has. Limits: this is about files (see `landlock`); all jobs are still one user's processes.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path

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
        if _real(home.root).is_relative_to(_real(folder)):
            raise UsageError(
                f"--isolate protects nothing in {home.root}: every job may write below {folder};"
                " put the home elsewhere (or TMPDIR, where it is that)"
            )


def confined(home: Home, job: Job) -> Job:
    """Return the record as its attempt is to be started.

    Raises:
        OSError: its job.toml wants to write where other jobs have their files.
    """
    root = _real(home.root)
    folders = [(path, _real(path)) for path in job.spec.isolation.write or ()]
    for path, folder in folders:
        if folder.is_relative_to(root) or root.is_relative_to(folder):
            raise OSError(f"isolation.write names {path}, where other jobs have their files")
    write = tuple(str(folder) for _, folder in folders)
    return replace(job, spec=replace(job.spec, isolation=IsolationSpec(write=write)))


def _real(path: Path | str) -> Path:
    """Return where a path leads; links in a circle raise nothing, unlike in `Path.resolve`."""
    return Path(os.path.realpath(path))
