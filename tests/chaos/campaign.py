"""The parts of the campaign; each returns what was done, in words, and what was wrong."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.chaos import deaths
from tests.chaos.controls import ActsFirst
from tests.chaos.deaths import SCENES, Verdict
from tests.chaos.strikes import KILL, Rules, strikes

#: Of the short form: calls of a shim, and faults.
SOME, FEW = 2, 12
SHORT = {"pause_s": 0.25, "length": 0.3}
#: How often the long form tells how far it is.
TOLD_EVERY = 100
#: Deaths of the supervisor in part 2 by which a control is to be found out; and how often they are dealt out,
#: each time slower: on a busy machine all of a round may fall before the supervisor has done anything.
CONTROL_DEATHS, CONTROL_ROUNDS = 10, 4
#: The first call of a supervisor that has started a shim.
_STARTED = "pidfd_open"


def play_deaths(asked: argparse.Namespace) -> tuple[str, list[str]]:
    """Kill supervisors and shims at their calls."""
    chance, some = random.Random(asked.seed), SOME if asked.short else None
    struck: Counter[str] = Counter()
    runs, found = 0, []
    with _processes(asked.jobs) as pool:
        seeds = [chance.random() for _ in SCENES]
        by_scene = pool.map(_draw, SCENES, seeds, [asked.short] * len(SCENES))
        drawn = [(name, numbers) for name, points in zip(SCENES, by_scene, strict=True) for numbers in points]
        names = pool.submit(deaths.play_shim, 0).result().struck
        shims = range(1, 1 + len(names))
        # Right after the worker's start is where most can go wrong.
        chosen = {names.index("clone") + 2, *chance.sample(shims, some)} if some else shims
        played = [pool.submit(_play, *one) for one in drawn]
        played += [pool.submit(deaths.play_shim, number) for number in chosen]
        for verdict in (future.result() for future in played):
            runs += 1
            struck.update(verdict.struck)
            found += [str(verdict)] if verdict.found else []
            if runs % TOLD_EVERY == 0:
                print(f"deaths: {runs} runs of {len(played)}, {len(found)} findings", flush=True)
    told = ", ".join(f"{name} {count}" for name, count in struck.most_common())
    return f"{runs} runs, {struck.total()} deaths ({told})", found


def play_strikes(asked: argparse.Namespace) -> tuple[str, list[str]]:
    """Strike at random."""
    if asked.short:
        return _strike(Rules(asked.seed, FEW, **SHORT))
    return _strike(Rules(asked.seed, asked.faults, trainings=asked.trainings))


def play_controls(asked: argparse.Namespace) -> tuple[str, list[str]]:
    """Have broken supervisors found out, one by either part."""
    chance = random.Random(asked.seed)
    with _processes(asked.jobs) as pool:
        names = pool.submit(deaths.calls, deaths.ENDS, ActsFirst).result()
        # From the start of the first shim to the renaming of the record, which does not know of it yet.
        begin = names.index(_STARTED)
        points = range(1, 2 + names.index("rename", begin) - begin)
        points = chance.sample(points, 2) if asked.short else points
        caught = [verdict for verdict in pool.map(_play_acts_first, points) if verdict.found]
    told, struck = [], list[str]()
    while not struck and len(told) < CONTROL_ROUNDS:
        done, struck = _strike_behind(asked.seed, 1 + len(told))
        told.append(done)
    found = []
    if len(caught) < len(points):
        found.append(
            f"{len(caught)} of {len(points)} deaths told of a supervisor that acts before it persists"
        )
    if not struck:
        found.append(f"a supervisor that writes its records late was not found out: {'; '.join(told)}")
    caught_by = f"{len(struck)} findings of the other, in round {len(told)}"
    return f"{len(caught)} of {len(points)} deaths told of one, {caught_by}", found


def _strike_behind(seed: int, round_: int) -> tuple[str, list[str]]:
    """Kill a supervisor that writes behind; return what was done, and what proves that it does."""
    program = "tests.chaos.controls"
    rules = Rules(seed + round_, CONTROL_DEATHS, pause_s=0.5 * round_, length=0.5, program=program)
    rules.faults_drawn = {("supervisor", KILL): 1}
    rules.settle_s = 5.0  # what such a one has forgotten never settles
    told, found = _strike(rules)
    # That some have not settled so soon proves nothing; that records and events disagree does.
    return told, [one for one in found if "numbered" in one or "are in the events" in one]


def _processes(number: int) -> ProcessPoolExecutor:
    # Of their own: a supervisor is forked from a process with one thread.
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"))


def _draw(name: str, seed: float, short: bool) -> list[tuple[int, ...]]:
    scene = SCENES[name]
    return deaths.deaths(scene, random.Random(seed), scene.some if short else None)


def _play(name: str, numbers: tuple[int, ...]) -> Verdict:
    return deaths.play(SCENES[name], numbers)


def _play_acts_first(number: int) -> Verdict:
    return deaths.play(deaths.ENDS, [number], ActsFirst, since=_STARTED)


def _strike(rules: Rules) -> tuple[str, list[str]]:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = strikes(folder, rules)
    if campaign.found and rules.program == "runner.supervisor":
        campaign.found.append(f"the home is kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    told = ", ".join(f"{what} {count}" for what, count in sorted(campaign.faults.items()))
    return f"{campaign.faults.total()} faults over {len(campaign.plans)} jobs ({told})", campaign.found


PARTS: dict[str, Callable[[argparse.Namespace], tuple[str, list[str]]]] = {
    "deaths": play_deaths,
    "strikes": play_strikes,
    "controls": play_controls,
}
