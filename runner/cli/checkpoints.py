"""`runner checkpoints`: what is kept of a job, and whether it verifies."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli import output
from runner.cli.options import HomeOption, JsonOption, NameArgument, existing, open_home
from runner.errors import BadCheckpointError


def command(
    name: NameArgument,
    home: HomeOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every digest; exit 1 if one fails.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List a job's checkpoints, and the ends of its fits."""
    where = open_home(home)
    name = existing(where, name)
    paths = where.job(name)
    files = [path for _, path in (*paths.list_checkpoints(), *paths.list_fits())]
    found = [entry for entry in (_look(path, verify=verify) for path in files) if entry]
    if json:
        output.print_json(found)
    elif found:
        head = ("STEP", "EPOCH", "SIZE", "WRITTEN", "FILE", *(("VERIFIED",) if verify else ()))
        print(f"{paths.checkpoints}:")
        output.print_table(head, [_row(entry, verify=verify) for entry in found])
    else:
        print(f"{name}: no checkpoint yet")
    if verify and not all(entry["verified"] for entry in found):
        raise typer.Exit(1)


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
            "sha256": info.sha256,
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


def _row(entry: dict[str, Any], *, verify: bool) -> tuple[str, ...]:
    verified = ("yes" if entry["verified"] else f"NO: {entry['problem']}",) if verify else ()
    step, epoch = (str(entry[key] if entry[key] is not None else "?") for key in ("step", "epoch"))
    return (
        step,
        epoch,
        output.size(entry["size_bytes"]),
        entry["written_at"],
        Path(entry["path"]).name,
        *verified,
    )
