"""Which queued jobs may start now: by priority, then by order of arrival, within what the machine has.

A job that comes `after` others waits until each of them has succeeded; it holds back nobody meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.core.job import ACTIVE, SETTLED, Job, State

#: Shares such as 0.9 and 0.1 do not add up to 1.0 exactly.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What the machine offers to jobs."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Names to start, in order, and for those that must wait the reason to show."""

    start: tuple[str, ...]
    waiting: dict[str, str]


def admit(jobs: Iterable[Job], capacity: Capacity, *, alone: bool = False) -> Plan:
    """Choose what to start; `alone`: of one job, whatever it comes after.

    A job that does not fit holds back the ones behind it (no starvation), unless it asks for more than the
    whole machine has: that one is passed over and told so.
    """
    known = list(jobs)
    by_name = {job.name: job for job in known}
    free_cpus = capacity.cpus - sum(job.spec.resources.cpus for job in known if job.state in ACTIVE)
    free_gpus = capacity.gpus - sum(job.spec.resources.gpus for job in known if job.state in ACTIVE)
    start: list[str] = []
    waiting: dict[str, str] = {}
    blocked = False
    for job in sorted((j for j in known if j.state is State.QUEUED), key=_turn):
        need, before = job.spec.resources, "" if alone else _awaited(job, by_name)
        if before:
            waiting[job.name] = before
        elif need.cpus > capacity.cpus or need.gpus > capacity.gpus:
            waiting[job.name] = (
                f"asks for {need.cpus:g} cpus and {need.gpus:g} gpus; "
                f"this machine has {capacity.cpus:g} and {capacity.gpus:g}"
            )
        elif blocked or need.cpus > free_cpus + _ROUNDING or need.gpus > free_gpus + _ROUNDING:
            blocked = True
            waiting[job.name] = "waits for a free slot"
        else:
            free_cpus -= need.cpus
            free_gpus -= need.gpus
            start.append(job.name)
    return Plan(tuple(start), waiting)


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


def _turn(job: Job) -> tuple[int, int]:
    return (-job.spec.priority, job.order)
