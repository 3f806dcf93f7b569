"""What many verbs take: --home, --json, the name of a job; and how names complete in the shell."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from runner.errors import NoSuchJobError, UsageError
from runner.storage.layout import Home, find_home, is_job_name


def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """List the names of the jobs that begin so."""
    home = Home(find_home(ctx.params.get("home"), os.environ, Path.cwd()))
    return [name for name in job_names(home) if name.startswith(incomplete)]


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="The home; else $RUNNER_HOME, else the nearest with jobs/ and state/."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The job's name.", autocompletion=complete_names)
]
NamesArgument = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="The jobs' names.", autocompletion=complete_names)
]


def open_home(home: Path | None) -> Home:
    """Choose the home; it need not exist yet.

    Raises:
        UsageError: what was named is no folder.
    """
    root = find_home(home, os.environ, Path.cwd())
    if root.exists() and not root.is_dir():
        raise UsageError(f"--home {root}: not a folder")
    return Home(root)


def job_names(home: Home) -> list[str]:
    """List the names (as printed) of all jobs, those not taken up yet included; numbers in them count."""
    from runner.storage.layout import printable_name

    return sorted({*home.recorded(), *(printable_name(folder) for folder in home.submitted())}, key=by_number)


def by_number(name: str) -> tuple[tuple[str | float, ...], str]:
    """Return a key to sort names by, such that x-lr0.01 is before x-lr0.1 and x-units64 before x-units128."""
    parts = _NUMBER.split(name)
    return tuple(float(part) if place % 2 else part for place, part in enumerate(parts)), name


_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.ASCII)


def existing(home: Home, name: str) -> str:
    """Return `name` if there is such a job.

    Raises:
        NoSuchJobError: there is none; the nearest name is suggested.
    """
    if "/" in name and is_job_name(Path(name).name) and Path(name).resolve().parent == home.jobs.resolve():
        name = Path(name).name  # jobs/NAME, as the shell completes it
    names = job_names(home)
    if name in names:
        return name
    import difflib

    near = difflib.get_close_matches(name, names, 1)
    remedy = f"did you mean {near[0]}?" if near else "see `runner ls`"
    raise NoSuchJobError(f"{name}: no such job in {home.root}; {remedy}")
