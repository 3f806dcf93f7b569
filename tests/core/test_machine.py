"""Whatever happens in whatever order to several jobs: what must hold holds after every event."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from runner.core.actions import Remove, Signal, Start, Wait
from runner.core.admission import admit
from runner.core.events import (
    Admitted,
    AnyEvent,
    Ended,
    Event,
    Limit,
    Preempt,
    Prioritize,
    Reported,
    Request,
    Retry,
    Sight,
    StartFailed,
)
from runner.core.inventory import Capacity, Device, devices_of
from runner.core.job import ACTIVE, SETTLED, Goal, Job, Moment, Outcome, State
from runner.core.spec import JobSpec, LimitsSpec, ResourcesSpec, RestartSpec
from runner.core.table import TABLE, Decision, Move, decide
from runner.storage import records
from tests.core.life import at

CAPACITY = Capacity(2.0, (Device("GPU-0"),))
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None

SPECS = st.builds(
    JobSpec,
    entry=st.none(),
    command=st.sampled_from([None, ("./train.sh",)]),
    priority=st.integers(-1, 1),
    restart=st.builds(
        RestartSpec,
        budget=st.integers(0, 3),
        backoff_min_s=st.sampled_from([0.5, 1.0]),
        backoff_max_s=st.sampled_from([1.0, 60.0]),
        fatal_exit_codes=st.sampled_from([(), (3,), (75,)]),
        retry_exit_codes=st.sampled_from([(), (78,)]),
    ),
    limits=st.builds(LimitsSpec, hang_s=st.sampled_from([None, float("inf"), 5.0])),
    resources=st.builds(
        ResourcesSpec, st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 0.5, 1.0])
    ),
)
ENDS = st.builds(
    Ended,
    exit_code=st.sampled_from([None, 0, 0, 1, 3, 75, 78, 125, 137, 143]),
    signal=st.none(),
    asked=st.booleans(),
    rebooted=st.booleans(),
    reason=st.sampled_from(["", "out-of-memory"]),
) | st.builds(
    Ended,
    signal=st.sampled_from(["SIGKILL", "SIGTERM", "SIGSEGV"]),
    asked=st.booleans(),
    rebooted=st.booleans(),
)
FACT = st.one_of(
    st.builds(
        lambda step, stall_s: {**_checkpoint(step), "stall_s": stall_s},
        st.integers(0, 5),
        st.sampled_from([0.0, 0.5, 1e9, "NaN"]),
    ),
    st.builds(lambda step: {**_checkpoint(step), "event": "resumed"}, st.integers(0, 5)),
    st.builds(
        lambda step: {"event": "quarantined", "path": _checkpoint(step)["path"], "to": "q"}, st.integers(0, 5)
    ),
    st.just({"event": "checkpoint", "path": "half of a fact"}),
)
SIGHTS = st.one_of(
    ENDS,
    st.builds(Reported, st.lists(FACT, max_size=3).map(tuple), st.integers(0, 1000)),
    st.builds(Limit, st.sampled_from([Sight.HUNG, Sight.WALL_OVER, Sight.MEMORY_OVER]), st.just("too much")),
    st.builds(Event, st.sampled_from([Sight.BACKOFF_OVER, Sight.DRAIN])),
    st.just(StartFailed("cannot")),
)
REQUESTS = st.one_of(
    st.builds(Event, st.sampled_from(sorted(set(Request) - {Request.RETRY, Request.PRIORITY}))),
    st.builds(Retry, SPECS),
    st.builds(Prioritize, st.integers(-3, 3)),
)


def _checkpoint(step: int) -> dict[str, Any]:
    return {"event": "checkpoint", "path": f"checkpoints/{step}", "step": step, "epoch": 0}


@dataclass
class History:
    """One job, and what was seen of it."""

    job: Job
    seqs: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    removed: bool = False


class World:
    """Jobs, a clock and a disk; every event goes through `happen`, which checks what must hold of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock_s = 0.0
        self.jobs: dict[str, History] = {}

    def submit(self, spec: JobSpec) -> str:
        name = f"job{len(self.jobs)}"
        job = Job(name, State.QUEUED, at(self.clock_s).iso, len(self.jobs) + 1, spec)
        self.jobs[name] = History(job)
        return name

    def happen(self, name: str, event: AnyEvent, after_s: float = 1.0, jitter: float = 0.0) -> None:
        history = self.jobs[name]
        before = history.job
        if history.removed or (event.kind is Sight.ADMITTED and before.state is not State.QUEUED):
            return
        self.clock_s += after_s
        moment = at(self.clock_s, jitter)
        decision = decide(before, event, moment)
        check_row(before, event, decision)
        check_actions(before, event, decision, history)
        check_record(before, event, decision.job, moment)
        if decision.job is not before:
            history.seqs += [line["seq"] for line in decision.job.outbox]
        assert history.seqs == list(range(1, len(history.seqs) + 1))
        assert len(history.seqs) == decision.job.revision
        history.job = self.reloaded(decision.job)
        history.removed = Remove() in decision.actions

    def admit(self) -> None:
        plan = admit((h.job for h in self.jobs.values() if not h.removed), CAPACITY)
        for name, reason in plan.preempt.items():
            self.happen(name, Preempt(reason), after_s=0.0)
        for name, gpus in plan.gpus.items():
            self.happen(name, Admitted(gpus), after_s=0.0)

    def reloaded(self, job: Job) -> Job:
        path = self.folder / job.name / "job.json"
        records.save_job(path, job)
        assert records.load_job(path) == job
        return job

    def check_capacity(self) -> None:
        jobs = [h.job for h in self.jobs.values() if h.job.state in ACTIVE and not h.removed]
        assert sum(job.spec.resources.cpus for job in jobs) <= CAPACITY.cpus
        assert sum(job.spec.resources.gpus for job in jobs) <= len(CAPACITY.gpus)
        assert all(len(devices_of(job)) == bool(job.spec.resources.gpus) for job in jobs)


