"""Live progress of one job: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from runner.cli import output
from runner.cli.status import metrics, progress

#: Between two lines of progress where there is no terminal.
PLAIN_PERIOD_S = 10.0


class Display(Protocol):
    """Shows how a job gets on."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def update(self, job: dict[str, Any]) -> None:
        """Show where the job stands now."""


def open_display() -> Display:
    """Choose by what stdout is."""
    return Terminal() if output.is_terminal() else Plain()


class Plain:
    """Lines: what is said, and the progress now and then."""

    def __init__(self) -> None:
        self._next_s = time.monotonic() + PLAIN_PERIOD_S
        self._last = ""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        print(line, flush=True)

    def update(self, job: dict[str, Any]) -> None:
        """Print the progress if it is time and there is any."""
        now = time.monotonic()
        if now < self._next_s or not job["step"]:
            return
        self._next_s = now + PLAIN_PERIOD_S
        line = f"{job['name']}: {_text(job)}"
        if line != self._last:
            self._last = line
            print(line, flush=True)


class Terminal:
    """A bar that moves, with lines scrolling above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]}", style="bold", markup=False),
            TextColumn("{task.fields[state]}", style="cyan", markup=False),
            BarColumn(bar_width=24),
            # The description alone gives way where the terminal is narrow.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            TimeElapsedColumn(),
            refresh_per_second=8,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, name="", state="")

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False)

    def update(self, job: dict[str, Any]) -> None:
        """Move the bar."""
        epochs, per_epoch = job["epochs"], job["steps_per_epoch"]
        self._progress.update(
            self._task,
            name=job["name"],
            state=job["state"],
            total=epochs * per_epoch if epochs and per_epoch else None,
            completed=job["step"],
            description=_text(job),
        )


def _text(job: dict[str, Any]) -> str:
    parts = [progress(job)] if job["step"] else [job["phase"] or job["reason"] or ""]
    if job["metrics"]:
        parts.append(metrics(dict(list(job["metrics"].items())[:4])))
    return "; ".join(part for part in parts if part)
