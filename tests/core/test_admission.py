"""Who may start now, and what the others are told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core.admission import AGING_S, FRUITLESS_MAX, PATIENCE_S, Plan, admit, aged, begun
from runner.core.inventory import Capacity, Device, Slots, devices_of, need_of
from runner.core.job import ACTIVE, UNSEEN_S_MAX, Attempt, CheckpointRef, Job, Ledger, Moment, Outcome, State
from runner.core.ledger import passed
from runner.core.spec import PRIORITY_MAX, JobSpec, LimitsSpec, ResourcesSpec
from tests.core.life import at

BOTH = (Device("GPU-0"), Device("GPU-1"))


def job(
    name: str,
    state: State = State.QUEUED,
    cpus: float = 1,
    gpus: float = 0,
    priority: int = 0,
    on: tuple[str, ...] = (),
    wall_s: float | None = None,
    order: int | None = None,
    **resources: Any,
) -> Job:
    """A script with a checkpoint; `on` are the devices that it was given."""
    limits = LimitsSpec(wall_s=wall_s, grace_s=0)
    spec = JobSpec(priority=priority, resources=ResourcesSpec(cpus, gpus, **resources), limits=limits)
    order = ord(name) if order is None else order
    found = Job(name, state, at(0).iso, order, spec, checkpoint=CheckpointRef("c", 1, 0))
    return found.with_attempt(Attempt(1, at(0).iso, gpus=on)) if state in ACTIVE else found


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
        "a": "asks for 8 cpus; this machine has 2",
        "b": "asks for 1 gpus; this machine has 0",
    }
    much = [job("a", memory_bytes=3 << 20), job("b", memory_bytes=2 << 20)]
    plan = admit(much, Capacity(2, memory_bytes=2 << 20))
    assert plan.start == ("b",)
    assert plan.waiting == {"a": "asks for 3 MiB of memory; this machine has 2 MiB"}


def test_shares_that_add_up_to_the_whole_fit() -> None:
    shares = [0.7, 0.2, 0.1]
    jobs = [job(chr(ord("a") + n), cpus=share, gpus=share) for n, share in enumerate(shares)]
    plan = admit(jobs, Capacity(1, BOTH[:1]))
    assert plan.gpus == {"a": ("GPU-0",), "b": ("GPU-0",), "c": ("GPU-0",)}
    held = [
        job(j.name, State.RUNNING, share, share, on=("GPU-0",)) for j, share in zip(jobs, shares, strict=True)
    ]
    assert admit([*held[:2], jobs[2]], Capacity(1, BOTH[:1])).start == ("c",)


def test_a_machine_that_shrank_starts_nothing() -> None:
    assert admit([job("a", State.RUNNING, cpus=4), job("b")], Capacity(2)).start == ()


def test_memory_is_a_slot_and_by_default_as_much_as_the_limit() -> None:
    limited = replace(job("a"), spec=JobSpec(limits=LimitsSpec(memory_bytes=600)))
    none = replace(
        job("c"), spec=JobSpec(limits=limited.spec.limits, resources=ResourcesSpec(memory_bytes=0))
    )
    plan = admit([limited, job("b", memory_bytes=500), none], Capacity(9, memory_bytes=1000))
    assert plan.start == ("a", "c")


# --- GPUs -------------------------------------------------------------------------------------------------


def test_whole_devices_and_shares_of_one() -> None:
    jobs = [job("a", gpus=0.5), job("b", gpus=1), job("c", gpus=0.5), job("d", gpus=0.25)]
    plan = admit(jobs, Capacity(9, BOTH))
    assert plan.gpus == {"a": ("GPU-0",), "b": ("GPU-1",), "c": ("GPU-0",)}
    assert plan.waiting == {"d": "waits for a free slot"}


def test_shares_are_packed_on_the_fullest_device_that_has_room() -> None:
    running = [
        job("r", State.RUNNING, gpus=0.25, on=("GPU-0",)),
        job("s", State.STOPPING, gpus=0.5, on=("GPU-1",)),
    ]
    plan = admit([*running, job("a", gpus=0.5), job("b", gpus=0.75)], Capacity(9, BOTH))
    assert plan.gpus == {"a": ("GPU-1",), "b": ("GPU-0",)}


def test_a_share_is_never_spread_over_two_devices() -> None:
    halves = [job(name, State.RUNNING, gpus=0.5, on=(f"GPU-{n}",)) for n, name in enumerate("rs")]
    assert admit([*halves, job("a", gpus=0.75)], Capacity(9, BOTH)).start == ()
    assert admit([*halves, job("a", gpus=1)], Capacity(9, BOTH)).start == ()


def test_a_job_without_gpus_sees_none_where_there_are_some() -> None:
    assert admit([job("a")], Capacity(9, BOTH)).gpus == {"a": ()}
    assert admit([job("a")], Capacity(9)).gpus == {"a": None}
    assert admit([job("a")], Capacity(9, BOTH), alone=True).gpus == {"a": None}


def test_a_device_that_is_not_well_is_given_to_nobody() -> None:
    gpus = (Device("GPU-0", "is lost"), Device("GPU-1"))
    plan = admit([job("a", gpus=1), job("b", gpus=2), job("c", gpus=0.5)], Capacity(9, gpus))
    assert plan.gpus == {"a": ("GPU-1",)}
    assert plan.waiting == {
        "b": "asks for 2 gpus; this machine has 1 (GPU-0 is lost)",
        "c": "waits for a free slot",
    }


def test_a_job_leaves_a_device_that_is_not_well_for_another() -> None:
    gpus = (Device("GPU-0", "is lost"), Device("GPU-1"))
    sick = job("r", State.RUNNING, gpus=1, on=("GPU-0",))
    assert admit([sick], Capacity(9, gpus)).preempt == {"r": "leaves GPU-0, which is lost"}
    assert admit([sick], Capacity(9, BOTH[1:])).preempt == {"r": "leaves GPU-0, which is not there"}
    assert admit([sick], Capacity(9, gpus[:1])).preempt == {}, "there is no other"
    command = replace(sick, spec=replace(sick.spec, command=("x",)))
    assert admit([command], Capacity(9, gpus)).preempt == {}


# --- passing ----------------------------------------------------------------------------------------------


def test_who_takes_nothing_that_another_waits_for_may_pass_it() -> None:
    held = job("r", State.RUNNING, gpus=2, on=("GPU-0", "GPU-1"))
    plan = admit([held, job("a", cpus=2, gpus=1), job("b"), job("c")], Capacity(4, BOTH))
    assert plan.start == ("b",), "one of four cpus runs r, two are kept for a"
    assert set(plan.waiting) == {"a", "c"}


def test_what_becomes_free_of_devices_is_kept_for_who_waits_for_whole_ones() -> None:
    half = [job(name, State.RUNNING, gpus=0.5, on=(f"GPU-{n}",)) for n, name in enumerate("rs")]
    plan = admit([*half, job("a", gpus=1), job("b", gpus=0.5), job("c", gpus=0.5)], Capacity(9, BOTH))
    assert plan.gpus == {"b": ("GPU-1",)}


def test_who_surely_ends_in_time_may_pass() -> None:
    jobs = [job("r", State.RUNNING), job("a", cpus=2), job("b", wall_s=PATIENCE_S)]
    plan = admit(jobs, Capacity(2), now_s=100)
    assert plan.start == ("b",)
    assert plan.since == {"a": 100}
    assert admit(jobs, Capacity(2), now_s=101, since=plan.since).start == ()
    shorter = [*jobs[:2], job("b", wall_s=PATIENCE_S - 1)]
    assert admit(shorter, Capacity(2), now_s=101, since=plan.since).start == ("b",)
    unlimited = [*jobs[:2], job("b")]
    assert admit(unlimited, Capacity(2), now_s=100).start == ()


def test_nobody_passes_while_room_is_being_made() -> None:
    jobs = [job("r", State.STOPPING), job("a", cpus=2), job("b", wall_s=1)]
    assert admit(jobs, Capacity(2)).start == ()


# --- making room ------------------------------------------------------------------------------------------


def running(name: str, priority: int = 0, started_s: float = 0, cpus: float = 1, **resources: Any) -> Job:
    found = job(name, State.RUNNING, cpus, priority=priority, **resources)
    return found.with_attempt(Attempt(1, at(started_s).iso))


def test_the_lowest_and_among_equals_the_newest_make_room() -> None:
    jobs = [running("p", 0, 5), running("q", -1, 1), running("r", -1, 9), running("s", -1, 4)]
    assert admit([*jobs, job("a", priority=1)], Capacity(4)).preempt == {"r": "makes room for a"}
    assert [*admit([*jobs, job("a", cpus=2, priority=1)], Capacity(4)).preempt] == ["r", "s"]
    assert [*admit([*jobs, job("a", cpus=4, priority=1)], Capacity(4)).preempt] == ["r", "s", "q", "p"]


@pytest.mark.parametrize(
    "other",
    [
        running("p", 1),
        running("p", 2),
        running("p", preemptible=False),
        replace(running("p"), checkpoint=None),
        replace(running("p"), spec=JobSpec(command=("x",))),
        replace(running("p"), state=State.STOPPING),
    ],
    ids=["equal", "more urgent", "unwilling", "nothing saved", "a command", "stopping already"],
)
def test_nobody_else_makes_room(other: Job) -> None:
    plan = admit([other, job("a", priority=1)], Capacity(1))
    assert (plan.preempt, plan.start) == ({}, ())


def test_a_command_that_says_so_makes_room_with_nothing_saved() -> None:
    spec = JobSpec(command=("x",), resources=ResourcesSpec(preemptible=True))
    willing = replace(running("p"), spec=spec, checkpoint=None)
    assert admit([willing, job("a", priority=1)], Capacity(1)).preempt == {"p": "makes room for a"}


def test_nobody_stops_where_it_would_not_do_or_need_not_be() -> None:
    jobs = [running("p"), running("q", 2, cpus=2)]
    assert admit([*jobs, job("a", cpus=2, priority=1)], Capacity(3)).preempt == {}
    stops = replace(running("s"), state=State.STOPPING)
    assert admit([running("p"), stops, job("a", priority=1)], Capacity(2)).preempt == {}
    both = [running("p"), stops, job("a", priority=1), job("b", priority=1)]
    assert admit(both, Capacity(2)).preempt == {"p": "makes room for b"}


def test_nobody_stops_in_vain_for_the_one_behind_who_would_not_get_it() -> None:
    jobs = [running("p"), running("q", 5, cpus=3), job("a", cpus=3, priority=2), job("b", priority=1)]
    assert admit(jobs, Capacity(4)).preempt == {}


def test_those_that_do_not_help_are_spared() -> None:
    small = replace(job("p", State.RUNNING, gpus=0.5, on=("GPU-0",)), order=1)
    whole = job("q", State.RUNNING, gpus=1, on=("GPU-1",), priority=1)
    rest = job("r", State.RUNNING, gpus=0.5, on=("GPU-0",), priority=3)
    plan = admit([small, whole, rest, job("a", gpus=1, priority=2)], Capacity(9, BOTH))
    assert [*plan.preempt] == ["q"]


def test_for_who_gets_nowhere_nobody_is_stopped_any_more() -> None:
    for fruitless in range(FRUITLESS_MAX + 1):
        high = replace(job("a", priority=1), fruitless=fruitless)
        assert bool(admit([running("p"), high], Capacity(1)).preempt) == (fruitless < FRUITLESS_MAX)


def test_who_made_room_is_told_why_it_waits() -> None:
    ended = Attempt(1, at(0).iso, ended_at=at(1).iso, outcome=Outcome.PREEMPTED, reason="makes room for a")
    low = job("b").with_attempt(ended)
    plan = admit([job("a", State.RUNNING, priority=1), low], Capacity(1))
    assert plan.waiting == {"b": "waits for a free slot (preempted: makes room for a)"}
    assert plan.preempt == {}


# --- aging ------------------------------------------------------------------------------------------------


def admit_at(moment: Moment, jobs: list[Job], capacity: Capacity) -> Plan:
    return admit(jobs, capacity, ages=aged(jobs, moment))


def test_a_day_in_the_queue_counts_as_one_priority() -> None:
    old, new = job("b"), replace(job("a", priority=2), since=at(2 * AGING_S - 1).iso)
    assert admit_at(at(2 * AGING_S - 1), [old, new], Capacity(1)).start == ("a",)
    assert admit_at(at(2 * AGING_S), [old, new], Capacity(1)).start == ("a",), "it came first"
    assert admit_at(at(2 * AGING_S), [old, replace(new, order=999)], Capacity(1)).start == ("b",)


def test_who_has_waited_is_not_stopped_and_has_nobody_stopped() -> None:
    low = replace(running("p"), ledger=Ledger(waiting_s=AGING_S))
    assert admit_at(at(9), [low, job("a", priority=1)], Capacity(1)).preempt == {}
    assert admit_at(at(9), [low, job("a", priority=2)], Capacity(1)).preempt == {"p": "makes room for a"}
    assert admit_at(at(9 * AGING_S), [running("p"), job("a")], Capacity(1)).preempt == {}
    queue = [replace(job("a"), ledger=low.ledger), job("b", cpus=2, priority=1)]
    plan = admit_at(at(9), [running("p"), running("q", 1, cpus=2), *queue], Capacity(3))
    assert plan.preempt == {}, "there is no room for both"


def test_a_clock_that_is_set_makes_no_job_older() -> None:
    dated = at(0, step_s=-20_000 * AGING_S)
    low = replace(job("a"), since=dated.iso, since_boot=dated.boot, since_s=dated.clock_s)
    assert aged([low], at(AGING_S - 1)) == {}
    assert aged([low], at(AGING_S)) == {"a": 1}
    assert aged([low], at(9, boot="next")) == {"a": UNSEEN_S_MAX // AGING_S}, "only the wall clock knows"
    old = replace(low, ledger=Ledger(waiting_s=20_000 * AGING_S), spec=JobSpec(priority=7))
    assert aged([old], at(9)) == {"a": PRIORITY_MAX - 7}
    assert begun([low], 7.0, at(9)) == {"a": 7.0 - 9}


def test_the_first_plan_knows_from_the_records_since_when_jobs_wait() -> None:
    jobs = [job("r", State.RUNNING), replace(job("a", cpus=2), since=at(100).iso), job("b", wall_s=60)]
    now = at(100 + PATIENCE_S)
    since = begun(jobs, 7.0, now)
    assert since == {"a": 7.0 - PATIENCE_S, "b": 7.0}
    assert admit(jobs, Capacity(2), now_s=7.0, since=since).start == ()
    assert admit(jobs, Capacity(2), now_s=7.0).start == ("b",)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.randoms(use_true_random=False))
def test_higher_priorities_keep_nobody_longer_than_a_day_each(
    higher: int, runs_h: int, size: int, chance: random.Random
) -> None:
    """Those that come do so faster than there is room, but for some gaps; the low one needs all of it."""
    low, needs_h, late = replace(job("a", cpus=size), since=at(0).iso), 30, {}
    bound_h = higher * 24 + runs_h + needs_h + 1
    for hour in range(bound_h + 1):
        now = at(3600.0 * hour)
        late = {name: one for name, one in late.items() if hour - int(name[1:].split(".")[0]) < runs_h}
        if chance.random() < 0.8:
            fresh = [job(f"h{hour}.{n}", priority=higher, order=1000 + hour) for n in range(size)]
            late |= {one.name: replace(one, since=now.iso) for one in fresh}
        jobs = [low, *late.values()]
        plan = admit(jobs, Capacity(size), now_s=3600.0 * hour, ages=aged(jobs, now))
        if low.name in {*plan.start, *plan.preempt}:
            to = State.RUNNING if plan.start else State.QUEUED
            low = replace(passed(low, now).with_attempt(Attempt(1, now.iso)), state=to)
        for name in set(late) & {*plan.start}:
            late[name] = replace(late[name].with_attempt(Attempt(1, now.iso)), state=State.RUNNING)
        late = {name: one for name, one in late.items() if one.state is State.RUNNING}
        needs_h -= low.state is State.RUNNING
        if not needs_h:
            return
    raise AssertionError(f"it lacks {needs_h} h of {bound_h}")


# --- after ------------------------------------------------------------------------------------------------


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


# --- whatever there is ------------------------------------------------------------------------------------

SHARES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 4))
GPUS = st.sampled_from([0.0, 0.0, 0.25, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0])
DEVICES = st.lists(st.sampled_from(["", "", "is lost"]), max_size=4).map(
    lambda faults: tuple(Device(f"GPU-{n}", fault) for n, fault in enumerate(faults))
)
WISHES = st.lists(
    st.tuples(
        SHARES,
        GPUS,
        st.integers(-1, 1),
        st.sampled_from([None, 10.0, PATIENCE_S]),
        st.sampled_from([None, 0, 1, 3]),
        st.sampled_from([None, True, False]),
    ),
    max_size=12,
)
CAPACITIES = st.builds(Capacity, st.floats(0, 8), DEVICES, st.sampled_from([4.0, float("inf")]))
MOVES = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["end", "stop", "requeue"])), max_size=20)


def jobs_of(wishes: list[Any]) -> dict[str, Job]:
    return {
        (name := chr(ord("a") + n)): job(
            name,
            cpus=cpus,
            gpus=gpus,
            priority=priority,
            wall_s=wall_s,
            memory_bytes=memory,
            preemptible=wish,
        )
        for n, (cpus, gpus, priority, wall_s, memory, wish) in enumerate(wishes)
    }


def apply(plan: Plan, jobs: dict[str, Job], number: int) -> None:
    """Do what a plan says, as the table does it."""
    for name in plan.preempt:
        assert jobs[name].state is State.RUNNING
        jobs[name] = replace(jobs[name], state=State.STOPPING)
    for name, gpus in plan.gpus.items():
        started = Attempt(number, at(number).iso, gpus=gpus)
        jobs[name] = replace(jobs[name].with_attempt(started), state=State.RUNNING)


def check_never_over_allocated(jobs: dict[str, Job], capacity: Capacity) -> None:
    active = [one for one in jobs.values() if one.state in ACTIVE]
    needs = [need_of(one.spec) for one in active]
    assert sum(need.cpus for need in needs) <= capacity.cpus + 1e-6
    assert sum(need.memory_bytes for need in needs) <= capacity.memory_bytes
    for device in capacity.gpus:
        on = [need.share for one, need in zip(active, needs, strict=True) if device.uuid in devices_of(one)]
        assert sum(on) <= (0 if device.fault else 1 + 1e-6)
    for one, need in zip(active, needs, strict=True):
        assert len(set(devices_of(one))) == len(devices_of(one)) == need.devices
        assert need.share == 1 or need.devices <= 1


@given(WISHES, CAPACITIES, MOVES)
def test_nothing_is_given_out_twice_and_all_comes_back(
    wishes: list[Any], capacity: Capacity, moves: list[tuple[int, str]]
) -> None:
    jobs = jobs_of(wishes)
    since: dict[str, float] = {}
    for number, (which, what) in enumerate([(0, ""), *moves]):
        name = chr(ord("a") + which)
        if name in jobs and jobs[name].state in ACTIVE:
            to = {"end": State.SUCCEEDED, "stop": State.STOPPING, "requeue": State.QUEUED}[what]
            jobs[name] = replace(jobs[name], state=to)
        queued = {one.name for one in jobs.values() if one.state is State.QUEUED}
        plan = admit(jobs.values(), capacity, now_s=number, since=since)
        assert plan == admit(reversed(jobs.values()), capacity, now_s=number, since=since), "by turns alone"
        assert {*plan.start, *plan.waiting} == queued
        assert not {*plan.start} & {*plan.waiting}
        assert {*plan.since} <= {*plan.waiting}
        apply(plan, jobs, number)
        check_never_over_allocated(jobs, capacity)
        since = plan.since
    slots, whole = Slots(capacity), Slots(capacity)
    for sign in (slots.take, slots.give):
        for one in jobs.values():
            if one.state in ACTIVE:
                sign(need_of(one.spec), devices_of(one))
    assert slots.cpus == pytest.approx(whole.cpus)
    assert slots.shares == pytest.approx(whole.shares)


@given(WISHES, CAPACITIES, st.randoms(use_true_random=False))
def test_whoever_waits_starts_in_the_end_whatever_comes_behind(
    wishes: list[Any], capacity: Capacity, chance: random.Random
) -> None:
    """Small jobs keep coming, more than there is room for; one of all that run ends every minute."""
    jobs = jobs_of(wishes)
    waited = {one.name for one in jobs.values() if not capacity.lacks(need_of(one.spec))}
    shapes = [(1.0, 0.0, None), (0.5, 0.5, None), (1.0, 0.25, 1800.0), (0.0, 1.0, 3000.0)]
    since: dict[str, float] = {}
    for number in range(400):
        waited -= {name for name in waited if jobs[name].state is not State.QUEUED}
        if not waited:
            return
        for late in (f"late{number}.{n}" for n in range(6)):
            cpus, gpus, wall_s = chance.choice(shapes)
            rest = {"priority": -1, "wall_s": wall_s, "preemptible": False, "order": 1000 + number}
            jobs[late] = job(late, cpus=cpus, gpus=gpus, **rest)
        plan = admit(jobs.values(), capacity, now_s=60.0 * number, since=since)
        since = plan.since
        apply(plan, jobs, number)
        for stopping in [one for one in jobs.values() if one.state is State.STOPPING]:
            jobs[stopping.name] = replace(stopping, state=State.QUEUED)
        active = [one for one in jobs.values() if one.state in ACTIVE]
        for late in [one.name for one in jobs.values() if one.state is State.QUEUED and one.order >= 1000]:
            del jobs[late]  # it goes elsewhere; there are others
        over = [
            one for one in active if one.spec.limits.wall_s and _ran_s(one, number) >= one.spec.limits.wall_s
        ]
        for one in over or active[:1]:
            del jobs[one.name]
            waited.discard(one.name)
    raise AssertionError(f"still waiting: {waited}")


def _ran_s(one: Job, number: int) -> float:
    return 60.0 * (number - (one.current.number if one.current else 0))


@given(WISHES, CAPACITIES)
def test_room_is_made_once_and_for_the_one_that_it_is_made_for(wishes: list[Any], capacity: Capacity) -> None:
    """All that stop have stopped: then who asked for it starts, and nobody stops for those that stopped."""
    jobs = jobs_of(wishes)
    for priority in (-1, 0, 1):  # the least urgent come first, and each takes what it can get
        present = {name: one for name, one in jobs.items() if one.spec.priority <= priority}
        for number in range(20):
            plan = admit(present.values(), capacity, now_s=number)
            for name, reason in plan.preempt.items():
                other = jobs[reason.rpartition(" ")[2]]
                assert other.spec.priority > jobs[name].spec.priority
            apply(plan, present, number)
            for one in [one for one in present.values() if one.state is State.STOPPING]:
                present[one.name] = replace(one, state=State.QUEUED)
            if not plan.preempt and not plan.gpus:
                break
        else:
            raise AssertionError("it goes on and on")
        jobs |= present
