"""`runner submit`: hand a folder over, to be trained to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli import daemon, facts, models, staging
from runner.cli.options import HomeOption, open_home
from runner.errors import BadJobError, RefusedError, UsageError
from runner.storage.layout import Home

DirArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the script.")]
NewNameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The job's name; else the folder's.")
]


def command(
    folder: DirArgument,
    name: NewNameOption = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="JOB[@STEP|@best]", help="Start from a checkpoint of another job."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Copy a folder into jobs/, where the supervisor takes it up."""
    where = open_home(home)
    check_folder(folder)
    if is_in_place(where, folder) and name is None and start_from is None:
        _already_there(where, folder.resolve().name)
        return
    name = staging.check_name(folder.resolve().name if name is None else name)
    model = _model(where, start_from) if start_from is not None else None
    staging.submit(where, folder, name, model)
    after = "" if daemon.is_serving(where) else "; it starts when a supervisor runs: runner supervise"
    print(f"{name}: submitted{f' from {model.origin}' if model else ''}{after}")


def check_folder(folder: Path) -> None:
    """Make sure that DIR is a folder.

    Raises:
        UsageError: it is not.
    """
    if not folder.is_dir():
        what = "is not a folder; name the folder that holds it" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}")


def is_in_place(home: Home, folder: Path) -> bool:
    """Tell whether DIR lies in the home's jobs/ already."""
    return folder.resolve().parent == home.jobs.resolve()


def _already_there(home: Home, name: str) -> None:
    staging.check_name(name)
    job = facts.gather(home, name)
    if facts.is_settled(job):
        raise RefusedError(f"{name}: has ended already ({job['state']}); submit a copy: --name OTHER")
    print(f"{name}: is in {home.jobs} already ({job['state']})")


def _model(home: Home, text: str) -> models.Model:
    model = models.find(home, text)
    if not model.path.name.endswith(".weights.h5"):
        raise RefusedError(
            f"{text}: {model.path.name} holds no weights file to start from; name a checkpoint by its step"
        )
    from runner.storage import checkpoint  # numpy and h5py: only where a model is read

    try:
        checkpoint.verify(model.path)
    except FileNotFoundError:
        raise BadJobError(f"{text}: {model.path} is gone; see `runner checkpoints`") from None
    return model
