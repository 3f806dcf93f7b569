"""Runs the chaos campaign: `python -m tests.chaos`, or `make chaos`. Exits with 1 where anything is wrong.

deaths: the supervisor dies at each of its system calls that anybody can notice, a shim at each of its own.
strikes: random faults over a stream of jobs and some trainings. controls: broken supervisors are found out.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from tests.chaos.campaign import PARTS

SHOWN = 10


def main() -> int:
    """Play what the command line asks for; print what was done and what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, help="of what is drawn by chance (printed; else by chance)")
    parser.add_argument("--short", action="store_true", help="a part of it, drawn by chance: half a minute")
    parser.add_argument("--faults", type=int, default=500, help="of the long form")
    parser.add_argument("--trainings", type=int, default=3, help="with Keras, in the long form")
    parser.add_argument("--jobs", type=int, default=2, help="deaths at the same time")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    asked.seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    print(f"seed {asked.seed}", flush=True)
    wrong, began = 0, time.monotonic()
    for name in [name for name in PARTS if name in asked.parts or not asked.parts]:
        part_began = time.monotonic()
        told, found = PARTS[name](asked)
        for one in found[:SHOWN]:
            print(f"WRONG: {name}: {one}")
        print(f"{name}: {told}; {len(found)} findings; {time.monotonic() - part_began:.0f} s", flush=True)
        wrong += len(found)
    verdict = f"{wrong} findings" if wrong else "nothing was wrong"
    print(f"seed {asked.seed}: {verdict}; {(time.monotonic() - began) / 60:.1f} min")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
