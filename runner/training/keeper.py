"""The keeper: writes a worker's snapshots to the disk, beside the training, and outlives it by a moment.

Run by the shim as `PYTHON -I keeper.py`, in the runner's own Python, with a socket to the worker and the
memory that holds the snapshots (`storage.slots`). The worker asks, one JSON message each; the keeper does:

- `{"digests": NAME}`: new files are digested so that the worker can check them. Answered with `{}`.
- `{"note": INDEX}`: what was committed to the slot is digested. Not answered.
- `{"write": INDEX, "path": PATH, "created": TIME}`: what is in the slot is written to the path. Answered
  with `{"size_bytes": N, "cpu_s": S}`, or `{"errno": N, "error": TEXT}`.

When the worker has ended, the newest snapshot and a best model that waits become files, where the disk does
not have them yet; then it ends. It may be killed at any moment: what it writes appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

# Started by its path: the package is found by this file's own place.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from runner.errors import RunnerError
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

    def serve(self) -> None:
        """Do what the worker asks until it has ended, and what is left to do then."""
        while message := self._channel.recv(BYTES_MAX):
            asked = json.loads(message)
            answer = self._do(asked)
            try:
                if answer is not None:
                    self._channel.send(json.dumps(answer).encode())
            except ConnectionError:
                self._tell_written(asked, answer)
        self._keep_the_last()

    def _do(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        if "digests" in asked:
            digests.prefer(asked["digests"])
            return {}
        if "note" in asked:
            slot = self._slots.all()[asked["note"]]
            if slot.whole and slot.digested != slot.committed:
                self._slots.note_digest(slot)
            return None
        return self._write(self._slots.all()[asked["write"]], Path(asked["path"]), asked["created"])

    def _write(self, slot: Slot, path: Path, created: str) -> dict[str, Any]:
        begun_s = time.process_time()
        try:
            size = checkpoint.write(path, self._slots.snapshot(slot), created=created)
        except _FAILURES as error:
            return {"errno": getattr(error, "errno", None), "error": str(error) or type(error).__name__}
        return {"size_bytes": size, "cpu_s": time.process_time() - begun_s}

    def _tell_written(self, asked: dict[str, Any], answer: dict[str, Any] | None) -> None:
        """Report a checkpoint that the worker did not live to report."""
        paths, path = self._orders.paths, Path(asked.get("path", ""))
        if answer is None or "size_bytes" not in answer or path.parent != paths.checkpoints:
            return
        info = checkpoint.describe(path)
        self._facts(
            "checkpoint",
            path=str(path.relative_to(paths.dir)),
            step=info.step,
            epoch=info.epoch,
            size_bytes=info.size_bytes,
            save_s=0.0,
            stall_s=0.0,
        )

    def _drop_damaged(self) -> None:
        for slot in self._slots.all():
            if slot.whole and not self._slots.intact(slot):
                self._slots.drop(slot)
                self._facts.warn(f"the snapshot of step {slot.step} in memory was damaged, and is dropped")

    def _keep_the_last(self) -> None:
        """Write what only the memory has."""
        self._drop_damaged()
        for slot in self._slots.newest(Kind.BEST)[:1]:
            self._keep_best(slot)
        paths = self._orders.paths
        for slot in self._slots.newest(Kind.SNAPSHOT)[:1]:
            if slot.step > max((step for step, _ in paths.list_checkpoints()), default=0):
                with contextlib.suppress(*_FAILURES):  # told by the saver
                    Saver(paths, self._orders.checkpoint, self._facts.append).save_now(
                        self._slots.snapshot(slot)
                    )

    def _keep_best(self, slot: Slot) -> None:
        with contextlib.suppress(*_FAILURES):
            found = self._slots.snapshot(slot)
            keeper = BestKeeper(self._orders.paths, self._orders.checkpoint, self._facts.append)
            keeper.take(found)
            self._slots.drop(slot)


def main() -> None:
    """Serve one worker."""
    orders = launch.load()
    assert orders.keeper is not None
    channel, memory = orders.keeper
    Keeper(orders, socket.socket(fileno=channel), Slots(memory)).serve()


if __name__ == "__main__":
    main()
