"""`runner checkpoints`: what is kept of a job, whether it verifies, and what shall stay."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli import output
from runner.cli.options import HomeOption, JsonOption, NameArgument, existing, open_home
from runner.errors import BadCheckpointError, RefusedError
from runner.storage.layout import JobPaths


def command(
    name: NameArgument,
    home: HomeOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every digest; exit 1 if one fails.")
    ] = False,
    pin: Annotated[
        int | None,
        typer.Option("--pin", metavar="STEP", min=0, help="Keep this one, whatever comes after it."),
    ] = None,
    unpin: Annotated[
        int | None, typer.Option("--unpin", metavar="STEP", min=0, help="Let it go when its time has come.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List a job's checkpoints, and the ends of its fits; pin some."""
    where = open_home(home)
    name = existing(where, name)
    paths = where.job(name)
    if pin is not None:
        _pin(paths, name, pin)
    if unpin is not None:
        paths.pin(unpin).unlink(missing_ok=True)
    files = [path for _, path in (*paths.list_checkpoints(), *paths.list_fits())]
    pinned = {path for step, path in paths.list_checkpoints() if paths.pin(step).exists()}
    found = [entry | {"pinned": path in pinned} for path in files if (entry := _look(path, verify=verify))]
    if json:
        output.print_json(found)
    elif found:
        more = (*(("PINNED",) if pinned else ()), *(("VERIFIED",) if verify else ()))
        head = ("STEP", "EPOCH", "SIZE", "WRITTEN", "FILE", *more)
        print(f"{paths.checkpoints}:")
        output.print_table(head, [_row(entry, pins=bool(pinned), verify=verify) for entry in found])
    else:
        print(f"{name}: no checkpoint yet")
    if verify and not all(entry["verified"] for entry in found):
        raise typer.Exit(1)


def _pin(paths: JobPaths, name: str, step: int) -> None:
    """Mark a checkpoint as to be kept; the mark comes first, for its job may be running."""
    mark = paths.pin(step)
    if paths.checkpoint(step).exists():
        mark.touch()
    if not paths.checkpoint(step).exists():
        mark.unlink(missing_ok=True)
        there = ", ".join(str(known) for known, _ in paths.list_checkpoints()) or "none"
        raise RefusedError(f"{name}: there is no checkpoint of step {step} to pin; there are: {there}")


def _look(path: Path, *, verify: bool) -> dict[str, Any]:
    """Describe one checkpoint; nothing where retention removed it meanwhile."""
    from runner.storage import checkpoint

    entry: dict[str, Any] = {"path": str(path), "step": None, "epoch": None}
    try:
        status = os.stat(path)  # noqa: PTH116 - one call for size and time
        entry |= {"size_bytes": status.st_size, "written_at": _iso(status.st_mtime)}
        info = checkpoint.verify(path) if verify else checkpoint.describe(path)
        entry |= {
            "step": info.step,
            "epoch": info.epoch,
            "digest": info.digest,
            "verified": verify or None,
            "problem": None,
        }
    except BadCheckpointError as error:
        entry |= {"verified": False, "problem": str(error)}
    except FileNotFoundError:
        return {}
    return entry


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _row(entry: dict[str, Any], *, pins: bool, verify: bool) -> tuple[str, ...]:
    pinned = ("yes" if entry["pinned"] else "",) if pins else ()
    verified = ("yes" if entry["verified"] else f"NO: {entry['problem']}",) if verify else ()
    step, epoch = (str(entry[key] if entry[key] is not None else "?") for key in ("step", "epoch"))
    return (
        step,
        epoch,
        output.size(entry["size_bytes"]),
        entry["written_at"],
        Path(entry["path"]).name,
        *pinned,
        *verified,
    )
