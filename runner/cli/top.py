"""`runner top`: all jobs of a home, as they get on."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runner.cli import facts, ls, output, status
from runner.cli.board import Board, View
from runner.cli.options import HomeOption, JsonOption, open_home
from runner.core.job import SETTLED, State, seconds_between

if TYPE_CHECKING:
    from rich.console import Group

#: Jobs in a table that is printed once, unless `--rows` says otherwise.
ROWS_PLAIN = 50
#: Looking takes no more than this share of one processor, ...
_SHARE_MAX = 0.02
#: ... and happens no more often than this, and no less: the first look reads all, the later ones hardly any.
_PERIOD_S_MIN = 1.0
_PERIOD_S_MAX = 5.0
#: Lines of the screen that are no job's: the summary, the head, "and N more", and the last.
_LINES_OTHER = 4
_STATE_COLUMN = 1
_HEAD = (
    *("NAME", "STATE", "STEP", "EPOCH", "RATE", "METRIC"),
    *("SAVED", "RESTARTS", "MEMORY", "WAITED", "GOODPUT"),
)
#: Where time may have gone besides what was useful; waiting has a column of its own.
_OTHERS = ("lost", "down", "checkpoint")
#: What is shown of a job's metrics, where it has one of these and none is the best model's.
_FAVOURITES = ("val_loss", "loss")


def command(
    home: HomeOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print one table, and end.")] = False,
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", min=1, help="Show no more jobs than these.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show all jobs as they get on, until Ctrl-C.

    Where stdout is no terminal, one table is printed.
    """
    board = Board(open_home(home))
    if json:
        output.print_json(_facts(board.look(rows)))
    elif once or not output.is_terminal():
        _print(board.look(rows or ROWS_PLAIN))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(board, rows)


def _facts(view: View) -> dict[str, Any]:
    return {
        "supervisor": {"serving": view.serving, "private": view.private, "pid": view.pid},
        "disk_free_bytes": view.disk_free_bytes,
        "states": view.states,
        "more": view.more,
        "jobs": view.jobs,
    }


def _print(view: View) -> None:
    print(summary(view))
    if view.jobs:
        output.print_table(*table(view), state_column=_STATE_COLUMN)
    if view.more:
        print(_more(view))


def _follow(board: Board, rows: int | None) -> None:
    """Show the jobs on the whole terminal again and again."""
    from rich.console import Console
    from rich.live import Live

    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # leaves the screen as it was
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            began_s = time.process_time()
            room = max(1, console.height - _LINES_OTHER)
            live.update(_screen(board.look(min(rows or room, room))), refresh=True)
            time.sleep(pause_s(time.process_time() - began_s))


def pause_s(spent_s: float) -> float:
    """Return how long to wait after a look that took so much of a processor's time."""
    return min(max(_PERIOD_S_MIN, spent_s / _SHARE_MAX), _PERIOD_S_MAX)


def _screen(view: View) -> Group:
    from rich.console import Group
    from rich.text import Text

    alarm = not view.serving and not view.private and State.RUNNING in view.states
    lines: list[Any] = [Text(summary(view), style="bold red" if alarm else "bold", no_wrap=True)]
    if view.jobs:
        lines.append(output.drawn(*table(view), _STATE_COLUMN, one_line=True))
    if view.more:
        lines.append(Text(_more(view), style="dim"))
    return Group(*lines)


def summary(view: View) -> str:
    """Say how many jobs are in which state, whether they are looked after, and what room there is."""
    order = [*State, facts.UNREADABLE]
    jobs = ", ".join(f"{view.states[state]} {state}" for state in order if view.states.get(state))
    if view.serving:
        who = f"supervisor runs (pid {view.pid})" if view.pid else "supervisor runs"
    elif view.private:
        who = "no supervisor but runner run's"
    else:
        who = "NO SUPERVISOR: runner supervise"
    room = f"; {output.size(view.disk_free_bytes)} free" if view.disk_free_bytes is not None else ""
    return f"{jobs or 'no jobs'}; {who}{room}"


def _more(view: View) -> str:
    return f"and {view.more} more"


def table(view: View) -> tuple[list[str], list[list[str]]]:
    """Return the head and a row for each job; columns in which nothing stands are left out."""
    rows = [_row(job) for job in view.jobs]
    kept = [column for column in range(len(_HEAD)) if column <= _STATE_COLUMN or any(r[column] for r in rows)]
    return [_HEAD[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    if job["state"] == facts.UNREADABLE:
        return (job["name"], job["state"], *("" for _ in _HEAD[2:]))
    spent = job["goodput"]
    return (
        job["name"],
        job["state"],
        str(job["step"] or ""),
        ls.epoch(job),
        _rate(job["steps_per_s"]) if job["steps_per_s"] else "",
        metric(job),
        _saved(job),
        status.by_cause(job),
        output.size(job["rss_bytes"]) if job["rss_bytes"] else "",
        output.duration(spent["waiting_s"]) if spent["waiting_s"] >= 1 else "",
        shares(spent) if job["attempt"] else "",
    )


def shares(spent: dict[str, float]) -> str:
    """Write which share of the time was useful, and which others there were: 91 % (lost 6, down 3)."""
    total_s = sum(spent[f"{part}_s"] for part in ("useful", *_OTHERS))
    others = {part: round(100 * spent[f"{part}_s"] / total_s) if total_s > 0 else 0 for part in _OTHERS}
    told = ", ".join(f"{part} {percent}" for part, percent in others.items() if percent)
    return f"{100 * spent['ratio']:.0f} %" + (f" ({told})" if told else "")


def _rate(steps_per_s: float) -> str:
    return f"{steps_per_s:.0f}/s" if steps_per_s >= 10 else f"{steps_per_s:.2g}/s"


def metric(job: dict[str, Any]) -> str:
    """Write the newest value of one metric: the best model's, else a loss, else the first; "" for none."""
    found = job["metrics"]
    favourites = (*([job["best"]["metric"]] if job["best"] else ()), *_FAVOURITES, *found)
    name = next((name for name in favourites if name in found), None)
    return f"{name} {output.metric(found[name])}" if name is not None else ""


def _saved(job: dict[str, Any]) -> str:
    """Write how old the newest checkpoint is, where the job is to go on from it."""
    if job["state"] in SETTLED or not job["checkpoint_at"]:
        return ""
    return output.duration(seconds_between(job["checkpoint_at"], datetime.now(UTC).isoformat()))
