"""Which queued jobs may start now: by priority, then by order of arrival, within what the machine has.

A job that comes `after` others waits until each of them has succeeded; it holds back nobody meanwhile. One
that asks for more than the whole machine has is passed over, and told so.

A job that does not fit keeps for itself what is free of what it needs. Those behind it may have the rest:
they cannot delay it. What it keeps may only be had by a job whose `limits.wall` ends it in time: all that
pass a job together delay it by `PATIENCE_S` at most.

A day in the queue counts as one priority more (`aged`): for a job's turn, and against being stopped later;
nobody is stopped for it. So those of higher priority pass a job only for as many days as their priority is
higher, and after that do not stop it any more. What it has waited is in its record: neither a restart of the
daemon nor being preempted takes it away. So nobody starves.

Where it would fit if running jobs of lower priority stopped, those checkpoint, stop and are queued again: the
lowest priorities first, the newest among equals, and no more than it takes. Equals never stop each other, so
none of them can have its place back by force; and for a job that fails again and again without getting any
further, nobody is stopped after a while.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runner.core.inventory import Capacity, Need, Slots, devices_of, need_of
from runner.core.job import SETTLED, Job, Moment, Outcome, State
from runner.core.ledger import rested_s, waited_s
from runner.core.spec import PRIORITY_MAX

#: For so long at most a job is held up by those that pass it.
PATIENCE_S = 3600.0
#: So long a wait counts as one priority more.
AGING_S = 86_400.0
#: Who has ended so often in a row without a newer checkpoint has no more jobs stopped for it.
FRUITLESS_MAX = 3


@dataclass
class Plan:
    """Names to start, in order, each with its devices; to stop, and those that wait, each with its reason.

    `since` is when each of those that would fit on the machine began to wait: the next plan needs it.
    """

    gpus: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    preempt: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    @property
    def start(self) -> tuple[str, ...]:
        """Names to start, in order."""
        return tuple(self.gpus)


def admit(
    jobs: Iterable[Job],
    capacity: Capacity,
    *,
    alone: bool = False,
    now_s: float = 0.0,
    since: Mapping[str, float] | None = None,
    ages: Mapping[str, int] | None = None,
) -> Plan:
    """Choose what to start and what to stop.

    Args:
        jobs: all that are known.
        capacity: what the machine has.
        alone: of one job, whatever it comes after; no GPU is hidden from it.
        now_s: the time, by any clock that does not go back.
        since: that of the plan before; of the first plan, `begun`.
        ages: what waiting has added to priorities, as `aged` tells it.
    """
    known = list(jobs)
    by_name = {job.name: job for job in known}
    of_state: defaultdict[State, list[Job]] = defaultdict(list)
    for job in known:
        of_state[job.state].append(job)
    turns = _Turns(of_state, capacity, now_s, since or {}, ages or {}, alone=alone)
    queued = of_state[State.QUEUED]
    queued.sort(key=lambda job: job.order)
    queued.sort(key=turns.rank, reverse=True)
    for job in queued:
        before = _awaited(job, by_name) if job.spec.after and not alone else ""
        if before:
            turns.plan.waiting[job.name] = before
        else:
            turns.call(job)
    turns.leave_faulty()
    return turns.plan


def aged(jobs: Iterable[Job], now: Moment) -> dict[str, int]:
    """Return by name what waiting has added to priorities: one for each day, up to what a job may ask for."""
    days = {job.name: (job.spec.priority, int(waited_s(job, now) // AGING_S)) for job in jobs}
    return {name: max(0, min(more, PRIORITY_MAX - own)) for name, (own, more) in days.items() if more}


def begun(jobs: Iterable[Job], now_s: float, now: Moment) -> dict[str, float]:
    """Return when each queued job began to wait, by the clock of `now_s`, as far as its record tells."""
    queued = (job for job in jobs if job.state is State.QUEUED)
    return {job.name: now_s - (rested_s(job, now) if job.since else 0.0) for job in queued}


@dataclass
class _Asked:
    """What is known of all jobs that need the same."""

    need: Need
    lacks: str  #: what the machine never has of it
    shut: bool = False  #: it does not fit, and there is nothing more to keep for it
    in_vain: float = -math.inf  #: no room can be made for a job of this priority, or of a lower one


class _Turns:
    """What is left while one queued job after the other has its turn."""

    def __init__(
        self,
        of_state: Mapping[State, list[Job]],
        capacity: Capacity,
        now_s: float,
        since: Mapping[str, float],
        ages: Mapping[str, int],
        *,
        alone: bool,
    ) -> None:
        self.plan = Plan()
        self._capacity = capacity
        self._now_s = now_s
        self._since = since
        self._ages = ages
        self._unasked = () if capacity.gpus and not alone else None  #: for a job that asks for no GPU
        self._free = Slots(capacity)
        running, stopping = of_state[State.RUNNING], of_state[State.STOPPING]
        for job in (*running, *stopping):
            self._free.take(need_of(job.spec), devices_of(job))
        self._open = self._free.copy()  #: less what jobs that wait keep for themselves
        self._soon = self._free.copy()  #: with what is stopping; less what jobs that wait will have
        for job in stopping:
            self._soon.give(need_of(job.spec), devices_of(job))
        self._stoppable = [job for job in running if may_be_stopped(job)]
        self._stoppable.sort(key=lambda job: (job.current.started_at if job.current else "", job.order))
        self._stoppable.reverse()
        self._stoppable.sort(key=self.rank)
        self._asked: dict[tuple[float, float, int | None, int | None], _Asked] = {}
        self._pass_until_s = math.inf  #: who surely ends by then may have what others keep

    def rank(self, job: Job) -> int:
        """Return the job's priority with what waiting has added to it."""
        return job.spec.priority + self._ages.get(job.name, 0)

    def call(self, job: Job) -> None:
        """Let the next one start, or wait."""
        asked = self._look_up(job)
        if asked.lacks:
            self.plan.waiting[job.name] = asked.lacks
            return
        devices = None if asked.shut else self._open.place(asked.need)
        if devices is None and job.spec.limits.wall_s is not None:
            devices = self._pass(job, asked.need)
        if devices is None:
            self._wait(job, asked)
            return
        for slots in (self._free, self._open, self._soon):
            slots.take(asked.need, devices)
        self.plan.gpus[job.name] = devices if asked.need.gpus else self._unasked

    def leave_faulty(self) -> None:
        """Have running jobs leave devices that are not well, where there is another place for them."""
        faults = {device.uuid: device.fault for device in self._capacity.gpus}
        for job in self._stoppable:
            lost = [uuid for uuid in devices_of(job) if faults.get(uuid, "is not there")]
            place = self._room_without([job]).place(need_of(job.spec)) if lost else None
            if place:
                self._stop(job, f"leaves {lost[0]}, which {faults.get(lost[0], 'is not there')}")
                self._soon.take(need_of(job.spec), place)

    def _look_up(self, job: Job) -> _Asked:
        wish = job.spec.resources
        key = (wish.cpus, wish.gpus, wish.memory_bytes, job.spec.limits.memory_bytes)
        asked = self._asked.get(key)
        if asked is None:
            need = need_of(job.spec)
            asked = self._asked[key] = _Asked(need, self._capacity.lacks(need))
        return asked

    def _pass(self, job: Job, need: Need) -> tuple[str, ...] | None:
        """Choose devices among what others keep, for a job that surely ends in time."""
        limits = job.spec.limits
        ends_s = self._now_s + (limits.wall_s or 0.0) + limits.grace_s
        return self._free.place(need) if ends_s <= self._pass_until_s else None

    def _wait(self, job: Job, asked: _Asked) -> None:
        since_s = self.plan.since[job.name] = self._since.get(job.name, self._now_s)
        self.plan.waiting[job.name] = _waits(job)
        self._pass_until_s = min(self._pass_until_s, since_s + PATIENCE_S)
        for other in self._victims(job, asked) if self._stoppable else ():
            self._stop(other, f"makes room for {job.name}")
        comes = self._soon.place(asked.need)
        if comes is not None:
            self._soon.take(asked.need, comes)
            self._pass_until_s = -math.inf  # room is being made: not for others
        elif not asked.shut:
            self._soon.owe(asked.need)
        asked.shut = asked.shut or not self._open.reserve(asked.need)

    def _victims(self, job: Job, asked: _Asked) -> list[Job]:
        """Choose the running jobs that have to stop for this one; none where that would not do."""
        if self.rank(self._stoppable[0]) >= job.spec.priority:
            return []
        if job.spec.priority <= asked.in_vain or job.fruitless >= FRUITLESS_MAX:
            return []
        if self._soon.place(asked.need) is not None:
            return []
        weaker = [other for other in self._stoppable if self.rank(other) < job.spec.priority]
        for count in range(1, len(weaker) + 1):
            if self._room_without(weaker[:count]).place(asked.need) is not None:
                return self._spare(weaker[:count], asked.need)
        asked.in_vain = job.spec.priority
        return []

    def _spare(self, chosen: list[Job], need: Need) -> list[Job]:
        """Return those without whom there is no room, sparing the most urgent and the oldest first."""
        for other in reversed(chosen[:-1]):
            others = [one for one in chosen if one is not other]
            if self._room_without(others).place(need) is not None:
                chosen = others
        return chosen

    def _room_without(self, stopped: list[Job]) -> Slots:
        room = self._soon.copy()
        for job in stopped:
            room.give(need_of(job.spec), devices_of(job))
        return room

    def _stop(self, job: Job, reason: str) -> None:
        self.plan.preempt[job.name] = reason
        self._soon.give(need_of(job.spec), devices_of(job))
        self._stoppable = [other for other in self._stoppable if other is not job]


