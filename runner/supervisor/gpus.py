"""Which GPUs the machine has, and whether they are well: what `nvidia-smi` says, else what the driver lists.

`nvidia-smi` asks NVML, needs no CUDA, and may take seconds, or for ever where a device hangs. So nothing here
waits for it: a look is begun, and what it found is told when it has ended. One that does not end in time says
that no device is well.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from runner.core.inventory import Device
from runner.supervisor import mirrors
from runner.supervisor.loop import Loop, Timer

log = logging.getLogger(__name__)

#: So old at most is a look at the devices of which one is given out.
FRESH_S = 2.0
#: How often they are looked at where jobs want or have some.
PERIOD_S = 30.0
_LOOK_S_MAX = 10.0
_SILENT = f"is not known to be well: nvidia-smi did not answer within {_LOOK_S_MAX:g} s"
_GONE = "is listed no more"
_QUERY = ("--query-gpu=uuid,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")
#: More is not read; a line takes some fifty bytes.
_ANSWER_BYTES_MAX = 64 * 1024
_DRIVER = Path("/proc/driver/nvidia/gpus")
#: A session may have been shown a part of the devices only: its jobs get none of the others.
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpus:
    """The machine's GPUs, as last seen; `known` once they have been looked for."""

    def __init__(self, loop: Loop, on_look: Callable[[], object]) -> None:
        self._loop = loop
        self._on_look = on_look
        self._program = shutil.which("nvidia-smi")
        self._pidfd = -1
        self._answer = -1
        self._deadline: Timer | None = None
        self._looked_at = 0.0
        self._seen: list[Device] = []  #: in the order of the first look
        self.devices: tuple[Device, ...] = ()
        self.known = False

    @property
    def fresh(self) -> bool:
        """Tell whether the devices have just been looked at."""
        return self.known and time.monotonic() - self._looked_at < FRESH_S

    def tend(self) -> None:
        """Look if it is time."""
        if not self.known or time.monotonic() - self._looked_at > PERIOD_S:
            self.look()

    def look(self) -> None:
        """Begin to look, unless a look is under way."""
        if self._program is None:
            self._see(listed_by_driver(_DRIVER))
        elif self._pidfd < 0:
            try:
                self._ask(self._program)
            except OSError as error:
                log.error("%s cannot be started: %s", self._program, error)
                self._see(())

    def shown_to(self, env: Mapping[str, str]) -> tuple[str, ...]:
        """Return the uuids of what a process sees that was started with this environment on top of ours."""
        setting = env.get(_VISIBLE, os.environ.get(_VISIBLE))
        return tuple(device.uuid for device in visible(self._seen, setting))

    def _ask(self, program: str) -> None:
        answer, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                program,
                [program, *_QUERY],
                {**os.environ, "LC_ALL": "C"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
            )
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            os.close(answer)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(answer, False)
        self._answer = answer
        self._loop.on_readable(self._pidfd, self._ended)
        self._deadline = self._loop.after(_LOOK_S_MAX, self._give_up)

    def _ended(self) -> None:
        self._loop.forget(self._pidfd)
        mirrors.reap(self._pidfd)
        self._pidfd = -1
        try:
            text = os.read(self._answer, _ANSWER_BYTES_MAX).decode(errors="replace")
        except BlockingIOError:
            text = ""  # it said nothing, and what it has started holds the pipe
        os.close(self._answer)
        if self._deadline is not None and self._deadline.callback is not None:
            self._deadline.cancel()
            self._see(parse(text))

    def _give_up(self) -> None:
        """Kill it; where the kernel cannot, no other is started beside it."""
        if self._deadline is not None:
            self._deadline.cancel()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        listed = self._seen or listed_by_driver(_DRIVER)
        self._see([replace(device, fault=_SILENT) for device in listed])

    def _see(self, found: Iterable[Device]) -> None:
        """Take over what was found; a device that is listed no more is not forgotten but not well."""
        gone = {device.uuid: replace(device, fault=_GONE) for device in self._seen}
        self._seen = list((gone | {device.uuid: device for device in found}).values())
        devices = visible(self._seen, os.environ.get(_VISIBLE))
        for device in devices:
            if device not in self.devices:
                log.log(*_said(device))
        self.devices, self.known, self._looked_at = devices, True, time.monotonic()
        self._on_look()


def parse(text: str) -> list[Device]:
    """Read what nvidia-smi wrote: a line for each device, its uuid and its count of uncorrectable errors.

    Where the count is no number, the device cannot count them, unless it says what is wrong with it. A line
    without a uuid, as of a device that fell off the bus, names nobody.
    """
    found = []
    for line in text.splitlines():
        uuid, _, errors = (part.strip() for part in line.partition(","))
        if not uuid.startswith("GPU-"):
            continue
        fault = ""
        if errors.isdecimal() and int(errors) > 0:
            fault = f"has {errors} uncorrectable memory errors"
        elif "lost" in errors.lower() or "error" in errors.lower():
            fault = f"says {errors}"
        found.append(Device(uuid, fault))
    return found


def listed_by_driver(folder: Path) -> list[Device]:
    """List the devices that the kernel's driver knows; nothing tells whether they are well."""
    found = []
    for about in sorted(folder.glob("*/information")):
        try:
            lines = about.read_text(errors="replace").splitlines()
        except OSError as error:
            log.error("%s: %s", about, error)
            continue
        fields = dict(line.partition(":")[::2] for line in lines)
        uuid = fields.get("GPU UUID", "").strip()
        if uuid.startswith("GPU-") and "?" not in uuid:
            found.append(Device(uuid))
        else:
            log.error("%s: its device has no uuid yet, and is not used; is nvidia-smi installed?", about)
    return found


def visible(devices: list[Device], setting: str | None) -> tuple[Device, ...]:
    """Return the devices that a CUDA_VISIBLE_DEVICES names, by place in the list or by uuid; None: all."""
    if setting is None:
        return tuple(devices)
    words = [word.strip() for word in setting.split(",")]
    uuids = tuple(word for word in words if word.startswith("GPU-"))
    return tuple(
        device for place, device in enumerate(devices) if str(place) in words or device.uuid.startswith(uuids)
    )


def _said(device: Device) -> tuple[int, str]:
    if device.fault:
        return logging.ERROR, f"GPU {device.uuid} is not used: it {device.fault}"
    return logging.INFO, f"GPU {device.uuid} is there"
