"""A supervisor of one job, started and kept alive by a command that stays in the foreground."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from typing import IO

from runner.cli import daemon
from runner.errors import RunnerError
from runner.storage.layout import Home

_STARTS_MAX = 5
_END_S = 5.0
_STEADY_S = 30.0
#: A daemon that we were a client of may be away for this long before we step in.
_ABSENCE_S = 10.0


class Private:
    """Starts a supervisor for job `name` where no other serves it; a dead one is started again.

    It ends by itself when the job has ended or is held, and drains when this process is gone.
    """

    def __init__(self, home: Home, name: str) -> None:
        self._home = home
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._starts = 0
        self._started_s = 0.0
        self._served_s = -_ABSENCE_S  # when another supervisor was last seen

    @property
    def pid(self) -> int | None:
        """The supervisor's pid, where it is ours and lives."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process else None

    def keep(self) -> None:
        """Make sure that the job is looked after.

        Raises:
            RunnerError: no supervisor stays up.
        """
        now = time.monotonic()
        if self.pid is not None:
            if now - self._started_s > _STEADY_S:
                self._starts = 0
            return
        if daemon.serves(self._home, self._name):
            self._served_s = now
            return
        if now - self._served_s < _ABSENCE_S:
            return
        if self._starts >= _STARTS_MAX:
            raise RunnerError(f"{self._name}: its supervisor does not stay up: {self._last_words()}")
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._started_s = time.monotonic()
        argv = [sys.executable, "-P", "-m", "runner.supervisor", "--home", str(self._home.root)]
        self._process = subprocess.Popen(
            [*argv, "--only", self._name, "--follow", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
        )

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read()[-10_000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """Give the supervisor, which ends with its job, the time to do so."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        self._log.close()
