"""Who may start now, and what the others are told."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from runner.core.admission import Capacity, admit
from runner.core.job import ACTIVE, Job, State
from runner.core.spec import JobSpec, ResourcesSpec


def job(name: str, state: State = State.QUEUED, cpus: float = 1, gpus: float = 0, priority: int = 0) -> Job:
    spec = JobSpec(priority=priority, resources=ResourcesSpec(cpus, gpus))
    return Job(name, state, "2026-01-01T00:00:00.000+00:00", ord(name), spec)


def test_first_come_first_served_among_equals() -> None:
    plan = admit([job("b"), job("a"), job("c")], Capacity(2))
    assert plan.start == ("a", "b")
    assert plan.waiting == {"c": "waits for a free slot"}


def test_priority_goes_first() -> None:
    assert admit([job("a"), job("b", priority=1), job("c", priority=-1)], Capacity(1)).start == ("b",)


def test_what_runs_or_stops_holds_its_share_and_nothing_else_does() -> None:
    others = [job(chr(ord("a") + n), state) for n, state in enumerate(State) if state is not State.QUEUED]
    held = sum(j.state in ACTIVE for j in others)
    assert admit([*others, job("z")], Capacity(held)).start == ()
    assert admit([*others, job("z")], Capacity(held + 1)).start == ("z",)


def test_a_big_job_is_not_starved_by_small_ones() -> None:
    plan = admit([job("r", State.RUNNING), job("a", cpus=2), job("b")], Capacity(2))
    assert plan.start == ()
    assert set(plan.waiting) == {"a", "b"}


def test_what_never_fits_is_told_and_passed_over() -> None:
    plan = admit([job("a", cpus=8), job("b", gpus=1), job("c")], Capacity(2))
    assert plan.start == ("c",)
    assert plan.waiting == {
        "a": "asks for 8 cpus and 0 gpus; this machine has 2 and 0",
        "b": "asks for 1 cpus and 1 gpus; this machine has 2 and 0",
    }


def test_shares_that_add_up_to_the_whole_fit() -> None:
    shares = [0.7, 0.2, 0.1]
    jobs = [job(chr(ord("a") + n), cpus=share, gpus=share) for n, share in enumerate(shares)]
    assert len(admit(jobs, Capacity(1, 1)).start) == 3
    running = [replace(j, state=State.RUNNING) for j in jobs[:2]]
    assert admit([*running, jobs[2]], Capacity(1, 1)).start == ("c",)


def test_a_machine_that_shrank_starts_nothing() -> None:
    assert admit([job("a", State.RUNNING, cpus=4), job("b")], Capacity(2)).start == ()


def after(name: str, *others: str, state: State = State.QUEUED) -> Job:
    return replace(job(name, state), spec=JobSpec(after=others))


def test_a_job_waits_for_those_it_comes_after_and_holds_back_nobody() -> None:
    done, runs = job("d", State.SUCCEEDED), job("r", State.RUNNING)
    plan = admit([done, runs, after("a", "d", "r"), after("b", "d"), job("c")], Capacity(3))
    assert plan.start == ("b", "c")
    assert plan.waiting == {"a": "waits for r"}
    assert admit([done, runs, after("a", "d", "r")], Capacity(3), alone=True).start == ("a",)


def test_what_can_never_be_waited_for_is_told() -> None:
    jobs = [job("f", State.FAILED), after("a", "f"), after("b", "nope"), after("c", "c")]
    plan = admit([*jobs, after("x", "y"), after("y", "z"), after("z", "y", "x")], Capacity(9))
    assert plan.start == ()
    assert plan.waiting == {
        "a": "waits for f, which is failed; runner retry f",
        "b": "waits for nope, which is not there; submit it",
        **{
            one: f"waits for {other}, which waits for this one; change one and submit it anew"
            for one, other in (("c", "c"), ("x", "y"), ("y", "z"), ("z", "y"))
        },
    }


SHARES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 4))
JOBS = st.lists(
    st.tuples(
        st.sampled_from([State.QUEUED, State.RUNNING, State.PAUSED]), SHARES, SHARES, st.integers(-1, 1)
    ),
    max_size=12,
).map(lambda rows: [job(chr(ord("a") + n), *row) for n, row in enumerate(rows)])


@given(JOBS, st.floats(0, 8), st.floats(0, 4))
def test_every_queued_job_starts_or_is_told_why_not(jobs: list[Job], cpus: float, gpus: float) -> None:
    plan = admit(jobs, Capacity(cpus, gpus))
    queued = {j.name for j in jobs if j.state is State.QUEUED}
    assert {*plan.start, *plan.waiting} == queued
    assert not {*plan.start} & {*plan.waiting}
    held = [j for j in jobs if j.state in ACTIVE]
    started = [j for j in jobs if j.name in plan.start]
    for what, capacity in (("cpus", cpus), ("gpus", gpus)):
        before = sum(getattr(j.spec.resources, what) for j in held)
        after = before + sum(getattr(j.spec.resources, what) for j in started)
        assert after <= max(capacity, before) + 1e-6
