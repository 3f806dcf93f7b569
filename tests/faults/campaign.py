"""The parts of the campaign, each played in a process of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults import calls, controls, disks, mutants, outages
from tests.faults.table import Rules, Table

PARTS: dict[str, Callable[[Rules, Table, Path], None]] = {
    "errors": calls.errors,
    "cuts": outages.cuts,
    "kills": calls.kills,
    "shorts": calls.shorts,
    "full": outages.full,
    "mutants": mutants.mutants,
    "controls": controls.controls,
}

_SHOWN = 10


def play_part(name: str, seed: int, short: bool) -> Table:
    """Play one part, in a process of its own."""
    table, began = Table(), time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        try:
            disks.alone()
        except disks.NoDiskError as error:
            table.notes.append(f"{name}: {error}")
        PARTS[name](Rules(seed, short), table, work)
    except Exception as error:  # noqa: BLE001 - a process's top: a part that breaks off has failed
        told = "" if isinstance(error, disks.NoDiskError) else traceback.format_exc()
        table.findings.append(f"{name}: broke off: {error}{told and chr(10)}{told}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for one in table.findings[:_SHOWN]:
        print(f"{name}: {one}", flush=True)
    print(
        f"{name}: {table.runs} runs, {len(table.findings)} findings, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return table
