"""`runner submit`: hand a folder over, to be trained to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli import arrays, daemon, facts, models, output, staging
from runner.cli.options import HomeOption, JsonOption, open_home
from runner.errors import BadJobError, RefusedError, UsageError
from runner.storage.layout import Home

DirArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the script.")]
NewNameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The job's name; else the folder's.")
]


SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,VALUE...]",
        help="Make one job for each value, and of several --set for each combination. A KEY without a dot is "
        "an argument of the script (lr=0.1: --lr 0.1), one with a dot a key of job.toml (restart.budget=3, "
        'env.LR=0.1). A value with commas stands in quotes: --set \'layers="64,32","128"\'; [1,2] is one '
        "value too.",
    ),
]


def command(
    folder: DirArgument,
    name: NewNameOption = None,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="JOB[@STEP|@best]", help="Start from a checkpoint of another job."),
    ] = None,
    settings: SetOption = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a folder into jobs/, where the supervisor takes it up."""
    where = open_home(home)
    check_folder(folder)
    if is_in_place(where, folder) and name is None and start_from is None and not settings:
        _already_there(where, folder.resolve().name, json)
        return
    name = staging.check_name(folder.resolve().name if name is None else name)
    jobs = arrays.variants(folder, name, settings) if settings else [staging.Variant(name)]
    model = _model(where, start_from) if start_from is not None else None
    staging.submit_all(where, folder, jobs, model)
    if json:
        source = model.origin if model else None
        output.print_json([{"name": job.name, "source": source, "set": job.given} for job in jobs])
    else:
        _say(where, jobs, model)


def _say(home: Home, jobs: list[staging.Variant], model: models.Model | None) -> None:
    source = f" from {model.origin}" if model else ""
    after = "" if daemon.is_serving(home) else "; it starts when a supervisor runs: runner supervise"
    for job in jobs:
        print(f"{job.name}: submitted{source}{after}")


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


def _already_there(home: Home, name: str, json: bool) -> None:
    staging.check_name(name)
    job = facts.gather(home, name)
    if facts.is_settled(job):
        raise RefusedError(f"{name}: has ended already ({job['state']}); submit a copy: --name OTHER")
    if json:
        output.print_json([{"name": name, "source": job["source"], "set": job["set"]}])
    else:
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
