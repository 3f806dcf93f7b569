"""`runner export`: a model of a job, as a file of its own."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import IO, Annotated

import typer

from runner.cli import models
from runner.cli.options import HomeOption, NameArgument, existing, open_home
from runner.errors import BadCheckpointError, RefusedError, UsageError
from runner.storage import durable

WEIGHTS, WHOLE = ".weights.h5", ".keras"
_WEIGHTS_IN_WHOLE = "model.weights.h5"  # keras/src/saving/saving_lib.py


def command(
    name: NameArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="FILE.weights.h5 or FILE.keras.")],
    best: Annotated[bool, typer.Option("--best", help="The best model (the default).")] = False,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", min=0, help="The checkpoint of this step.")
    ] = None,
    home: HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")] = False,
) -> None:
    """Copy a job's model to a file, verified.

    Weights always work; a whole model (.keras) where the job keeps that.
    """
    if best and step is not None:
        raise UsageError("--best and --step exclude each other")
    _check_out(out, force=force)
    where = open_home(home)
    name = existing(where, name)
    model = models.best(where, name) if step is None else models.at_step(where, name, step)
    _export(model.path, out)
    print(f"{out}: {model.origin}, verified")


def _check_out(out: Path, *, force: bool) -> None:
    if not out.name.endswith((WEIGHTS, WHOLE)):
        raise UsageError(f"{out}: expected a file name that ends in {WEIGHTS} or {WHOLE}")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.absolute().parent}")
    if out.exists() and not force:
        raise RefusedError(f"{out}: is there already; choose another name, or --force")


def _export(source: Path, out: Path) -> None:
    if source.name.endswith(WEIGHTS):
        if out.name.endswith(WHOLE):
            raise RefusedError(
                f'{out}: only weights are kept of this job; set checkpoint.best = "best.keras" to keep whole '
                f"models, or export to FILE{WEIGHTS} and load it into the model that the script builds"
            )
        from runner.storage import checkpoint

        checkpoint.verify(source)
        with source.open("rb") as file:
            _write(file, out)
    else:
        _export_whole(source, out)


def _export_whole(source: Path, out: Path) -> None:
    """Copy a .keras file, or the weights that it holds; it is a zip file, whose CRCs are checked."""
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
            if broken:
                raise BadCheckpointError(f"{source}: damaged: {broken} does not match its checksum")
            if out.name.endswith(WHOLE):
                with source.open("rb") as file:
                    _write(file, out)
            else:
                with archive.open(_WEIGHTS_IN_WHOLE) as member:
                    _write(member, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BadCheckpointError(f"{source}: not a whole Keras model: {error}") from None


def _write(source: IO[bytes], out: Path) -> None:
    with durable.replacing(out.absolute()) as fd, open(fd, "wb", closefd=False) as file:
        shutil.copyfileobj(source, file, 1 << 20)
