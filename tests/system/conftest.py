"""Real daemons on real homes; every process that is started here is ended here, by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.core.job import Job, State
from runner.errors import UnreadableRecordError
from runner.storage import eventlog, lock, records, requests
from runner.storage.layout import Home
from runner.supervisor import process
from tests.waiting import wait_for

#: For the log of events to follow a record that was just written.
FOLLOW_S = 20.0
COUNTER = Path(__file__).with_name("counter.py")


class Site:
    """A home with its daemon, as a test sees it."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.home.create()
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.log = root / "daemon.log"

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "runner.supervisor", "--home", str(self.home.root), *options],
                stdout=out,
                stderr=out,
            )
        self.daemons.append(daemon)
        return daemon

    def submit(self, name: str, *arguments: str, toml: str = "", command: list[str] | None = None) -> None:
        """Put a whole job folder in place in one step, as `runner submit` does."""
        staged = self.home.jobs / f".{name}.tmp"
        staged.mkdir()
        command = command or [sys.executable, str(COUNTER), *arguments]
        (staged / "job.toml").write_text(f"command = {json.dumps(command)}\n{toml}")
        (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
        staged.rename(self.home.folder(name))

    def job(self, name: str) -> Job | None:
        with contextlib.suppress(FileNotFoundError):
            return records.load_job(self.home.job(name).record)
        return None

    def wait(self, name: str, *states: State, timeout_s: float = 90.0) -> Job:
        def reached() -> Job | None:
            job = self.job(name)
            return job if job and job.state in states else None

        return wait_for(reached, f"{name} to be {' or '.join(states)}", timeout_s)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log of events; where the record is ahead of it, a moment is waited for it to follow."""
        until = time.monotonic() + FOLLOW_S
        while True:
            found = list(eventlog.read(self.home.job(name).events))
            assert not any(isinstance(event, eventlog.Torn) for event in found)
            events = [event for event in found if isinstance(event, dict)]
            job = self.job(name)
            if job is None or not job.outbox or job.outbox[-1] in events:
                return events
            assert time.monotonic() < until, f"{name}: its log of events does not follow its record"
            time.sleep(0.002)

    def kinds(self, name: str) -> list[str]:
        return [event["event"] for event in self.events(name)]

    def ask(self, verb: str, name: str, args: dict[str, Any] | None = None) -> None:
        path = requests.submit_request(self.home, verb, name, args)
        wait_for(lambda: not path.exists(), f"the request {verb} to be taken")

    def count(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.home.folder(name) / "count").read_text())
        return 0

    def trace(self, name: str) -> list[list[int]]:
        """What the counter wrote at each start: attempt, pid, count."""
        text = (self.home.folder(name) / "trace").read_text()
        return [[int(field) for field in line.split()] for line in text.splitlines()]

    def identity(self, name: str, who: str, attempt: int | None = None) -> process.Identity:
        def found() -> process.Identity | None:
            job = self.job(name)
            if job is None or job.attempt == 0:
                return None
            path = self.home.job(name).attempt(attempt or job.attempt).shim
            with contextlib.suppress(OSError):
                return process.Identity.parse(records.load_json(path).get(who))
            return None

        return wait_for(found, f"the {who} of {name}")

    def living(self, name: str) -> list[int]:
        """Pids of everything that carries this job's environment."""
        return process.carrying(("RUNNER_STATE", str(self.home.job(name).dir)))

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()
        until = time.monotonic() + 20
        self._end_all()
        while any(lock.is_locked(self.home.job(name).lock) for name in self.home.recorded()):
            assert time.monotonic() < until, "a shim does not end"
            self._end_all()  # one that had just been started may have begun something since
            time.sleep(0.01)

    def _end_all(self) -> None:
        """Kill what the jobs run; their shims end then, those that are stopped too."""
        for name in self.home.recorded():
            for folder in self.home.job(name).attempts.glob("*"):
                with contextlib.suppress(OSError, UnreadableRecordError):
                    shim = process.Identity.parse(records.load_json(folder / "shim.json").get("shim"))
                    if shim is not None and process.is_alive(shim):
                        os.kill(shim.pid, signal.SIGCONT)
        for number in process.carrying(("RUNNER_HOME", str(self.home.root))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "home")
    try:
        yield site
    finally:
        site.close()


def assert_events_in_order(events: list[dict[str, Any]]) -> None:
    """The event log's own promises: numbered without gaps, attempts never go back, times neither."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    attempts = [event["attempt"] for event in events]
    assert attempts == sorted(attempts)
    started = [event["attempt"] for event in events if event["event"] == "running"]
    assert started == list(range(1, len(started) + 1))
    ended = [event["attempt"] for event in events if event["event"] == "ended"]
    assert ended == sorted(set(ended)), "an attempt ended twice"
