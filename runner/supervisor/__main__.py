"""`python -m runner.supervisor`: the daemon's process, without anything of the command line."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import time
from pathlib import Path

from runner.errors import RunnerError
from runner.storage.layout import Home, find_home
from runner.supervisor.notify import notify
from runner.supervisor.supervisor import Config, Supervisor

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Journal(logging.Formatter):
    """One line a record, with the priority prefix that journald understands (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n  ")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"


def set_up_logging() -> None:
    """Log to stderr: with priorities for the journal, with times for people."""
    handler = logging.StreamHandler()
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_Journal("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("watchdog").setLevel(logging.WARNING)


def parse(argv: list[str]) -> tuple[Home, Config]:
    """Read the daemon's command line."""
    parser = argparse.ArgumentParser(prog="python -m runner.supervisor")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--on-term", choices=("drain", "leave"), default="drain")
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--follow", type=int, metavar="PID")
    parser.add_argument("--isolate", action="store_true")
    parser.add_argument("--no-mirrors", action="store_true")
    options = parser.parse_args(argv)
    home = Home(find_home(options.home, os.environ, Path.cwd()))
    return home, Config(
        drain_on_term=options.on_term == "drain",
        only=options.only,
        follow_pid=options.follow,
        isolate=options.isolate,
        mirrors=not options.no_mirrors,
    )


def main(argv: list[str]) -> int:
    """Serve until told to end; return the exit code."""
    faulthandler.enable()  # systemd's watchdog ends a hung daemon with SIGABRT: the journal gets the stacks
    set_up_logging()
    home, config = parse(argv)
    try:
        supervisor = Supervisor(home, config)
        supervisor.run()
    except RunnerError as error:
        print(f"runner: {error}", file=sys.stderr)  # noqa: T201 - the last word to whoever started us
        return error.exit_code
    except OSError as error:
        print(f"runner: {home.root}: cannot supervise this home: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    if supervisor.exec_again:
        _start_anew(supervisor)
    return 0


def _start_anew(supervisor: Supervisor) -> None:
    """Become a new daemon under the same pid; a signal that comes meanwhile waits (see Loop.on_signal).

    `systemctl reload` followed at once by `systemctl stop` sends SIGTERM while there is no handler for it.
    """
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if supervisor.draining or supervisor.loop.has_arrived(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
