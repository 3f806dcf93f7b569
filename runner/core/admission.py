"""Which queued jobs may start now: by priority, then by order of arrival, within what the machine has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runner.core.job import ACTIVE, Job, State

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


def admit(jobs: Iterable[Job], capacity: Capacity) -> Plan:
    """Choose what to start.

    A job that does not fit holds back the ones behind it (no starvation), unless it asks for more than the
    whole machine has: that one is passed over and told so.
    """
    known = list(jobs)
    free_cpus = capacity.cpus - sum(job.spec.resources.cpus for job in known if job.state in ACTIVE)
    free_gpus = capacity.gpus - sum(job.spec.resources.gpus for job in known if job.state in ACTIVE)
    start: list[str] = []
    waiting: dict[str, str] = {}
    blocked = False
    for job in sorted((j for j in known if j.state is State.QUEUED), key=_turn):
        need = job.spec.resources
        if need.cpus > capacity.cpus or need.gpus > capacity.gpus:
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


def _turn(job: Job) -> tuple[int, int]:
    return (-job.spec.priority, job.order)
