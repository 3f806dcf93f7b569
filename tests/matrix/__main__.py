"""Runs the matrix: `python -m tests.matrix`, or `make matrix`. Exits with 1 where a variant fails."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.matrix.play import Rules, Verdict, play
from tests.matrix.registry import Variant, groups, variants

#: Variants in one process: more need fewer undisturbed runs, but each life passes through all that is done.
_TOGETHER = 6


def main() -> int:
    """Play what the command line asks for, and print a line for each variant."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants, or all that begin so")
    parser.add_argument("--seed", type=int, help="of the drawing of the kills (printed; else by chance)")
    parser.add_argument("--kills", type=int, default=3, help="of each variant")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time")
    parser.add_argument(
        "--control", action="store_true", help="with a resume that forgets its place in the data"
    )
    parser.add_argument("--forked", action="store_true", help="start lives by forking: faster, less true")
    parser.add_argument(
        "--hot", action="store_true", help="under a supervisor, each kill with a hot spare there"
    )
    parser.add_argument("--list", action="store_true", help="print the variants' names, and play nothing")
    asked = parser.parse_args()
    if asked.hot and (asked.control or asked.forked):
        parser.error("--hot goes with neither --control nor --forked: its lives are a supervisor's")
    chosen = [one for one in variants() if not asked.only or one.name.startswith(tuple(asked.only))]
    if asked.list:
        print(*(one.name for one in chosen), sep="\n")
        return 0
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    rules = Rules(folder, seed, asked.kills, asked.control, asked.forked, asked.hot)
    print(f"{len(chosen)} variants, {asked.kills} kills each, seed {seed}", flush=True)
    began = time.monotonic()
    verdicts = play_all(chosen, rules, asked.jobs)
    print(summary(verdicts, time.monotonic() - began), flush=True)
    failed = any(one.faults for one in verdicts) or not verdicts
    if failed:
        print(f"seed {seed}; the jobs that failed are in {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed)


def play_all(chosen: list[Variant], rules: Rules, jobs: int) -> list[Verdict]:
    """Play groups of variants side by side."""

    def play_group(numbered: tuple[int, list[Variant]]) -> list[Verdict]:
        found = []
        for verdict in play(numbered[1], rules, str(numbered[0])):
            print(verdict, flush=True)
            found.append(verdict)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return [one for found in pool.map(play_group, enumerate(groups(chosen, _TOGETHER))) for one in found]


def summary(verdicts: list[Verdict], took_s: float) -> str:
    """Return the last line."""
    kinds = Counter(one.kind for one in verdicts)
    moments = Counter(moment for one in verdicts for moment in one.deaths)
    told = ", ".join(f"{moment} {count}" for moment, count in sorted(moments.items()))
    spares = Counter(spare for one in verdicts for spare in one.spares)
    if spares:
        told += f"; spares: {', '.join(f'{count} {kind}' for kind, count in spares.items())}"
    failed = sum(bool(one.faults) for one in verdicts)
    return (
        f"{len(verdicts)} variants: {', '.join(f'{count} {kind}' for kind, count in kinds.items())};"
        f" {sum(moments.values())} kills ({told});"
        f" {failed} failed; {took_s / 60:.1f} min"
    )


if __name__ == "__main__":
    sys.exit(main())
