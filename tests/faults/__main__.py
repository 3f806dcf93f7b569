"""Runs the fault campaign: `python -m tests.faults`, or `make faults`. Exits with 1 where anything is wrong.

Commits through the product's own doors are killed and failed at every system call, cut off from power and
room, and their files damaged; each time a start afterwards must find the old or the new, and what was told
to be saved. Broken controls show that the campaign sees what it should.
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.faults.campaign import PARTS, play_part
from tests.faults.table import Table


def main() -> int:
    """Play what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, help="of what is drawn by chance (printed; else by chance)")
    parser.add_argument("--short", action="store_true", help="a part of it, drawn by chance: half a minute")
    parser.add_argument("--jobs", type=int, default=2, help="parts at the same time")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    chosen = [name for name in PARTS if name in asked.parts or not asked.parts]
    table, began = Table(), time.monotonic()
    print(f"seed {seed}", flush=True)
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for found in pool.map(play_part, chosen, [seed] * len(chosen), [asked.short] * len(chosen)):
            table.merge(found)
    print(table)
    verdict = f"{len(table.findings)} findings" if table.findings else "nothing was wrong"
    took_min = (time.monotonic() - began) / 60
    print(f"{table.runs} runs of {', '.join(chosen)}, seed {seed}: {verdict}; {took_min:.1f} min")
    return int(bool(table.findings) or not table.runs)


if __name__ == "__main__":
    sys.exit(main())
