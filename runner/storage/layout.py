"""Where everything lies: the only module that knows a path.

A home holds `jobs/` (written by people) and `state/` (written by the runner); see README, "The state folder".
Each file has one writer, named in the comments here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

from runner.core.spec import NAME_PATTERN

#: In a job's folder when `submit` put it there whole: it need not be waited for to become quiet.
#: Holds {"version": 1, "source": "NAME@STEP" or null}.
SUBMITTED_MARK = ".submitted.json"
#: In a job's folder when it shall start from another job's checkpoint: a copy of that file.
START_FROM = ".from.weights.h5"

_NAME = re.compile(NAME_PATTERN)
_PRINTED = re.compile(rf"{NAME_PATTERN}|[A-Za-z0-9_-]*%[A-Za-z0-9%_~-]*")
_CHECKPOINT = re.compile(r"step-(\d{12})\.weights\.h5")
_FIT = re.compile(r"fit-(\d{3,})\.weights\.h5")
_REJECTED = re.compile(r"(?:\d+-)?rejected-.+\.weights\.h5")
_ATTEMPT = re.compile(r"\d{4,}")
#: Longest printed name: with the marks of a temporary file it still is a file name.
_PRINTED_MAX = 200


def is_job_name(name: str) -> bool:
    """Tell whether `name` may be a job's."""
    return _NAME.fullmatch(name) is not None and not name.endswith(".tmp")


def printable_name(folder: str) -> str:
    """Give a folder of any name a printable, unique one; a valid job name is its own.

    Other names are percent-encoded byte by byte, and a valid name holds no `%`: the two never meet. What is
    too long for a file name then is cut, and told apart by a digest after a `~`, which nothing else holds.
    """
    if is_job_name(folder):
        return folder
    raw = os.fsencode(folder)
    quoted = quote_from_bytes(raw, safe="").replace(".", "%2E").replace("~", "%7E")
    if "%" not in quoted or quoted[0] in "-_":  # nor may it look like an option
        quoted = f"%{raw[0]:02X}{quoted[1:]}"
    if len(quoted) <= _PRINTED_MAX:
        return quoted
    return quoted[: _PRINTED_MAX - 17] + "~" + hashlib.sha256(raw).hexdigest()[:16]


