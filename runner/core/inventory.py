"""What a machine has for jobs, and how it is given out: cpus, memory, and GPUs one by one.

A whole number of GPUs is that many whole devices. A share, such as 0.5, lies on one device, beside other
shares: on the fullest that still has room. A device that is not well is given to nobody; who has it keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from runner.core.job import Job
from runner.core.spec import JobSpec

#: Shares such as 0.9 and 0.1 do not add up to 1.0 exactly.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Device:
    """One GPU, by the name that CUDA and NVML know it by; `fault` says why it must not be used."""

    uuid: str
    fault: str = ""


@dataclass(frozen=True)
class Capacity:
    """What the machine offers to jobs."""

    cpus: float
    gpus: tuple[Device, ...] = ()
    memory_bytes: float = math.inf  #: where it is not known, it is not counted

    def lacks(self, need: Need) -> str:
        """Say what of `need` the whole machine never has; "" where it has all of it."""
        if need.cpus > self.cpus:
            return f"asks for {need.cpus:g} cpus; this machine has {self.cpus:g}"
        if need.memory_bytes > self.memory_bytes:
            return f"asks for {_mib(need.memory_bytes)} of memory; this machine has {_mib(self.memory_bytes)}"
        if not need.gpus or need.devices <= sum(not device.fault for device in self.gpus):
            return ""
        faults = ", ".join(f"{device.uuid} {device.fault}" for device in self.gpus if device.fault)
        well = sum(not device.fault for device in self.gpus)
        return f"asks for {need.gpus:g} gpus; this machine has {well}" + (f" ({faults})" if faults else "")


@dataclass(frozen=True)
class Need:
    """What an attempt occupies."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: float = 0.0

    @property
    def devices(self) -> int:
        """On how many GPUs it lies."""
        return math.ceil(self.gpus - _ROUNDING)

    @property
    def share(self) -> float:
        """What it occupies of each of them."""
        return self.gpus if self.gpus < 1 else 1.0


def need_of(spec: JobSpec) -> Need:
    """Return what an attempt at a job occupies; where no memory is reserved, its limit is."""
    resources = spec.resources
    memory = resources.memory_bytes
    return Need(resources.cpus, resources.gpus, (spec.limits.memory_bytes or 0) if memory is None else memory)


class Slots:
    """What is free of a capacity. Where more is occupied than there is, it is below zero."""

    def __init__(self, capacity: Capacity) -> None:
        self.cpus = capacity.cpus
        self.memory_bytes = capacity.memory_bytes
        self.shares = {device.uuid: 1.0 for device in capacity.gpus if not device.fault}

    def copy(self) -> Slots:
        """Return another with the same free."""
        other = Slots(Capacity(self.cpus, (), self.memory_bytes))
        other.shares = dict(self.shares)
        return other

    def place(self, need: Need) -> tuple[str, ...] | None:
        """Choose devices, () where none are needed; None where not all of `need` is free."""
        cpus, memory = need.cpus, need.memory_bytes
        if (cpus and cpus > self.cpus + _ROUNDING) or (memory and memory > self.memory_bytes):
            return None
        return self._choose(need) if need.gpus else ()

    def take(self, need: Need, devices: Iterable[str]) -> None:
        """Occupy `need`, on these devices; of those that are not well, nothing is counted."""
        self._add(need, devices, -1)

    def give(self, need: Need, devices: Iterable[str]) -> None:
        """Free what was taken."""
        self._add(need, devices, 1)

    def reserve(self, need: Need) -> bool:
        """Keep for `need` all that is free of what it takes, so that this only grows until it fits.

        Tell whether there was anything to keep.
        """
        cpus = max(0.0, min(need.cpus, self.cpus))
        memory_bytes = max(0.0, min(need.memory_bytes, self.memory_bytes))
        self.cpus -= cpus
        self.memory_bytes -= memory_bytes
        return self._keep_devices(need) or cpus > 0 or memory_bytes > 0

    def owe(self, need: Need) -> None:
        """Occupy `need` though it is not free: what is given back serves it first."""
        self.take(need, self._freest(need))

    def _add(self, need: Need, devices: Iterable[str], sign: int) -> None:
        self.cpus += sign * need.cpus
        self.memory_bytes += sign * need.memory_bytes
        self._occupy(devices, -sign * need.share)

    def _occupy(self, devices: Iterable[str], share: float) -> None:
        for uuid in devices:
            if uuid in self.shares:
                self.shares[uuid] -= share

    def _keep_devices(self, need: Need) -> bool:
        fitting = self._choose(need) if need.gpus else ()
        if fitting is not None:
            self._occupy(fitting, need.share)
            return bool(fitting)
        partly = [uuid for uuid in self._freest(need) if self.shares[uuid] > 0]
        for uuid in partly:
            self.shares[uuid] = 0.0
        return bool(partly)

    def _freest(self, need: Need) -> list[str]:
        if not need.gpus:
            return []
        return sorted(self.shares, key=self.shares.__getitem__, reverse=True)[: need.devices]

    def _choose(self, need: Need) -> tuple[str, ...] | None:
        share = need.share
        room = [uuid for uuid, free in self.shares.items() if free + _ROUNDING >= share]
        if share < 1:
            room.sort(key=self.shares.__getitem__)
        return tuple(room[: need.devices]) if len(room) >= need.devices else None


def devices_of(job: Job) -> tuple[str, ...]:
    """Return the devices that the job's newest attempt was given."""
    return (job.current.gpus if job.current else None) or ()


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
