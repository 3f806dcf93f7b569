"""What must hold of a home when all has settled, whoever died meanwhile: every departure is a finding."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.core.events import Sight
from runner.core.job import Job, Outcome, State
from runner.core.table import TABLE, Move
from runner.errors import UnreadableRecordError
from runner.storage import eventlog, records
from runner.storage.layout import Home, JobPaths
from runner.supervisor import process
from tests.chaos.jobs import Ending, Plan

Events = list[dict[str, Any]]
STATES = {state.value for state in State}
#: From one state to another by some row of the table; where a job enters.
LEGAL = {
    (state.value, to.value) for (state, _), row in TABLE.items() if isinstance(row, Move) for to in row.to
}
FIRST = {State.QUEUED.value, State.REJECTED.value}
#: What worker.py reports.
REPORTED = {"checkpoint", "resumed"}


@dataclass
class Struck:
    """Whom the campaign has killed or told to end: attempts by number, of one job."""

    shims: set[int] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)  #: whose shim was told to end, past any supervisor


def judge(home: Home, plan: Plan, ledgers: Path, struck: Struck) -> list[str]:
    """Return what is wrong with one job, all of which has settled."""
    paths = home.job(plan.name)
    found = [f"orphans: {pids}" for pids in [process.carrying(("RUNNER_STATE", str(paths.dir)))] if pids]
    if plan.ending.removed:
        left = [path for path in (paths.dir, home.folder(plan.name)) if path.exists()]
        return [f"{plan.name}: {one}" for one in found + [f"still there: {path}" for path in left]]
    try:
        job = records.load_job(paths.record)
    except (FileNotFoundError, UnreadableRecordError) as error:
        return [f"{plan.name}: forgotten: {error}"]
    events = list(eventlog.read(paths.events))
    torn = [event for event in events if isinstance(event, eventlog.Torn)]
    found += [f"events.jsonl: torn: {event}" for event in torn]
    log = [event for event in events if isinstance(event, dict)]
    ended = [event for event in log if event["event"] == "ended"]
    found += ending(job, plan.ending, home, ledgers, struck)
    found += numbering(job, log)
    found += moves(log)
    found += agreement(job, log, ended)
    asked = {event["attempt"] for event in log if event["event"] == State.STOPPING.value} | struck.asked
    found += ledger(ledgers / plan.name, log, paths, asked)
    for event in ended:
        found += outcome(event, paths, plan, struck, asked)
        if plan.deeds:
            found += relayed(event["attempt"], log, paths)
    return [f"{plan.name}: {one}" for one in found]


def ending(job: Job, wanted: Ending, home: Home, ledgers: Path, struck: Struck) -> Iterator[str]:
    """Each job ends as it should, exactly."""
    codes = {wanted.exit_code}
    if wanted.limited and job.attempt in struck.workers:
        codes |= {128 + signal.SIGKILL, 128 + signal.SIGTERM}
    if job.state is not wanted.state or not codes & {None, job.exit_code}:
        yield (
            f"ended {job.state} with {job.exit_code} ({job.reason}), "
            f"not {wanted.state} with {wanted.exit_code}"
        )
    if wanted.attempts is not None and job.attempt != wanted.attempts:
        yield f"took {job.attempt} attempts, not {wanted.attempts}"
    if wanted.result is not None:
        result = ""
        for path in (ledgers / f"{job.name}.saved", home.folder(job.name) / "final.json"):
            with contextlib.suppress(FileNotFoundError):
                result = path.read_text()
        if result != wanted.result:
            yield f"its result is {result:.200}, not {wanted.result:.200}"


def numbering(job: Job, log: Events) -> Iterator[str]:
    """Events are numbered without a gap, each once, up to the record's revision."""
    numbers = [event["seq"] for event in log]
    if numbers != list(range(1, job.revision + 1)):
        yield f"events.jsonl: numbered {numbers}, the record is of revision {job.revision}"


def moves(log: Events) -> Iterator[str]:
    """Each state follows from the one before by the table; a new attempt begins when the last has ended."""
    state, open_attempt = "", 0
    for event in log:
        kind = event["event"]
        if kind in STATES:
            if (state, kind) not in LEGAL and not (not state and kind in FIRST):
                yield f"event {event['seq']}: from {state or 'nothing'} to {kind}"
            state = kind
        if kind == State.RUNNING.value:
            if open_attempt:
                yield f"event {event['seq']}: attempt {event['attempt']} while {open_attempt} has not ended"
            open_attempt = event["attempt"]
        elif kind == Sight.ENDED.value:
            if open_attempt != event["attempt"]:
                yield f"event {event['seq']}: attempt {event['attempt']} ends, {open_attempt} had begun"
            open_attempt = 0
    if open_attempt:
        yield f"attempt {open_attempt} has no end"


