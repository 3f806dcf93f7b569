"""The keeper: writes a worker's snapshots to the disk, beside the training, and outlives it by a moment.

Run by the shim as `PYTHON -I keeper.py`, in the runner's own Python, with a socket to the worker and the
memory that holds the snapshots (`storage.slots`). The worker asks, one JSON message each; the keeper does:

- `{"digests": NAME}`: new files are digested so that the worker can check them. Not answered.
- `{"note": INDEX}`: what was committed to the slot is digested. Not answered.
- `{"write": INDEX, "number": N, "path": PATH, "created": TIME}`: what is in the slot, committed with that
  number, is written to the path. Answered with `{"size_bytes": N, "cpu_s": S}`, or
  `{"errno": N, "error": TEXT}`.

When the worker has ended, the newest snapshot and a best model that waits become files, where the disk does
not have them yet; then it ends. What the disk refuses stays in memory for the next attempt. It may be killed
at any moment: what it writes appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

# Started by its path: the package is found by this file's own place.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from runner.errors import RunnerError, StorageError
from runner.storage import checkpoint, digests, hdf5layout
from runner.storage.slots import Kind, Slot, Slots
from runner.training import launch
from runner.training.best import BestKeeper
from runner.training.report import Facts
from runner.training.saver import Saver

#: Of a message, either way.
BYTES_MAX = 65536

_LOADED_EARLY = hdf5layout  # not at the first save, from a disk that may then be failing
_FAILURES = (OSError, RunnerError, MemoryError, ValueError)


class Keeper:
    """One attempt's keeper."""

    def __init__(self, orders: launch.Launch, channel: socket.socket, slots: Slots):
        self._orders = orders
        self._channel = channel
        self._slots = slots
        self._facts = Facts(orders.attempt_paths.facts)
        self._written: checkpoint.Info | None = None  #: the last checkpoint

    def serve(self) -> None:
        """Do what the worker asks until it has ended, and what is left to do then."""
        try:
            while message := self._channel.recv(BYTES_MAX):
                answer = self._do(json.loads(message))
                if answer is not None:
                    self._channel.send(json.dumps(answer).encode())
        except ConnectionError:
            pass  # the worker has ended
        finally:
            self._tell_written()
            self._keep_the_last()

    def _do(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        if "digests" in asked:
            digests.prefer(asked["digests"])
            return None
        if "note" in asked:
            slot = self._slots.all()[asked["note"]]
            if slot.whole and slot.digested != slot.committed:
                with contextlib.suppress(ValueError):
                    self._slots.note_digest(slot)
            return None
        return self._write(asked)

    def _write(self, asked: dict[str, Any]) -> dict[str, Any]:
        begun_s, path = time.process_time(), Path(asked["path"])
        slot = self._slots.all()[asked["write"]]

        def still() -> None:
            now = self._slots.all()[slot.index]
            same = now.whole and now.committed == asked["number"]
            if not (same and self._slots.intact(now)):
                raise StorageError("the snapshot in memory has changed while it was written")

        try:
            size = checkpoint.write(path, self._slots.snapshot(slot), created=asked["created"], still=still)
            if path.parent == self._orders.paths.checkpoints:
                self._written = checkpoint.describe(path)
        except _FAILURES as error:
            return {"errno": getattr(error, "errno", None), "error": str(error) or type(error).__name__}
        return {"size_bytes": size, "cpu_s": time.process_time() - begun_s}

    def _tell_written(self) -> None:
        """Report the last checkpoint where the worker did not live to do so."""
        info = self._written
        if info is None or info.step in self._told():
            return
        paths = self._orders.paths
        self._facts(
            "checkpoint",
            path=str(paths.checkpoint(info.step).relative_to(paths.dir)),
            step=info.step,
            epoch=info.epoch,
            size_bytes=info.size_bytes,
            save_s=0.0,
            stall_s=0.0,
        )

    def _told(self) -> set[int]:
        """Return the steps of the checkpoints that this attempt has reported."""
        steps = set()
        with contextlib.suppress(OSError):
            for line in self._orders.attempt_paths.facts.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    fact = json.loads(line)
                    if fact["event"] == "checkpoint":
                        steps.add(int(fact["step"]))
        return steps

    def _keep_the_last(self) -> None:
        """Write what only the memory has; no snapshot that is later than a best model that is lost."""
        intact = [self._is_intact(slot) for slot in self._slots.newest(Kind.BEST)[:1]]
        if not all(intact) or not all(self._keep_best(slot) for slot in self._slots.newest(Kind.BEST)[:1]):
            return
        paths = self._orders.paths
        for slot in self._slots.newest(Kind.SNAPSHOT):
            if slot.step <= max((step for step, _ in paths.list_checkpoints()), default=0):
                return
            if self._is_intact(slot):
                with contextlib.suppress(
                    *_FAILURES
                ):  # told by the saver; the next attempt finds it in memory
                    saver = Saver(paths, self._orders.checkpoint, self._facts.append)
                    saver.save_now(self._slots.snapshot(slot))
                return

    def _is_intact(self, slot: Slot) -> bool:
        intact = self._slots.intact(slot)
        if not intact:
            self._facts.warn(f"what was in memory of step {slot.step} was damaged, and is dropped")
        return intact

    def _keep_best(self, slot: Slot) -> bool:
        """Write a best model that waits; tell whether the disk has it, or a better one."""
        try:
            found = self._slots.snapshot(slot)
            keeper = BestKeeper(self._orders.paths, self._orders.checkpoint, self._facts.append)
            return keeper.take(found)
        except (*_FAILURES, KeyError, TypeError) as error:
            self._facts.warn(f"the best model in memory, of step {slot.step}, is lost: {error}")
            return False


def main() -> None:
    """Serve one worker."""
    stand_by()
    orders = launch.load()
    assert orders.keeper is not None
    channel, memory = orders.keeper
    Keeper(orders, socket.socket(fileno=channel), Slots(memory)).serve()


def stand_by() -> None:
    """Wait for the attempt, where this is a spare's keeper: log, socket and memory come with it."""
    number = os.environ.pop(launch.SPARE, None)
    if number is None:
        return
    with socket.socket(fileno=int(number)) as shim:
        message, fds, _, _ = socket.recv_fds(shim, BYTES_MAX, 3)
    if not message:
        raise SystemExit(0)
    log, *handed = fds
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    os.environ.update(json.loads(message)["environ"])
    os.environ[launch.KEEPER] = ",".join(map(str, handed))


if __name__ == "__main__":
    main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # the next attempt waits for this end: nothing is to be torn down
