"""Real command lines on real homes, with real daemons; what is started here is ended here, by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.errors import NoSuchJobError
from runner.storage import eventlog, records
from runner.storage.layout import Home
from runner.supervisor import process
from tests.waiting import wait_for

COUNTER = Path(__file__).parent.parent / "system" / "counter.py"
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("RUNNER_")}


def command_line(limits: dict[str, float]) -> list[str]:
    """Return what starts the command line with other limits, such as {"daemon.TAKE_UP_S": 60.0}."""
    modules = ", ".join(sorted({name.partition(".")[0] for name in limits}))
    given = "; ".join(f"{name} = {value}" for name, value in limits.items())
    return [
        sys.executable,
        "-c",
        f"import sys; from runner.cli import main, {modules}; {given}; sys.exit(main())",
    ]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def complaint(self) -> str:
        """The one line on stderr."""
        assert self.err.startswith("runner: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err + self.out
        return self.err[len("runner: ") : -1]


class Bench:
    """A home, the command line on it, and folders to submit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = Home(root / "home")
        self.home.create()
        self.started: list[subprocess.Popen[bytes]] = []
        #: A supervisor on a busy machine may take its time.
        self.limits = {"daemon.TAKE_UP_S": 60.0}

    def argv(self, *words: str) -> list[str]:
        """--home goes after the verb."""
        return [*command_line(self.limits), words[0], "--home", str(self.home.root), *words[1:]]

    def __call__(self, *words: str, **environ: str) -> Answer:
        done = subprocess.run(
            self.argv(*words), capture_output=True, cwd=self.root, env=ENVIRON | environ, timeout=300
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command that stays, such as supervise, run, or logs -f."""
        started = subprocess.Popen(
            self.argv(*words),
            stdout=subprocess.PIPE,
            stderr=(self.root / "stderr").open("ab"),
            cwd=self.root,
            env=ENVIRON,
        )
        self.started.append(started)
        return started

    def supervise(self) -> subprocess.Popen[bytes]:
        """Start a daemon, and wait until it is the one that serves."""
        daemon = self.start("supervise")
        wait_for(lambda: self._serving() == daemon.pid, "the daemon")
        return daemon

    def _serving(self) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return int(records.load_json(self.home.supervisor)["identity"]["pid"])
        return None

    def folder(self, name: str, *arguments: str, toml: str = "", command: list[str] | None = None) -> Path:
        """Make a folder to submit: the counter of the system tests, or `command`."""
        folder = self.root / name
        folder.mkdir()
        shutil.copy(COUNTER, folder)
        command = command or [sys.executable, "counter.py", *(arguments or ("30", "0.01"))]
        (folder / "job.toml").write_text(f"command = {json.dumps(command)}\n{toml}")
        return folder

    def job(self, name: str) -> dict[str, Any]:
        answer = self("status", name, "--json")
        assert answer.code == 0, answer.err
        found = answer.json
        assert isinstance(found, dict)
        return found

    def until(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until the job is in one of `states`; return its facts."""
        from runner.cli import facts

        def reached() -> dict[str, Any] | None:
            try:
                found = facts.gather(self.home, name)
            except NoSuchJobError:
                return None
            return found if found["state"] in states else None

        return wait_for(reached, f"{name} to be {' or '.join(states)}")

    def step(self, name: str) -> int:
        from runner.cli import facts

        try:
            return int(facts.gather(self.home, name)["step"])
        except NoSuchJobError:
            return 0

    def pid(self, name: str) -> int:
        """Wait until the job's worker is known; return its pid."""
        from runner.cli import facts

        return int(wait_for(lambda: facts.gather(self.home, name)["pid"], f"the worker of {name}"))

    def told(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return what the job's events say of one kind."""
        found = eventlog.read(self.home.job(name).events)
        return [event for event in found if isinstance(event, dict) and event.get("event") == kind]

    def close(self) -> None:
        for started in self.started:
            if started.poll() is None:
                started.kill()
            started.wait()
            if started.stdout:
                started.stdout.close()
        for pid in process.carrying(("RUNNER_HOME", str(self.home.root))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def served(runner: Bench) -> Bench:
    """The same with a daemon."""
    runner.supervise()
    return runner
