"""`python -m runner.mirror`: copies a home's checkpoints to their mirrors; with --fetch gets a job's back.

Exit codes: 0 done; 5 another process copies already; 75 a fetch failed and may work later, 78 and never will.
The reason is in the job's mirror/status.json and on stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from runner.core.restart import EXIT_CONFIG, EXIT_RETRY
from runner.errors import ForeignMirrorError, RefusedError, RunnerError
from runner.mirror.account import Account, held, orders
from runner.mirror.fetching import fetch
from runner.mirror.follow import Follow
from runner.mirror.medium import open_medium
from runner.storage import lock, mirrored
from runner.storage.layout import Home

#: How much it stands back behind the training.
_NICE = 5


def main(argv: list[str]) -> int:
    """Copy, or fetch; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m runner.mirror")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--fetch", metavar="NAME")
    parser.add_argument("--attempt", type=int, default=0)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="mirror: %(message)s")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what goes wrong is raised too
    home = Home(options.home.absolute())
    if options.fetch is not None:
        return _fetch(home, options.fetch, options.attempt)
    fd = lock.try_lock(home.mirror_lock)
    if fd is None:
        return RefusedError.exit_code
    os.nice(_NICE)
    Follow(home).run()
    return 0


def _fetch(home: Home, name: str, attempt: int) -> int:
    """Fetch what job `name` goes on from, on behalf of an attempt that is to begin."""
    paths = home.job(name)
    told = orders(home, name)
    if told is None:
        return 0
    with held(paths, wait=True):
        account = Account(paths, told, paths.attempt(attempt).facts)
        if not mirrored.must_fetch(paths, told.url, name):
            return 0  # another process has done so meanwhile
        try:
            fetch(account, open_medium(told.url, name))
        except Exception as error:  # this process's top: what stops it is told
            account.failed(error)
            expected = isinstance(error, RunnerError | OSError)
            if not expected:
                logging.getLogger(__name__).exception("a fetch failed unexpectedly")
            print(f"runner: {error}", file=sys.stderr)  # noqa: T201 - into the attempt's log
            return EXIT_CONFIG if isinstance(error, ForeignMirrorError) else EXIT_RETRY
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing is left to be done: the libraries' threads need not be waited for