def may_be_stopped(job: Job) -> bool:
    """Tell whether a running job may be stopped for another one.

    Where its job.toml does not say: a script that has a checkpoint to go on from may, a command not.
    """
    wish = job.spec.resources.preemptible
    return wish if wish is not None else job.spec.command is None and job.checkpoint is not None


def _waits(job: Job) -> str:
    last = job.current
    if last is not None and last.outcome is Outcome.PREEMPTED and last.reason:
        return f"waits for a free slot (preempted: {last.reason})"
    return "waits for a free slot"


def _awaited(job: Job, by_name: Mapping[str, Job]) -> str:
    """Say which job this one waits for, and why that takes; "" where there is none."""
    for name in job.spec.after:
        other = by_name.get(name)
        if other is None:
            return f"waits for {name}, which is not there; submit it"
        if other.state is State.SUCCEEDED:
            continue
        if _waits_for(other, job.name, by_name):
            return f"waits for {name}, which waits for this one; change one and submit it anew"
        if other.state in SETTLED:
            return f"waits for {name}, which is {other.state.value}; runner retry {name}"
        return f"waits for {name}"
    return ""


def _waits_for(job: Job, name: str, by_name: Mapping[str, Job]) -> bool:
    """Tell whether a job comes after the one of that name, directly or through others."""
    seen, stack = set(), [job]
    while stack:
        for other in stack.pop().spec.after:
            if other == name:
                return True
            if other in by_name and other not in seen:
                seen.add(other)
                stack.append(by_name[other])
    return False
