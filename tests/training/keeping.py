"""Starts keepers as the shim does, for tests that have no shim."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import runner
from runner.storage import memory
from runner.training.launch import KEEPER as VARIABLE

KEEPER = Path(runner.__file__).parent / "training" / "keeper.py"


class Beside:
    """A keeper and what a worker is handed to it."""

    def __init__(
        self,
        environ: Mapping[str, str],
        cwd: Path,
        *,
        limit: Callable[[], None] | None = None,
        program: Path = KEEPER,
    ) -> None:
        """Start it.

        Args:
            environ: names the attempt.
            cwd: the job's folder.
            limit: is called in the new process.
            program: the keeper's, or one that runs it.
        """
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory = memory.create()
        with mine:
            fds = (mine.fileno(), self.memory)
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(program)],
                env={**environ, VARIABLE: f"{fds[0]},{fds[1]}"},
                cwd=cwd,
                pass_fds=fds,
                preexec_fn=limit,
            )
        self.channel = other.detach()

    @property
    def handed(self) -> tuple[int, int]:
        """The worker's descriptors."""
        return self.channel, self.memory

    def let_go(self) -> None:
        """Close this process's end of the socket: the worker has its own."""
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1

    def wait(self, timeout_s: float = 60) -> int:
        """Let the keeper come to its end, as it does when the worker has ended; return its exit code."""
        self.let_go()
        code = self.process.wait(timeout_s)
        os.close(self.memory)
        return code
