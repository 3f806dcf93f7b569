"""`runner ls`: all jobs of a home."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runner.cli import facts, output
from runner.cli.options import HomeOption, JsonOption, job_names, open_home
from runner.errors import NoSuchJobError, UnreadableRecordError
from runner.storage.layout import Home

HEAD = ("NAME", "STATE", "STEP", "EPOCH", "RESTARTS", "BEST", "REASON")


def command(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the jobs."""
    where = open_home(home)
    jobs = list(_jobs(where))
    if json:
        output.print_json(jobs)
    elif jobs:
        output.print_table(HEAD, [_row(job) for job in jobs], state_column=1)
    else:
        print(f"no jobs in {where.root}; runner submit DIR")


def _jobs(home: Home) -> Iterator[dict[str, Any]]:
    for name in job_names(home):
        try:
            yield look(home, name)
        except NoSuchJobError:  # removed since its name was read
            continue


def look(home: Home, name: str) -> dict[str, Any]:
    """Return the job's facts; a record that cannot be read is shown as such.

    Raises:
        NoSuchJobError: it is gone.
    """
    try:
        job = facts.gather(home, name)
    except (UnreadableRecordError, OSError) as error:
        return {"name": name, "state": facts.UNREADABLE, "reason": str(error)}
    del job["attempts"]
    return job


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    if job["state"] == facts.UNREADABLE:
        return (job["name"], job["state"], "", "", "", "", job["reason"])
    best = job["best"]
    return (
        job["name"],
        job["state"],
        str(job["step"] or ""),
        epoch(job),
        str(job["restarts"] or ""),
        f"{best['metric']} {output.metric(best['value'])}" if best else "",
        job["reason"],
    )


def epoch(job: dict[str, Any]) -> str:
    """Write the present epoch of how many, counted from 1; "" where that is not known."""
    return f"{min(job['epoch'] + 1, job['epochs'])}/{job['epochs']}" if job["epochs"] else ""
