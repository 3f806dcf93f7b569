"""A rehearsal of a job in a copy of its folder: run, watched, ended, and read from its worker's facts.

Nothing is left of it: no process, no file. Only what is too big to be copied is used in its place, by links.
Limits: a SIGKILL of this process leaves the copy, and the worker until its script ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.cli import staging
from runner.cli.logs import tail
from runner.core.exactness import Kind
from runner.core.job import Job, State
from runner.core.spec import JobSpec
from runner.errors import BadJobError
from runner.settings import envfile
from runner.storage import jsontext, records
from runner.storage.layout import AttemptPaths, Home, printable_name
from runner.supervisor import process
from runner.supervisor.launch import launch_plan

COPIED_BYTES_MAX = 1 << 30
_POLL_S = 0.05
#: How long a script may go on that trains where nothing can be looked at.
_UNWATCHED_S = 15.0
_LOG_LINES = 15
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class Finding:
    """What was learnt of one fit, or of one loop of the Python API."""

    fit: int
    what: str = "fit"
    where: str = ""  #: FILE:LINE of the call
    kind: str = ""  #: "" where the script ended before it was known
    reason: str = ""
    method: str = ""  #: how a resume gets to its place in the data
    replay: dict[str, Any] | None = None  #: what reading again costs
    missed: list[str] = field(default_factory=list)  #: what a checkpoint cannot hold

    @property
    def is_exact(self) -> bool:
        """Whether a resume ends as an undisturbed run."""
        return self.kind in {Kind.EXACT, Kind.BY_REPLAY}


@dataclass
class Report:
    """What a rehearsal found."""

    fits: list[Finding] = field(default_factory=list)
    unwatched: list[dict[str, str]] = field(default_factory=list)  #: training that the runner cannot keep
    warnings: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)  #: files that were too big to be copied
    ended: str = ""  #: how the script ended, where not well
    log: list[str] = field(default_factory=list)  #: its last lines then
    duration_s: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether there is training, and all of it ends as undisturbed however often it is killed."""
        seen = bool(self.fits) and not self.unwatched and not self.ended
        return seen and all(finding.is_exact for finding in self.fits)


@dataclass
class Checkup:
    """One rehearsal."""

    folder: Path
    spec: JobSpec
    seed: int
    timeout_s: float
    verbose: bool = False

    def run(self) -> Report:
        """Rehearse the job, and say what was found.

        Raises:
            BadJobError: something in its folder cannot be copied faithfully.
            KeyboardInterrupt: this process was asked to end.
        """
        began = time.monotonic()
        root = Path(tempfile.mkdtemp(prefix="runner-doctor-")).resolve()
        with _ending(), _nothing_left(root):
            report = self._rehearse(Home(root))
        report.duration_s = time.monotonic() - began
        return report

    def _rehearse(self, home: Home) -> Report:
        name = printable_name(self.folder.resolve().name)
        home.create()
        linked = staging.copy_to_try(self.folder, home.folder(name), COPIED_BYTES_MAX)
        threads = len(os.sched_getaffinity(0))
        job = Job(name, State.RUNNING, "", 0, spec=self.spec, seed=self.seed, threads=threads, attempt=1)
        attempt = home.job(name).attempt(1)
        attempt.dir.mkdir(parents=True)
        plan = {**launch_plan(home, job), "rehearse": True}
        records.save_json(attempt.launch, plan, durably=False)
        ended = self._watch(plan, attempt)
        report = read(attempt.facts)
        report.linked = [str(path) for path in linked]
        if ended:
            report.ended, report.log = ended, tail(attempt.log, _LOG_LINES)
        return report

    def _watch(self, plan: dict[str, Any], attempt: AttemptPaths) -> str:
        """Let the worker run; return how it ended, "" where well."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
        secrets = _secrets(plan)
        with attempt.log.open("ab") as log:
            worker = subprocess.Popen(
                plan["argv"],
                cwd=plan["cwd"],
                env={**environ, "PYTHONDONTWRITEBYTECODE": "1", **secrets, **plan["env"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            with attempt.log.open("rb") as log:
                return self._wait(worker, attempt, _Echo(log) if self.verbose else None)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    def _wait(self, worker: subprocess.Popen[bytes], attempt: AttemptPaths, echo: _Echo | None) -> str:
        over_s = time.monotonic() + self.timeout_s
        size, news_s = -1, 0.0
        while worker.poll() is None:
            now_s = time.monotonic()
            if now_s > over_s:
                return f"it was ended after {self.timeout_s:g} s; more with --timeout"
            length = attempt.facts.stat().st_size if attempt.facts.exists() else 0
            if length != size:
                size, news_s = length, now_s
            elif now_s - news_s > _UNWATCHED_S and read(attempt.facts).unwatched:
                return f"it was ended after {_UNWATCHED_S:g} s in which nothing could be learnt"
            if echo is not None:
                echo.copy()
            time.sleep(_POLL_S)
        if echo is not None:
            echo.copy()
        code = worker.returncode
        if code < 0:
            return f"the script was killed by signal {-code}"
        return f"the script failed with exit code {code}" if code else ""


class _Echo:
    """Copies the script's output to stderr as it comes."""

    def __init__(self, log: Any):
        self._log = log

    def copy(self) -> None:
        """Copy what is new."""
        sys.stderr.write(self._log.read().decode(errors="replace"))
        sys.stderr.flush()


def read(facts: Path) -> Report:
    """Return what a worker's facts say."""
    report = Report()
    found: dict[int, Finding] = {}
    for fact in _facts(facts):
        kind = fact.get("event")
        one = found.setdefault(fact["fit"], Finding(fact["fit"])) if "fit" in fact else None
        if kind == "warning":
            _read_warning(report, one, fact)
        elif one is not None and kind == "rehearsing":
            one.what, one.where = fact["what"], fact["where"]
        elif one is not None and kind == "classified":
            one.kind, one.reason = fact["kind"], fact["reason"]
        elif one is not None and kind == "rehearsed":
            one.method, one.replay = fact["method"], fact["replay"]
    report.fits = [found[number] for number in sorted(found)]
    return report


def _read_warning(report: Report, one: Finding | None, fact: dict[str, Any]) -> None:
    if one is not None and "missed" in fact:
        one.missed.append(fact["missed"])
    elif fact.get("unwatched"):
        text = {"what": fact.get("what", ""), "where": fact.get("where", ""), "reason": fact["message"]}
        report.unwatched.append(text)
    else:
        report.warnings.append(fact["message"])


def _facts(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts; a last line may be unfinished."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        if line.endswith(b"\n"):
            yield jsontext.decode(line)


def _secrets(plan: dict[str, Any]) -> dict[str, str]:
    """Return what the job's env_file sets, as its shim would read it.

    Raises:
        BadJobError: it cannot be taken.
    """
    if not plan["env_file"]:
        return {}
    try:
        return envfile.read(str(Path(plan["cwd"], plan["env_file"])), plan["env_file"])
    except envfile.SecretsError as error:
        raise BadJobError(f"env_file {error}") from None


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Let a request to end undo what was begun, as an interrupt does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _nothing_left(root: Path) -> Iterator[None]:
    """Remove the copy, and whatever the script has left running."""
    try:
        yield
    finally:
        for pid in process.carrying(("RUNNER_HOME", str(root))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)