def agreement(job: Job, log: Events, ended: Events) -> Iterator[str]:
    """The record says what the events say."""
    states = [event["event"] for event in log if event["event"] in STATES]
    if not states or states[-1] != job.state.value:
        yield f"the record says {job.state}, the events {states[-1:]}"
    started = [event["attempt"] for event in log if event["event"] == State.RUNNING.value]
    if started != sorted(set(started)) or started[-1:] != ([job.attempt] if job.attempt else []):
        yield f"attempts {started} were begun, the newest is {job.attempt}"
    kept = [(a.number, a.outcome, a.exit_code, a.signal) for a in job.attempts]
    told = [(e["attempt"], e["outcome"], e["exit_code"], e["signal"]) for e in ended][-len(kept) or None :]
    if kept != told:
        yield f"the record's attempts are {kept}, those of the events {told}"


def ledger(path: Path, log: Events, paths: JobPaths, asked: set[int]) -> Iterator[str]:
    """No attempt was run twice or beside another, none unknown to the events, none after a success.

    An attempt that was `asked` to end may say 0 to that.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return
    yield from (f"its ledger says: {line}" for line in lines if line.startswith("double"))
    ran = [int(line.split()[1]) for line in lines if line.startswith("start")]
    begun = [event["attempt"] for event in log if event["event"] == State.RUNNING.value]
    if set(ran) - set(begun) or ran != sorted(set(ran)):
        yield f"attempts {ran} ran, {begun} are in the events"
    for number in ran[:-1]:
        told = _outcome(paths, number)
        if told.get("exit_code") == 0 and not (told["asked"] and number in asked):
            yield f"attempt {number} succeeded, and {[one for one in ran if one > number]} ran after it"


def outcome(
    event: dict[str, Any], paths: JobPaths, plan: Plan, struck: Struck, asked: set[int]
) -> Iterator[str]:
    """An attempt's end is what its shim saw; what nobody inflicted did not happen."""
    number, kind, told = event["attempt"], Outcome(event["outcome"]), _outcome(paths, event["attempt"])
    if told and (told["exit_code"], told["signal"]) != (event["exit_code"], event["signal"]):
        yield f"attempt {number} ended {told}, recorded is {event}"
    if told and told["asked"] and number not in asked:
        yield f"attempt {number} was asked to end ({told['asked']}), and nobody has"
    if told and told["exit_code"] == 0 and not told["asked"] and kind is not Outcome.SUCCEEDED:
        yield f"attempt {number} succeeded, recorded is {kind}"
    if kind is Outcome.SUCCEEDED and told.get("exit_code") != 0:
        yield f"attempt {number} is called succeeded; its shim saw {told}"
    if kind is Outcome.ABANDONED and (told or number not in struck.shims):
        yield f"attempt {number} is called abandoned; its shim saw {told or 'nothing, and was not struck'}"
    if kind is Outcome.CRASHED and number not in struck.workers:
        yield f"attempt {number} crashed, and nobody struck its worker: {told}"
    if kind is Outcome.FAILED and event["exit_code"] not in plan.own_codes:
        yield f"attempt {number} failed with {event['exit_code']}, which is none of its own: {told}"
    if kind in {Outcome.HUNG, Outcome.OUT_OF_MEMORY}:
        yield f"attempt {number} is called {kind}"


def relayed(number: int, log: Events, paths: JobPaths) -> Iterator[str]:
    """Each fact is in the events once, in its place."""
    told = [(e["event"], e["step"]) for e in log if e["attempt"] == number and e["event"] in REPORTED]
    facts, _ = eventlog.read_from(paths.attempt(number).facts, 0, size_max=1 << 24)
    facts = [fact for fact in facts if fact["event"] in REPORTED]
    if told != [(fact["event"], fact["step"]) for fact in facts]:
        yield f"attempt {number}: {len(facts)} facts were reported, {len(told)} are in the events: {told}"


def _outcome(paths: JobPaths, number: int) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        value: dict[str, Any] = json.loads(paths.attempt(number).outcome.read_text())
        return value
    return {}
