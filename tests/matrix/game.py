"""One job of the matrix: it lives again and again, by itself or under a supervisor with hot spares."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.core.job import SETTLED, State
from runner.core.job import Job as Record
from runner.storage import eventlog, records
from runner.storage.layout import Home
from tests.matrix.registry import FOLDER, Variant
from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery
from tests.waiting import wait_for

_STAGE = Path(__file__).with_name("stage.py")
#: Makes the resume forget where it was in the data; goes before the script.
_FORGETFUL = """
from pathlib import Path
source = Path(BOOTSTRAP).read_text().replace('    main()\\n', '')
__file__ = BOOTSTRAP
exec(compile(source, BOOTSTRAP, 'exec'))
from runner.training import position
original = position.Position.go_to
position.Position.go_to = lambda self, iterators, drawn, states: original(self, 1, 0, states)
main()
"""
_LIVES_S = 1200.0


class Game(Job):
    """One job that trains several variants."""

    def __init__(self, root: Path, variants: list[Variant], nursery: Nursery | None = None):
        self.root = root
        self.words = [one.name for one in variants]
        script = variants[0].script
        super().__init__(root, script, text=(FOLDER / script).read_text(), nursery=nursery)
        shutil.copy(_STAGE, self.folder)
        if variants[0].seeded:
            self.words.append("--seeded")

    def forget(self) -> None:
        """Let every resume forget where it was in the data."""
        forgetful = self.root / "forgetful.py"
        forgetful.write_text(_FORGETFUL.replace("BOOTSTRAP", repr(str(self.bootstrap))))
        self.bootstrap = forgetful

    def live(self, plan: dict[str, list[dict[str, Any]]], every: tuple[str, float]) -> Attempt:
        """Live again and again, until a life ends by itself."""
        (self.folder / "plan.json").write_text(json.dumps(plan))
        for _ in range(sum(map(len, plan.values())) + 1):
            attempt = self.run(*self.words, every=every)
            if attempt.code != -signal.SIGKILL:
                break
        return attempt

    def deaths_of(self, variant: Variant) -> int:
        """Return how often it has died."""
        path = self.folder / f"lived-{variant.name}"
        return len(path.read_text()) if path.exists() else 0

    def spare_of(self, number: int) -> str:
        """Return what kind of spare has become an attempt."""
        took_over = self.facts_of("spare-took-over", number)
        return "none" if not took_over else "hot" if took_over[0]["hot"] else "warm"

    def facts_by_fit(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the facts of all lives, each with the fit that it is of."""
        for number in range(1, self.attempt + 1):
            fit = -1
            for fact in self.facts(number):
                fit = fact.get("fit", fit)
                yield fit, fact


class HotGame(Game):
    """The same job under a supervisor: each life but the first is one that a hot spare has prepared."""

    def live(self, plan: dict[str, list[dict[str, Any]]], every: tuple[str, float]) -> Attempt:
        """Live again and again, until the job is settled."""
        (self.folder / "plan.json").write_text(json.dumps(plan))
        shutil.rmtree(self.paths.dir)  # the supervisor makes it
        words = [*self.words, "--hot"]
        (self.folder / "job.toml").write_text(
            f'entry = "{self.script}"\nargs = {json.dumps(words)}\n'
            f'[restart]\nspare = "{"hot" if plan else "none"}"\nbackoff = "10ms..20ms"\nbudget = 1000\n'
            f'[checkpoint]\nevery = "{every[1]:g} {every[0]}"\n'
            "[resources]\ncpus = 1\n[seed]\nvalue = 1234\n"
            '[env]\nTF_CPP_MIN_LOG_LEVEL = "3"\nCUDA_VISIBLE_DEVICES = ""\n'
        )
        (self.folder / ".submitted.json").write_text('{"version": 1, "source": null}')
        argv = [
            sys.executable,
            "-m",
            "runner.supervisor",
            "--home",
            str(self.root),
            "--follow",
            str(os.getpid()),
        ]
        with (
            (self.root / "daemon.log").open("wb") as log,
            subprocess.Popen(argv, stdout=log, stderr=log) as daemon,
        ):
            try:
                ended = wait_for(
                    lambda: self._settled() or daemon.poll() is not None, str(self.root), _LIVES_S
                )
            finally:
                daemon.terminate()
        attempt = Attempt(self)
        attempt.code, attempt.errors = 1, (self.root / "daemon.log").read_text()
        if not isinstance(ended, bool) and ended.attempt:
            self.attempt, attempt.code = ended.attempt, 0 if ended.state is State.SUCCEEDED else 1
            attempt.output = self.paths.attempt(self.attempt).log.read_text()
            attempt.errors = f"{ended.reason}\n{attempt.output}"
        return attempt

    def wants_spare(self, number: int) -> bool:
        """Tell whether something was saved when an attempt began; else there is nothing to hurry to."""
        events = eventlog.read(self.paths.events)
        begun = [one for one in events if isinstance(one, dict) and one["event"] == State.RUNNING.value]
        return bool(begun[number - 1]["step"])

    def _settled(self) -> Record | None:
        record = Home(self.root).job(self.folder.name).record
        job = records.load_job(record) if record.exists() else None
        return job if job is not None and job.state in SETTLED else None