def check_row(before: Job, event: AnyEvent, decision: Decision) -> None:
    """A legal event moves within its row; any other changes nothing."""
    row = TABLE[before.state, event.kind]
    if isinstance(row, Move):
        assert decision.job.state in row.to
        assert not decision.refusal
    else:
        assert decision.job is before
        assert decision.actions == ()
        assert decision.refusal


def check_actions(before: Job, event: AnyEvent, decision: Decision, history: History) -> None:
    """What is to be done fits the states before and after."""
    after = decision.job
    for action in decision.actions:
        match action:
            case Start(number):
                assert number == after.attempt == before.attempt + 1
                assert number not in history.started
                history.started.append(number)
                assert event.kind in {Sight.ADMITTED, Sight.ENDED}
                assert before.state is (State.QUEUED if event.kind is Sight.ADMITTED else State.RUNNING)
                assert (after.state, after.goal) == (State.RUNNING, Goal.RUN)
                assert before.goal is Goal.RUN or event.kind is Sight.ADMITTED
            case Signal():
                assert before.state in ACTIVE
                assert after.state is State.STOPPING
            case Wait(delay_s):
                assert after.state is State.BACKOFF
                assert 0 < delay_s == after.backoff_s <= after.spec.restart.backoff_max_s
            case Remove():
                assert event.kind is Request.REMOVE
                assert before.state not in ACTIVE
    assert (after.attempt > before.attempt) == any(isinstance(a, Start) for a in decision.actions)
    assert (after.state is State.BACKOFF and before.state is not State.BACKOFF) <= any(
        isinstance(a, Wait) for a in decision.actions
    )


def check_record(before: Job, event: AnyEvent, after: Job, moment: Moment) -> None:
    """The record is sound, and tells no success that was none."""
    if before.state in SETTLED and after.state is not before.state:
        assert event.kind is Request.RETRY
    if after.state is State.SUCCEEDED and before.state is not State.SUCCEEDED:
        assert isinstance(event, Ended)
        assert event.exit_code == 0
    assert 0 <= after.charged <= max(after.spec.restart.budget, 0) + 1
    assert (after.finished_at is not None) == (after.state in SETTLED)
    assert [a.number for a in after.attempts] == list(range(1, after.attempt + 1))
    assert all(a.outcome is not None for a in after.attempts[:-1])
    if after.current is not None:
        assert (after.current.outcome is None) == (after.state in ACTIVE)
    ended = [a for a in after.attempts[:-1] if a.outcome is not Outcome.STOPPED]
    assert after.restarts == len(ended), "a start after a stop on request is no restart"
    assert sum(after.restarts_by_cause.values()) == after.restarts
    ledger = after.ledger
    assert min(ledger.lost_s, ledger.down_s, ledger.checkpoint_s, ledger.waiting_s) >= 0
    assert ledger.useful_s + ledger.lost_s + ledger.down_s + ledger.checkpoint_s >= -1e-6
    if after is not before:
        assert all(line["time"] == moment.iso for line in after.outbox)


class Machine(RuleBasedStateMachine):
    """Several jobs on one machine."""

    names = Bundle("names")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER))
        self.world = World(self.folder)

    @rule(target=names, spec=SPECS)
    def submit(self, spec: JobSpec) -> str:
        return self.world.submit(spec)

    @rule(name=names, request=REQUESTS)
    def ask(self, name: str, request: AnyEvent) -> None:
        self.world.happen(name, request)

    @rule(
        name=names,
        sight=SIGHTS,
        after_s=st.sampled_from([0.0, 0.1, 30.0, -60.0]),
        jitter=st.floats(0, 1, exclude_max=True),
    )
    def see(self, name: str, sight: AnyEvent, after_s: float, jitter: float) -> None:
        self.world.happen(name, sight, after_s, jitter)

    @rule(name=names, first=st.integers(0, 5), ended=ENDS)
    def train(self, name: str, first: int, ended: Ended) -> None:
        self.world.admit()
        self.world.happen(name, Reported((_checkpoint(first),), 1))
        self.world.happen(name, ended)

    @rule()
    def admit(self) -> None:
        self.world.admit()

    @invariant()
    def nothing_is_overcommitted(self) -> None:
        if hasattr(self, "world"):
            self.world.check_capacity()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

ANY = st.tuples(st.integers(0, 2), REQUESTS | SIGHTS, st.sampled_from([0.0, 1.0, 100.0, -5.0]))


@settings(max_examples=120, deadline=None)
@given(st.lists(SPECS, min_size=3, max_size=3), st.lists(ANY, max_size=40))
def test_any_sequence_of_events(
    tmp_path_factory: pytest.TempPathFactory, specs: list[JobSpec], events: list[tuple[int, AnyEvent, float]]
) -> None:
    folder = Path(tempfile.mkdtemp(dir=FOLDER or tmp_path_factory.getbasetemp()))
    try:
        world = World(folder)
        names = [world.submit(spec) for spec in specs]
        for which, event, after_s in events:
            world.admit()
            world.happen(names[which], event, after_s)
            world.check_capacity()
    finally:
        shutil.rmtree(folder)
