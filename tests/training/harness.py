"""Runs a script under the real bootstrap, as the supervisor would have it run, one attempt after another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import runner
from runner.storage.layout import JobPaths
from runner.training.launch import KEEPER as VARIABLE
from tests.training.keeping import Beside
from tests.training.nursery import Nursery

SCRIPTS = Path(__file__).with_name("scripts")
BOOTSTRAP = Path(runner.__file__).parent / "training" / "bootstrap.py"
_ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "5",
    "PYTHONUNBUFFERED": "1",
}


class Job:
    """A job's folder and state folder, and the attempts on it.

    With a nursery, attempts that are run to their end begin in processes that have imported TensorFlow.
    """

    def __init__(
        self,
        root: Path,
        script: str,
        *,
        text: str | None = None,
        nursery: Nursery | None = None,
        keeper: bool = False,
        **launch: Any,
    ):
        self.nursery = None if keeper else nursery
        self.keeper = keeper  #: each attempt has one beside it, as under the shim
        self.folder = root / "jobs" / "j"
        self.folder.mkdir(parents=True)
        self.paths = JobPaths(root / "state" / "j")
        self.paths.attempts.mkdir(parents=True)
        shutil.copy(SCRIPTS / "victim.py", self.folder)
        if text is None:
            shutil.copy(SCRIPTS / script, self.folder)
        else:
            (self.folder / script).write_text(text)
        self.script = script
        self.attempt = 0
        self.bootstrap = BOOTSTRAP
        self.launch = launch

    @staticmethod
    def environment(more: Mapping[str, str]) -> dict[str, str]:
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "KERAS"))
        }
        return {**clean, **_ENVIRONMENT, **more}

    def prepare(self, *words: str, every: tuple[str, float] = ("steps", 3), **more: Any) -> dict[str, str]:
        """Write launch.json of the next attempt; return the environment it needs."""
        self.attempt += 1
        attempt = self.paths.attempt(self.attempt)
        attempt.dir.mkdir()
        launch = {
            "version": 1,
            "job": "j",
            "attempt": self.attempt,
            "state": str(self.paths.dir),
            "cwd": str(self.folder),
            "grace_s": 20.0,
            "seed": 1234,
            "threads": 1,
            "entry": self.script,
            "args": list(words),
            "checkpoint": {
                "every": {"unit": every[0], "count": every[1]},
                "keep": 3,
                "monitor": None,
                "mode": "auto",
                "best": "best.weights.h5",
            },
            "from": None,
            **self.launch,
            **more,
        }
        attempt.launch.write_text(json.dumps(launch))
        return {"RUNNER_STATE": str(self.paths.dir), "RUNNER_ATTEMPT": str(self.attempt), "RUNNER_JOB": "j"}

    def start(self, *args: str, env: Mapping[str, str] | None = None, **more: Any) -> Attempt:
        environ = self.environment({**self.prepare(*args, **more), **(env or {})})
        beside = Beside(environ, self.folder) if self.keeper else None
        handed = beside.handed if beside is not None else ()
        if handed:
            environ[VARIABLE] = ",".join(str(fd) for fd in handed)
        return Attempt(self, subprocess.Popen(
            [sys.executable, str(self.bootstrap)],
            cwd=self.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=handed,
        ), beside)  # fmt: skip

    def run(self, *args: str, env: Mapping[str, str] | None = None, **more: Any) -> Attempt:
        if self.nursery is None:
            return self.start(*args, env=env, **more).wait()
        attempt = Attempt(self)
        environ = {**self.prepare(*args, **more), **(env or {})}
        output, errors = (self.paths.attempt(self.attempt).dir / name for name in ("output", "errors"))
        attempt.code = self.nursery.live(
            {
                "cwd": str(self.folder),
                "environ": environ,
                "program": str(self.bootstrap),
                "output": str(output),
                "errors": str(errors),
            }
        )
        attempt.output, attempt.errors = output.read_text(), errors.read_text()
        return attempt

    def run_through(self, *args: str, kill: str = "", saved: bool = False, **more: Any) -> Attempt:
        """Run attempt after attempt until one is not killed: one more than KILL names.

        With `saved`, each death waits for a checkpoint that its fit has taken.
        """
        (self.folder / "lives.txt").unlink(missing_ok=True)
        for _ in range(len(kill.split()) + 1):
            attempt = self.run(*args, env={"KILL": kill, **({"KILL_SAVED": "1"} if saved else {})}, **more)
            if attempt.code != -signal.SIGKILL:
                break
        assert attempt.code == 0, attempt.errors
        assert self.attempt >= len(kill.split()) + 1, f"only {self.attempt} attempts were made for {kill}"
        return attempt

    def plain(self, *args: str) -> Attempt:
        """Run the script with nothing around it."""
        return Attempt(self, subprocess.Popen(
            [sys.executable, self.script, *args],
            cwd=self.folder,
            env=self.environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )).wait()  # fmt: skip

    def facts(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """Return the facts of one attempt, or of all."""
        numbers = [attempt] if attempt else range(1, self.attempt + 1)
        lines: list[str] = []
        for number in numbers:
            path = self.paths.attempt(number).facts
            lines += path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def facts_of(self, event: str, attempt: int | None = None) -> list[dict[str, Any]]:
        return [fact for fact in self.facts(attempt) if fact["event"] == event]

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.paths.metrics.read_text().splitlines()]

    def metrics_without_time(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in line.items() if key != "time"} for line in self.metrics()]

    def progress(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.paths.progress.read_text())
        return value


class Attempt:
    """One process; started by a nursery, it has ended already."""

    process: subprocess.Popen[str]

    def __init__(self, job: Job, process: subprocess.Popen[str] | None = None, beside: Beside | None = None):
        self.job = job
        self.beside = beside
        if beside is not None:
            beside.let_go()
        if process is not None:
            self.process = process
        self.code: int | None = None
        self.output = self.errors = ""

    def wait(self, timeout_s: float = 500.0) -> Attempt:
        self.output, self.errors = self.process.communicate(timeout=timeout_s)
        self.code = self.process.returncode
        if self.beside is not None:
            assert self.beside.wait() == 0
        return self

    def until(self, condition: Callable[[], Any], timeout_s: float = 200.0) -> Attempt:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.01)
        return self

    def until_phase(self, phase: str) -> Attempt:
        number = self.job.attempt
        return self.until(lambda: any(f["phase"] == phase for f in self.job.facts_of("phase", number)))

    def send(self, number: int) -> Attempt:
        self.process.send_signal(number)
        return self

    @property
    def results(self) -> dict[str, str]:
        """What the script said of each of its trainings."""
        lines = [line.split(" ", 2) for line in self.output.splitlines() if line.startswith("RESULT ")]
        return {name: rest for _, name, rest in lines}
