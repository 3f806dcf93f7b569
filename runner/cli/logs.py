"""`runner logs`: what the worker printed; with -f as it comes, across attempts, until the job ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from runner.cli import facts
from runner.cli.options import HomeOption, NameArgument, existing, open_home
from runner.errors import RefusedError
from runner.storage.layout import Home, attempt_numbers
from runner.supervisor import logcap

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20


def command(
    name: NameArgument,
    home: HomeOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="This attempt's; else the newest's.")
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="Only the last N lines.")
    ] = None,
) -> None:
    """Print the log (stdout and stderr) of a job's attempt."""
    where = open_home(home)
    name = existing(where, name)
    number = _choose(where, name, attempt, follow=follow)
    with _Log(where, name, number) as log:
        if lines is not None:
            log.skip_to(lines)
        log.copy()
        while follow and log.follow(another=attempt is None):
            time.sleep(_POLL_S)


def _choose(home: Home, name: str, attempt: int | None, *, follow: bool) -> int:
    numbers = attempt_numbers(home.job(name).attempts)
    if attempt is not None:
        if attempt not in numbers:
            known = f"attempts {numbers[0]} to {numbers[-1]} are there" if numbers else "it has not run yet"
            raise RefusedError(f"{name}: no attempt {attempt}; {known}")
        return attempt
    while follow and not numbers and not facts.is_settled(facts.gather(home, name)):
        time.sleep(_POLL_S)
        numbers = attempt_numbers(home.job(name).attempts)
    if not numbers:
        raise RefusedError(f"{name}: it has not run yet; there is no log")
    return numbers[-1]


def tail(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(_tail_offset(file, count))
            return file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _tail_offset(file: BinaryIO, count: int) -> int:
    """Find where the last `count` lines begin; looks at no more than the last MiB."""
    end = file.seek(0, 2)
    if count == 0:
        return end
    start = max(0, end - _TAIL_BYTES)
    file.seek(start)
    data = file.read(end - start)
    position = len(data) - data.endswith(b"\n")
    for _ in range(count):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return start
    return start + position + 1


class _Log:
    """Copies the log of one attempt after another to stdout."""

    def __init__(self, home: Home, name: str, number: int) -> None:
        self._home = home
        self._name = name
        self._open(number)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, number: int) -> None:
        self._number = number
        path = self._home.job(self._name).attempt(number).log
        self._file = path.open("rb") if path.exists() else None

    def skip_to(self, lines: int) -> None:
        """Leave out all but the last lines."""
        if self._file is not None:
            self._file.seek(_tail_offset(self._file, lines))

    def copy(self) -> None:
        """Print what is there now."""
        if self._file is not None:
            for data, position in logcap.pieces(self._file.fileno(), self._file.tell(), _CHUNK_BYTES):
                sys.stdout.buffer.write(data)
                self._file.seek(position)
        sys.stdout.flush()

    def follow(self, *, another: bool) -> bool:
        """Print what is new, go on to the next attempt where there is one; False when all has been said."""
        job = facts.gather(self._home, self._name)
        numbers = attempt_numbers(self._home.job(self._name).attempts)
        if self._file is None:
            self._open(self._number)
        self.copy()
        if numbers and numbers[-1] > self._number:
            if not another:
                return False
            self.__exit__()
            self._open(min(number for number in numbers if number > self._number))
            print(f"--- attempt {self._number} ---", file=sys.stderr, flush=True)
            return True
        return not facts.is_settled(job)
