"""`python -m runner.supervisor.orphans`: ask the workers of a daemon that did not answer to stop.

The service runs it after each end of the daemon (ExecStopPost). Where the daemon drained there is nothing to
do; where it crashed, its workers train on and the next daemon adopts them. Only where systemd lost patience
with a daemon that it had told to stop ($SERVICE_RESULT is "timeout") does nobody else ask the workers.

In any case it makes room for the next daemon among the control groups that live on (see `cgroups.release`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from runner.storage.layout import Home, attempt_numbers, find_home
from runner.supervisor import cgroups, process
from runner.supervisor.traces import read_identity


def stop_all(home: Home) -> int:
    """Ask the shim of every living attempt to stop, wait for their ends; return how many there were.

    Each shim bounds the wait: it kills its worker after the job's grace.
    """
    shims = list(_shims(home))
    for pidfd in shims:
        process.ask(pidfd, signal.SIGTERM)
    for pidfd in shims:
        process.wait(pidfd)
        os.close(pidfd)
    return len(shims)


def _shims(home: Home) -> Iterator[int]:
    """Open a pidfd for each shim that lives."""
    for name in home.recorded():
        paths = home.job(name)
        for number in attempt_numbers(paths.attempts)[-1:]:
            identity = read_identity(paths.attempt(number), "shim")
            pidfd = process.open_pidfd(identity) if identity else None
            if pidfd is not None:
                yield pidfd


def main(argv: list[str]) -> int:
    """Do it where $SERVICE_RESULT tells that nobody else will."""
    parser = argparse.ArgumentParser(prog="python -m runner.supervisor.orphans")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args(argv)
    if os.environ.get("SERVICE_RESULT") == "timeout":
        stopped = stop_all(Home(find_home(options.home, os.environ, Path.cwd())))
        print(f"the daemon did not answer; {stopped} workers were asked to stop in its place")  # noqa: T201
    cgroups.release(os.environ)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
