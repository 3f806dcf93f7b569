"""How results look: tables on a terminal, plain lines in a pipe, JSON on request."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

#: Colours of the states on a terminal.
STYLES = {
    "queued": "cyan",
    "running": "green",
    "stopping": "yellow",
    "backoff": "yellow",
    "paused": "blue",
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "dim",
    "rejected": "red",
    "unreadable": "bold red",
}


def is_terminal() -> bool:
    """Tell whether stdout is a terminal."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print a value as strict JSON; numbers that are not finite become null."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as strict JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], state_column: int | None = None) -> None:
    """Print a table: drawn on a terminal, aligned plain lines elsewhere."""
    if not is_terminal():
        _print_plain([head, *rows])
        return
    from rich.console import Console

    Console().print(drawn(head, rows, state_column))


def drawn(
    head: Sequence[str], rows: Sequence[Sequence[str]], state_column: int | None, *, one_line: bool = False
) -> Table:
    """Draw a table; what does not fit is folded, or with `one_line` cut off, so that a row stays a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(Text(title, no_wrap=True), overflow="ellipsis" if one_line else "fold")
    for row in rows:
        cells = [Text(cell, no_wrap=True if one_line else None) for cell in row]
        if state_column is not None:
            cells[state_column].stylize(STYLES.get(row[state_column], ""))
        table.add_row(*cells)
    return table


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print labelled facts, a line each."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label.ljust(width)}  {text}".rstrip())


def duration(seconds: float) -> str:
    """Write a duration for people: 0.8 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def moment(seconds: float) -> str:
    """Write a short duration for people: 1.3 ms, 240 ms, 2.4 s."""
    return f"{1000 * seconds:.{1 if seconds < 0.01 else 0}f} ms" if seconds < 1 else duration(seconds)


def size(size_bytes: float) -> str:
    """Write a size for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def metric(value: Any) -> str:
    """Write a metric's value with five digits that tell something; None is what no JSON number can hold."""
    if value is None:
        return "not finite"
    return f"{value:.5g}" if isinstance(value, int | float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
