"""`runner doctor`: how exactly a job can be resumed, without training it; or what this machine is like."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from runner.cli import facts, machine, output
from runner.cli.checkup import Checkup, Finding, Report
from runner.cli.options import HomeOption, JsonOption, complete_names, existing, open_home
from runner.core.exactness import Kind, text
from runner.core.spec import JobSpec
from runner.errors import NoSuchJobError, UsageError
from runner.settings import load_spec
from runner.storage.layout import Home

_SEED = 20_260_101
_METHODS = {
    "skip": "a resume goes straight to its place in the data",
    "pull": "a resume reads the data of its epoch again",
    "replay": "a resume reads all data again, from the start of the fit",
    "epoch": "a resume begins at the start of its epoch",
}
_COMMAND = "a command is started again as it is: what it keeps of its work is its own affair"


def command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR|NAME]",
            help="The folder with the script, or a job; without it, this machine is looked at.",
            autocompletion=complete_names,
        ),
    ] = None,
    timeout_s: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give up after so long.")
    ] = 600,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the script prints.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Say how exactly a job can be resumed, without training it; without a job, look at this machine.

    Runs the script in a copy of its folder, each fit as far as its first step. Exits with 0 only if all
    training can be resumed exactly, by replay or without; of the machine, if nothing that it finds is bad.
    """
    if target is None:
        _examine(open_home(home), json=json)
    folder, seed = _find(target, home)
    spec = load_spec(folder)
    if spec.command is not None:
        report = Report(unwatched=[{"what": "command", "where": "", "reason": _COMMAND}])
    else:
        seeds = [one for one in (spec.seed, seed, _SEED) if one is not None]
        report = Checkup(folder, spec, seeds[0], timeout_s, verbose).run()
    (_print_json if json else _print)(folder, spec, report)
    raise typer.Exit(0 if report.is_exact else 1)


def _examine(home: Home, *, json: bool) -> NoReturn:
    """Look at the machine, and end."""
    found = machine.examine(home)
    if json:
        output.print_json([asdict(one) for one in found])
    else:
        output.print_table(("", "", "FOUND"), [(one.what, one.level.upper(), one.found) for one in found])
        for one in found:
            if one.advice:
                print(f"{one.what}: {one.advice}")
    raise typer.Exit(1 if any(one.level is machine.Level.BAD for one in found) else 0)


def _find(target: str, home: Path | None) -> tuple[Path, int | None]:
    """Return the folder that is meant, and the seed that a job of that name has.

    Raises:
        UsageError: it is a file.
        NoSuchJobError: there is neither a folder nor a job.
    """
    folder = Path(target)
    if folder.is_dir():
        return folder, None
    if folder.is_file():
        raise UsageError(f"{folder}: is not a folder; name the folder that holds it")
    where = open_home(home)
    try:
        name = existing(where, target)
    except NoSuchJobError as error:
        raise NoSuchJobError(f"no such folder, and {error}") from None
    if not where.folder(name).is_dir():
        raise NoSuchJobError(f"{name}: its folder in {where.jobs} is gone; submit it again")
    return where.folder(name), facts.gather(where, name)["seed"]


def _print_json(folder: Path, spec: JobSpec, report: Report) -> None:
    found = {"folder": str(folder), "entry": spec.entry, "exact": report.is_exact, **asdict(report)}
    output.print_json(found)


def _print(folder: Path, spec: JobSpec, report: Report) -> None:
    name = folder.resolve().name
    if spec.entry:
        took = output.duration(report.duration_s)
        print(f"{name}: {spec.entry} was run in a copy, one step of each fit ({took})")
    for path in report.linked:
        print(f"{path}: too big for the copy, was used in its place")
    for finding in report.fits:
        _print_finding(finding)
    for one in report.unwatched:
        print(": ".join(part for part in (one["where"], one["what"], one["reason"]) if part))
    for message in report.warnings:
        print(f"warning: {message}")
    for line in report.log:
        print(f"  | {line}")
    if report.ended:
        print(report.ended)
    print(f"{name}: {verdict(report)}")


def _print_finding(finding: Finding) -> None:
    where = f", {finding.where}" if finding.where else ""
    said = text(finding.kind, finding.reason) if finding.kind else "not reached"
    print(f"{finding.what} {finding.fit}{where}: {said}")
    if finding.method in _METHODS:
        cost = f": {costs(finding.replay)}" if finding.replay else ""
        print(f"  {_METHODS[finding.method]}{cost}")
    for missed in finding.missed:
        print(f"  stays as the script makes it: {missed}")


def costs(replay: dict[str, Any]) -> str:
    """Write what reading data again costs."""
    batch = f"{_short(replay['batch_s'])} a batch"
    if replay["epoch_s"] is None:
        return batch
    return f"{batch}, {_short(replay['epoch_s'])} an epoch of {replay['epoch_batches']}"


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else output.duration(seconds)


def verdict(report: Report) -> str:
    """Write what follows from it all."""
    if report.is_exact:
        replayed = any(finding.kind == Kind.BY_REPLAY for finding in report.fits)
        missed = any(finding.missed for finding in report.fits)
        doubt = ", if what stays as the script makes it has no part in that" if missed else ""
        part = ", in part by replay" if replayed else ""
        return f"exact{part}: killed anywhere, it ends as undisturbed{doubt}"
    if report.ended:
        return "NOT all of it was seen"
    if not report.fits:
        return "nothing is kept of it: after each end it runs again from its start"
    return "NOT all of it is exact"