def find_home(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """Choose the home folder.

    It is `--home`, else `$RUNNER_HOME`, else the nearest folder upward that holds both `jobs/` and `state/`,
    else `$XDG_STATE_HOME/training-runner`.
    """
    if explicit is not None:
        return explicit.absolute()
    if environ.get("RUNNER_HOME"):
        return Path(environ["RUNNER_HOME"]).absolute()
    for folder in (cwd, *cwd.parents):
        if (folder / "jobs").is_dir() and (folder / "state").is_dir():
            return folder
    base = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "training-runner"


def rejected_name(name: str) -> str:
    """Return the name in quarantine of a file that is put aside because of what it holds."""
    return f"rejected-{name}"


@dataclass(frozen=True)
class AttemptPaths:
    """One attempt's folder, `state/NAME/attempts/0001/`."""

    dir: Path

    @property
    def launch(self) -> Path:
        """What to run and how; writer: supervisor, before the attempt starts."""
        return self.dir / "launch.json"

    @property
    def shim(self) -> Path:
        """Identities of the shim and of the worker; writer: shim."""
        return self.dir / "shim.json"

    @property
    def log(self) -> Path:
        """Stdout and stderr of the worker; writer: shim (it owns the open file)."""
        return self.dir / "log"

    @property
    def outcome(self) -> Path:
        """How the worker ended; writer: shim."""
        return self.dir / "outcome.json"

    @property
    def imported(self) -> Path:
        """What the script has imported, for a spare to import too; writer: worker."""
        return self.dir / "imported.json"

    @property
    def stacks(self) -> Path:
        """Evidence taken before a kill; writer: shim (through the worker's faulthandler)."""
        return self.dir / "stacks.txt"

    @property
    def evidence(self) -> Path:
        """What else is known of an attempt that hung: open files, memory, last metrics; writer: shim."""
        return self.dir / "evidence.txt"

    @property
    def stuck(self) -> Path:
        """What SIGKILL has not ended, for as long as that lasts; writer: shim."""
        return self.dir / "stuck.json"

    @property
    def facts(self) -> Path:
        """What the worker reports, one JSON a line, relayed to events.jsonl; writer: worker."""
        return self.dir / "facts.jsonl"


@dataclass(frozen=True)
class JobPaths:
    """One job's state folder, `state/NAME/`."""

    dir: Path

    @property
    def record(self) -> Path:
        """The durable truth; writer: supervisor."""
        return self.dir / "job.json"

    @property
    def events(self) -> Path:
        """Every transition and notable fact; writer: supervisor."""
        return self.dir / "events.jsonl"

    @property
    def progress(self) -> Path:
        """Where training is, at most once a second; writer: worker."""
        return self.dir / "progress.json"

    @property
    def metrics(self) -> Path:
        """One line an epoch; writer: worker."""
        return self.dir / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the periodic checkpoints; writer: worker."""
        return self.dir / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of the best models; writer: worker."""
        return self.dir / "best"

    @property
    def quarantine(self) -> Path:
        """Folder of what failed verification, each with its reason beside it; writer: worker."""
        return self.dir / "quarantine"

    def list_rejected(self) -> list[Path]:
        """List what was put aside because of what it holds, though it is as it was written."""
        return [path for path in _entries(self.quarantine) if _REJECTED.fullmatch(path.name)]

    @property
    def attempts(self) -> Path:
        """Folder of the attempts."""
        return self.dir / "attempts"

    @property
    def current(self) -> Path:
        """Link to the newest attempt; writer: supervisor."""
        return self.dir / "current"

    @property
    def lock(self) -> Path:
        """Held (flock) by the shim as long as an attempt's processes may live."""
        return self.dir / ".lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held (flock) by a supervisor that serves this one job (`runner run`)."""
        return self.dir / ".supervisor.lock"

    @property
    def mirror(self) -> Path:
        """Folder of what is known of the job's mirror; writer: who holds the lock in it."""
        return self.dir / "mirror"

    @property
    def mirror_status(self) -> Path:
        """What the mirror holds, and what went wrong last."""
        return self.mirror / "status.json"

    @property
    def mirror_facts(self) -> Path:
        """What the mirror's process reports, one JSON a line, relayed to events.jsonl."""
        return self.mirror / "facts.jsonl"

    @property
    def mirror_lock(self) -> Path:
        """Held (flock) by the process that copies to or from the job's mirror."""
        return self.mirror / ".lock"

    @property
    def spare(self) -> AttemptPaths:
        """Folder of the spare that waits: an attempt without a number; its log, and who it is."""
        return AttemptPaths(self.dir / "spare")

    def attempt(self, number: int) -> AttemptPaths:
        """Return the folder of attempt `number`, counted from 1."""
        return AttemptPaths(self.attempts / f"{number:04d}")

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint taken after `step` completed steps."""
        return self.checkpoints / f"step-{step:012d}.weights.h5"

    def list_checkpoints(self) -> list[tuple[int, Path]]:
        """List (step, path), oldest first; other files are not looked at."""
        found = []
        for path in _entries(self.checkpoints):
            match = _CHECKPOINT.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found)

    def pin(self, step: int) -> Path:
        """Return the mark by which the checkpoint of `step` is kept; writer: `checkpoints --pin`."""
        path = self.checkpoint(step)
        return path.with_name(f"{path.name}.pinned")

    def fit(self, number: int) -> Path:
        """Return what is kept of the end of fit `number`, counted from 0."""
        return self.checkpoints / f"fit-{number:03d}.weights.h5"

    def begun(self, number: int) -> Path:
        """Return what is kept of the files of callbacks when fit `number` began; writer: worker."""
        return self.checkpoints / f"fit-{number:03d}.begun.json"

    def loop(self, number: int) -> Path:
        """Return what is kept of loop `number` when it is over: a moment shortly before its end."""
        return self.checkpoints / f"loop-{number:03d}.weights.h5"

    def list_fits(self) -> list[tuple[int, Path]]:
        """List (number, path) of the fits that are over, oldest first."""
        found = [(_FIT.fullmatch(path.name), path) for path in _entries(self.checkpoints)]
        return sorted((int(match[1]), path) for match, path in found if match)


@dataclass(frozen=True)
class Home:
    """A home folder."""

    root: Path

    @property
    def jobs(self) -> Path:
        """What shall run; written by people and by `submit`."""
        return self.root / "jobs"

    @property
    def requests(self) -> Path:
        """The command line's requests to the supervisor, a file each."""
        return self.jobs / ".requests"

    @property
    def state(self) -> Path:
        """What happened; written by the runner."""
        return self.root / "state"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one supervisor of this home."""
        return self.state / ".supervisor.lock"

    @property
    def supervisor(self) -> Path:
        """Identity of the running supervisor; writer: supervisor."""
        return self.state / ".supervisor.json"

    @property
    def mirror_lock(self) -> Path:
        """Held (flock) by the one process that copies this home's checkpoints to their mirrors."""
        return self.state / ".mirror.lock"

    def folder(self, name: str) -> Path:
        """Return the folder that was submitted as job `name`: the worker's working directory."""
        return self.jobs / name

    def job(self, name: str) -> JobPaths:
        """Return the state folder of job `name`, as printed; any other string leads to no job's folder."""
        printed = _PRINTED.fullmatch(name) is not None
        return JobPaths(self.state / (name if printed else printable_name(name)))

    def create(self) -> None:
        """Make the folders of the home that are missing."""
        for folder in (self.jobs, self.requests, self.state):
            folder.mkdir(parents=True, exist_ok=True)

    def submitted(self) -> Iterator[str]:
        """Yield the names of the folders in `jobs/`, dot-names and `*.tmp` left out."""
        try:
            with os.scandir(self.jobs) as entries:  # it knows which are folders: none is looked at
                found = [entry.name for entry in entries if _is_taken_up(entry.name) and is_folder(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from sorted(found)

    def submitted_as(self, name: str) -> Iterator[Path]:
        """Yield the folder in `jobs/` that job `name` (as printed) stands for, where it is there."""
        if is_job_name(name):
            if _is_there(self.folder(name)):
                yield self.folder(name)
            return
        for path in _entries(self.jobs):
            if printable_name(path.name) == name and not path.name.startswith("."):
                yield path

    def recorded(self) -> Iterator[str]:
        """Yield the names (as printed) of the jobs that have a state folder with a record."""
        record = JobPaths(Path()).record.name
        for name in sorted(_names(self.state)):
            if not name.startswith(".") and _is_there(f"{self.state}/{name}/{record}"):
                yield name


def attempt_numbers(attempts: Path) -> list[int]:
    """List the numbers of the attempts that have a folder, ascending."""
    return sorted(int(name) for name in _names(attempts) if _ATTEMPT.fullmatch(name))


def _is_there(path: Path | str) -> bool:
    """Tell whether something has that name; what cannot be looked at is there, for the reader to report."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_taken_up(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".tmp")


def is_folder(path: Path | os.DirEntry[str]) -> bool:
    """Tell whether it is a folder; what cannot even be looked at is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _names(folder: Path) -> list[str]:
    """List a folder's entries, in no order; one that is missing has none."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - of ten thousand a path each is what takes the time
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
