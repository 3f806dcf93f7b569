"""Every error that a person may see, as one tree.

An error's text is one line that names the thing, the path, what was expected and the remedy.

    RunnerError
    ├── UsageError              2  the command line is off
    ├── NoSuchJobError          3
    ├── DaemonNotRunningError   4  a daemon is needed and none runs
    ├── RefusedError            5  legal words, but not now
    │   └── AlreadyRunningError    another supervisor holds this home
    ├── BadJobError             1  job.toml or the job's folder cannot be accepted
    ├── MirrorError             1  a mirror does not give or take what it should, now
    │   └── ForeignMirrorError  5  a mirror holds what is not this job's
    └── StorageError            1  a file of ours
        ├── UnreadableRecordError  a record exists but cannot be read
        └── BadCheckpointError     a checkpoint fails its digest or has an unknown format
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """Something that a person can act on; its text is the whole message."""

    exit_code: ClassVar[int] = 1


class UsageError(RunnerError):
    """The command line is off."""

    exit_code = 2


class NoSuchJobError(RunnerError):
    """No job of that name is in this home."""

    exit_code = 3


class DaemonNotRunningError(RunnerError):
    """The command needs a running supervisor and there is none on this home."""

    exit_code = 4


class RefusedError(RunnerError):
    """The request is understood and cannot be granted in the job's present state."""

    exit_code = 5


class AlreadyRunningError(RefusedError):
    """Another supervisor holds this home."""


class BadJobError(RunnerError):
    """A job's folder or its job.toml cannot be accepted."""


class MirrorError(RunnerError):
    """A mirror cannot be reached, or does not do what is asked; later it may."""


class ForeignMirrorError(MirrorError):
    """A mirror holds another job's checkpoints, or another home has taken them over."""

    exit_code = 5


class StorageError(RunnerError):
    """A file of the runner's own could not be read or written."""


class UnreadableRecordError(StorageError):
    """A record is there but cannot be read; it is never replaced by an empty one."""


class BadCheckpointError(StorageError):
    """A checkpoint's bytes do not match its digest, or its format is unknown."""
