"""The campaign's jobs, each with how it must end, whatever happens to whom."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from runner.core.job import State
from runner.storage.layout import Home

WORKER = Path(__file__).with_name("worker.py")
TRAINING = Path(__file__).parents[1] / "system" / "storm" / "train.py"
#: A short backoff; a budget that no campaign spends.
ENDURING = '[restart]\nbudget = 1000000\nbackoff = "10ms..50ms"\n'
#: With a package for a spare to import; it says at once that it trains.
SPARED = """
import runpy, sys
import numpy
from runner.training import worker
worker.current().phase("train")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: Several at once on any machine.
SMALL = "cpus = 0.1"


@dataclass(frozen=True)
class Ending:
    """How a job must end."""

    state: State
    exit_code: (
        int | None
    )  #: as `runner wait` returns it; None: that of an attempt that may end in several ways
    attempts: int | None = None  #: how many, where nobody strikes at them; None: any number
    result: str | None = None  #: what the job's own file must hold; None: it has none
    removed: bool = False  #: nothing may be left of it
    limited: bool = False  #: its budget may be spent by a strike: then its exit code is that of the strike


@dataclass(frozen=True)
class Plan:
    """A job to be submitted."""

    name: str
    ending: Ending
    deeds: tuple[str, ...] = ()  #: of worker.py; none: it trains with Keras
    toml: str = ENDURING
    through_shell: bool = False  #: the worker is a shell, its child does the deeds
    spared: bool = False  #: the deeds are done by a script of Python, which may have a spare
    asks: str = ""  #: what people ask of it while it runs: verbs
    resources: str = SMALL

    @property
    def own_codes(self) -> set[int]:
        """Exit codes of failures of its own, which nobody inflicts."""
        return {int(deed.rpartition(":")[2]) for deed in self.deeds if deed.startswith(("exit:", "flaky:"))}

    def submit(self, home: Home, ledgers: Path) -> None:
        """Put the job's folder in place in one step, as `runner submit` does."""
        staged = home.jobs / f".{self.name}.tmp"
        staged.mkdir()
        toml, rest = self.toml, f'[resources]\n{self.resources}\n[limits]\nhang = "10m"\n'
        if self.spared:
            (staged / "train.py").write_text(SPARED)
            toml = f"args = {json.dumps(self._words(ledgers))}\n{toml}{rest}"
        elif self.deeds:
            toml = f"command = {json.dumps(self._command(ledgers))}\n{toml}{rest}"
        else:
            shutil.copy(TRAINING, staged / "train.py")
        (staged / "job.toml").write_text(toml)
        (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
        staged.rename(home.folder(self.name))

    def _words(self, ledgers: Path) -> list[str]:
        return [str(WORKER), str(ledgers / self.name), *self.deeds]

    def _command(self, ledgers: Path) -> list[str]:
        command = [sys.executable, "-I", "-S", *self._words(ledgers)]
        # With something after it, so that the shell stays.
        return ["/bin/sh", "-c", f"{shlex.join(command)}; exit $?"] if self.through_shell else command


SUCCEEDED = Ending(State.SUCCEEDED, 0)
CANCELLED = Ending(State.CANCELLED, None)


def failed(code: int, attempts: int | None = None, *, limited: bool = False) -> Ending:
    return Ending(State.FAILED, code, attempts, limited=limited)


def counted(target: int) -> Ending:
    """Return the ending of a job that counts: its digest is that of each step, once."""
    digest = ""
    for count in range(1, target + 1):
        digest = hashlib.sha256(f"{digest}{count}".encode()).hexdigest()
    return Ending(State.SUCCEEDED, 0, result=f"{target} {digest}")


def counting(name: str, target: int, pause_s: float, *more: str, shell: bool = False, asks: str = "") -> Plan:
    deeds = (*more, f"count:{target}:{pause_s}")
    return Plan(name, counted(target), deeds, through_shell=shell, asks=asks)


def spared(name: str, target: int, pause_s: float) -> Plan:
    """Return a job that counts, and has a spare."""
    return Plan(name, counted(target), (f"count:{target}:{pause_s}",), with_spare("warm"), spared=True)


def with_spare(kind: str) -> str:
    return f'{ENDURING}spare = "{kind}"\n'


def failing(name: str, code: int, count: int, toml: str = ENDURING) -> Plan:
    """Return a job that fails for good with this code, when it has counted so far."""
    limited = ENDURING not in toml
    return Plan(name, failed(code, limited=limited), (f"count:{count}:0.01", f"exit:{code}"), toml)


def training(name: str, epochs: int, pause_s: float, result: str | None, spare: str = "none") -> Plan:
    """Return a real training; `result` is what an undisturbed one has left."""
    toml = (
        f'args = ["{epochs}", "{pause_s}"]\n{with_spare(spare)}[seed]\nvalue = 7\n'
        '[checkpoint]\nevery = "1s"\n[resources]\ncpus = 0.5\n[env]\nCUDA_VISIBLE_DEVICES = ""\n'
    )
    return Plan(name, Ending(State.SUCCEEDED, 0, result=result), toml=toml)
