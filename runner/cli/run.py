"""`runner run`: one job to its end, in the foreground."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from runner.cli import facts, staging
from runner.cli.display import Display, open_display
from runner.cli.logs import tail
from runner.cli.options import HomeOption, open_home
from runner.cli.private import Private
from runner.cli.status import best
from runner.cli.submit import DirArgument, NewNameOption, check_folder, is_in_place
from runner.cli.watching import Watch
from runner.core.events import Request
from runner.core.job import State
from runner.errors import RefusedError
from runner.settings import load_spec
from runner.storage import lock, requests
from runner.storage.layout import Home

_POLL_S = 0.1
_LOG_LINES = 15
#: The process that copies is up within this time.
_COPIER_S = 5.0
EXIT_PAUSED = 130  # 128 + SIGINT
#: What makes a job run that does not.
_REMEDY = {
    State.PAUSED: Request.RESUME,
    State.STOPPING: Request.RESUME,
    State.FAILED: Request.RETRY,
    State.CANCELLED: Request.RETRY,
    State.REJECTED: Request.RETRY,
}


def command(folder: DirArgument, name: NewNameOption = None, home: HomeOption = None) -> None:
    """Train one job to its end, in the foreground.

    Ctrl-C lets it checkpoint and holds it; the same command again resumes it.
    """
    where = open_home(home)
    check_folder(folder)
    name = prepare(where, folder, name)
    job = facts.gather(where, name)
    if job["state"] == State.SUCCEEDED:
        print(f"{name}: has succeeded already; to train anew: --name OTHER, or runner rm {name}")
        return
    print(f"{name}: state in {where.job(name).dir}")
    with _interrupts() as asked, open_display() as display:
        job = _Foreground(where, name, display).run(asked)
        job = wait_mirrored(where, job, display, asked)
    raise typer.Exit(_farewell(where, folder, job))


def prepare(home: Home, folder: Path, name: str | None) -> str:
    """Make sure that the job is in the home; return its name.

    Raises:
        RefusedError: another job has the name.
    """
    if is_in_place(home, folder) and name in {None, folder.resolve().name}:
        name = staging.check_name(folder.resolve().name)
        load_spec(folder)
        return name
    name = staging.check_name(folder.resolve().name if name is None else name)
    if not staging.is_taken(home, name):
        staging.submit(home, folder, name)
    elif not staging.is_same(home, folder, name):
        raise RefusedError(
            f"{name}: there is a job of that name from other content; choose another with --name, "
            f"or forget it: runner rm {name}"
        )
    return name


class _Foreground:
    """Sees to it that the job runs, shows it, and asks it to pause when interrupted."""

    def __init__(self, home: Home, name: str, display: Display) -> None:
        self._home = home
        self._name = name
        self._display = display
        self._watch = Watch(home, name, display)
        self._request: Path | None = None
        self._private = Private(home, name)

    def run(self, asked: list[int]) -> dict[str, Any]:
        """Return the job's facts once it has ended or is held, or at a second interrupt."""
        remedy = _REMEDY.get(facts.state_of(self._home, self._name))
        if remedy is not None:
            self._ask(remedy)
        paused = False
        try:
            while True:
                job = self._turn()
                if self._has_come_to_rest(job) or len(asked) > 1:
                    return job
                if asked and not paused:
                    paused = True
                    self._display.say(
                        f"{self._name}: pausing: checkpoints, then stops (again: leave at once)"
                    )
                    self._ask(Request.PAUSE)
                time.sleep(_POLL_S)
        finally:
            if len(asked) <= 1:
                self._private.close()

    def _turn(self) -> dict[str, Any]:
        if not self._has_come_to_rest(facts.gather(self._home, self._name)):
            self._private.keep()
        return self._watch.look()

    def _ask(self, request: Request) -> None:
        self._request = requests.submit_request(self._home, request.value, self._name)

    def _has_come_to_rest(self, job: dict[str, Any]) -> bool:
        if self._request is not None and self._request.exists():
            return False  # what was asked has yet to take effect
        return facts.is_settled(job) or job["state"] == State.PAUSED


def wait_mirrored(home: Home, job: dict[str, Any], display: Display, asked: list[int]) -> dict[str, Any]:
    """Wait until the job's mirror has all that was saved, unless it fails, or somebody does not want to."""
    interrupts, began_s, seen = len(asked), time.monotonic(), False
    while (lacks := job["mirror"]) and lacks["behind"] and not lacks["error"]:
        copied = lock.is_locked(home.mirror_lock)
        if copied and not seen:
            display.say(f"{job['name']}: copying to {lacks['url']} (Ctrl-C: leave that to the background)")
        gone = not copied and (seen or time.monotonic() - began_s > _COPIER_S)
        if gone or interrupts > 1 or len(asked) > interrupts:
            break
        seen = seen or copied
        time.sleep(_POLL_S)
        job = facts.gather(home, job["name"])
    if lacks and lacks["behind"]:
        why = f" ({lacks['error']})" if lacks["error"] else ""
        display.say(f"{job['name']}: {len(lacks['behind'])} file(s) not on {lacks['url']} yet{why}")
    return job


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _frame: arrived.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _farewell(home: Home, folder: Path, job: dict[str, Any]) -> int:
    """Say how it stands; return the exit code."""
    name, state = job["name"], job["state"]
    if not facts.is_settled(job):
        print(f"{name}: {job['reason'] or state}; to resume: runner run {folder}")
        return EXIT_PAUSED
    log = home.job(name).attempt(job["attempt"]).log
    if state == State.SUCCEEDED:
        reached = f", best {best(job['best'])}" if job["best"] else ""
        print(f"{name}: succeeded after {job['step']} steps and {job['restarts']} restarts{reached}")
        print(f"{name}: log in {log}")
        return 0
    for line in tail(log, _LOG_LINES):
        print(f"  | {line}")
    raise typer.Exit(_failed(job))


def _failed(job: dict[str, Any]) -> int:
    sys.stdout.flush()
    print(f"runner: {job['name']}: {job['state']}: {job['reason']}", file=sys.stderr)
    return int(job["exit_code"])
