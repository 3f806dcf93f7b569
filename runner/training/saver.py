"""Saving and finding checkpoints on the worker's side.

Promises:

- The fact "checkpoint" is reported only when the file is durable and was verified (P3).
- A save that fails never stops training, and never costs an older checkpoint: it is reported as "save-failed"
  and tried again, with growing delays.
- Old checkpoints go only when a newer one is durable, or to make room for one: never the last good one.
- `latest` returns the newest checkpoint that verifies; what does not is quarantined (P4).

One daemon thread writes; it publishes each file in one rename, so the process may end at any moment. At most
one snapshot is being written and one waits; a newer one takes the waiting one's place.

Limits: `report` is called from both threads, hence must be thread-safe; an OSError of its own is dropped, for
its file may lie on the very disk that is full.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runner.core import cadence
from runner.core.cadence import Moment, Saved
from runner.core.spec import CadenceUnit, CheckpointSpec
from runner.errors import BadCheckpointError, StorageError
from runner.storage import checkpoint, disk, durable, hdf5layout
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training.quarantine import Report, set_aside
from runner.training.report import now_text
from runner.training.stock import Stock

#: Shapes and dtypes of arrays.
Layout = list[tuple[tuple[int, ...], np.dtype[Any]]]
#: Completes a snapshot whose values are only held, in any thread; False where it is of no use.
Develop = Callable[[Snapshot], bool]
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
_FAILURES = (OSError, StorageError, MemoryError)
#: What a file takes beyond its arrays, until one has been written.
_OVERHEAD_BYTES = 65536
_LOADED_EARLY = hdf5layout  # not at the first save, from a disk that may then be failing
_log = logging.getLogger(__name__)


class Saver:
    """Saves a job's checkpoints when they are due, and finds the newest good one."""

    def __init__(
        self,
        paths: JobPaths,
        spec: CheckpointSpec,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        before: Callable[[], None] = lambda: None,
        past: cadence.Past = cadence.NO_PAST,
    ) -> None:
        """Begin.

        Args:
            paths: the job's.
            spec: how often, how many.
            report: takes facts, from any thread.
            clock: monotonic, in seconds.
            before: called in the writer thread before each checkpoint, and after `nudge`; raises nothing.
            past: what the job's earlier attempts lived through.
        """
        self._before = before
        self._nudged = False
        self._paths = paths
        self._spec = spec
        self._report = report
        self._clock = clock
        self._saved: Saved | None = None
        self._quiet = (0.0, 0.0)  # nothing is due before this step and time, unless an epoch ends
        self._resumed_step = 0
        self._epoch_step = -1
        self._cost_s: float | None = None
        self._stock = Stock(paths, spec, self._tell)
        self._auto = spec.every.unit is CadenceUnit.AUTO
        self._overhead = _OVERHEAD_BYTES
        self._began = clock()
        self._past = past
        self._verified: int | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._disk = threading.Lock()  # held while a checkpoint is being written
        self._changed = threading.Condition()
        self._waiting: tuple[Snapshot, float] | None = None
        self._writing = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._sweep()

    @property
    def verified_step(self) -> int | None:
        """The step of the last checkpoint that is known to be durable and good."""
        return self._verified

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written or waits."""
        return self._writing or self._nudged or self._waiting is not None

    def latest(self) -> tuple[Path | None, Snapshot] | None:
        """Return the newest checkpoint that verifies; None where there is none.

        Raises:
            StorageError: the only ones left cannot be read from the disk (which is no reason to train anew).
        """
        unread: OSError | None = None
        self._verified, self._resumed_step = None, 0
        for step, path in reversed(self._paths.list_checkpoints()):
            try:
                snapshot = _read(path, step)
            except BadCheckpointError as error:
                set_aside(self._paths, path, str(error), self._tell)
            except OSError as error:
                unread = error
                self._tell(
                    {"event": "warning", "message": f"{path} cannot be read and is passed over: {error}"}
                )
            else:
                self._verified = self._resumed_step = step
                return path, snapshot
        if unread is not None:
            raise StorageError(
                f"no checkpoint can be read: {unread}; repair the disk, then retry"
            ) from unread
        return None

    def due(self, step: int, steps_per_epoch: int | None, epoch_ended: bool) -> bool:
        """Tell whether to take a snapshot after `step` completed steps; cheap, called at every step."""
        now_s = self._clock()
        if step < self._quiet[0] and now_s < self._quiet[1] and not epoch_ended:
            return False
        if self._saved is None:
            self._saved = Saved(self._resumed_step, now_s)
        if epoch_ended and step != self._epoch_step:
            self._epoch_step = step
            self._saved = replace(self._saved, epochs_since=self._saved.epochs_since + 1)
        if self._failures:
            at_this_step = epoch_ended or self._spec.every.unit is not CadenceUnit.EPOCHS
            return at_this_step and now_s >= self._retry_at and not self.busy
        if self._auto and self.busy:
            return False
        moment = Moment(step, now_s, epoch_ended)
        interval_s = self._interval_s() if self._auto else 0.0
        found = cadence.due(self._spec.every, moment, self._saved, interval_s, steps_per_epoch)
        if not found:
            self._quiet = cadence.quiet_until(self._spec.every, self._saved, interval_s, steps_per_epoch)
            if self._failures:  # the writer has failed meanwhile, and is to be asked again soon
                self._quiet = (0.0, 0.0)
        return found

    def _interval_s(self) -> float:
        mtbf_s = cadence.mtbf_s(self._past.lived(self._clock() - self._began))
        return cadence.interval_s(self._cost_s, mtbf_s)

    def submit(self, snapshot: Snapshot, stall_s: float, develop: Develop | None = None) -> None:
        """Hand a snapshot to the writer thread.

        Args:
            snapshot: of a safe point.
            stall_s: how long training stood still to take it.
            develop: where its values are only held (`holds`), completes it.
        """
        assert develop is None
        self._saved, self._quiet = Saved(snapshot.step, self._clock()), (0.0, 0.0)
        with self._changed:
            self._waiting = (snapshot, stall_s)
            self._wake()

    def prepare(self, size: Callable[[], int]) -> None:
        """Learn that training has begun; `size` tells how many bytes its snapshots will take, about."""

    def lend(self, _layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return arrays for the next snapshot's variables; None: the caller has its own."""
        return None

    def holds(self, _size: int) -> bool:
        """Tell whether a snapshot may come with its values, of so many bytes, held and not copied."""
        return False

    def hurry(self) -> None:
        """Learn that the process wants to leave: nobody else is to be waited for long from now on."""

    def left_best(self) -> Snapshot | None:
        """Return a best model that the attempt before has left in memory."""
        return None

    def lend_best(self, _layout: Layout) -> list[np.ndarray[Any, Any]] | None:
        """Return arrays for a best model's variables; None: the caller has its own."""
        return None

    def keep_best(self, snapshot: Snapshot) -> None:
        """Learn that a best model waits for the disk, as it would be written."""

    def best_written(self) -> None:
        """Learn that the best model so far is on the disk."""

    def outdate(self) -> None:
        """Learn that what comes after all snapshots so far is on the disk."""

    def nudge(self) -> None:
        """Have `before` called in the writer thread, though no checkpoint is due."""
        with self._changed:
            self._nudged = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="checkpoint-writer", daemon=True)
            self._thread.start()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being written and nothing waits; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy, timeout_s)

    def save_now(self, snapshot: Snapshot) -> Path:
        """Save in the calling thread, and return the durable, verified file; a waiting snapshot is dropped.

        Raises:
            StorageError, OSError: it could not be saved (reported too).
        """
        self._saved, self._quiet = Saved(snapshot.step, self._clock()), (0.0, 0.0)
        with self._changed:
            self._waiting = None
            self._changed.notify_all()
        try:
            return self._publish(snapshot, 0.0)
        except _FAILURES as error:
            self._failed((snapshot, 0.0), error)
            raise

    def close(self) -> None:
        """Write what waits and end the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _write_on(self) -> None:
        """Be the writer thread."""
        while self._write_next():
            pass  # nothing here may hold a snapshot while the thread waits: its buffers are to be used again

    def _write_next(self) -> bool:
        """Wait for a snapshot and save it; False when the saver was closed."""
        taken = self._take()
        if not self._writing:
            return False
        try:
            begun_cpu_s = time.thread_time()
            self._before()
            if taken is not None:
                snapshot, stall_s = taken
                self._publish(snapshot, stall_s, time.thread_time() - begun_cpu_s)
        except _FAILURES as error:
            self._failed(taken, error)
        except Exception as error:  # noqa: BLE001 - a thread's top: a dead writer would end all saving, silently
            _log.exception("saving a checkpoint failed unexpectedly")
            self._failed(taken, error)
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
        return True

    def _take(self) -> tuple[Snapshot, float] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._nudged or self._closed)
            taken, self._waiting = self._waiting, None
            self._writing, self._nudged = taken is not None or self._nudged, False
            return taken

    def _publish(self, snapshot: Snapshot, stall_s: float, before_s: float = 0.0) -> Path:
        with self._disk:
            begun_s, cpu_s = self._clock(), time.thread_time()
            path = self._paths.checkpoint(snapshot.step)
            size, elsewhere_s = self._fit_in(path, snapshot)
            save_s, cpu_s = self._clock() - begun_s, time.thread_time() - cpu_s + elsewhere_s
            self._verified = snapshot.step
            self._failures = 0
            self._overhead = max(self._overhead, size - snapshot.nbytes)
            measured_s = cadence.cost_s(stall_s, before_s + cpu_s)
            self._cost_s = cadence.settled_s(self._cost_s, measured_s)
            self._tell(
                {
                    "event": "checkpoint",
                    "path": str(path.relative_to(self._paths.dir)),
                    "step": snapshot.step,
                    "epoch": snapshot.epoch,
                    "size_bytes": size,
                    "save_s": round(save_s, 6),
                    "stall_s": round(stall_s, 6),
                    "interval_s": round(self._interval_s(), 3) if self._auto else None,
                }
            )
            self._stock.evict(self._verified)
            return path

    def _fit_in(self, path: Path, snapshot: Snapshot) -> tuple[int, float]:
        """Write the file, after making room for it where there is none."""
        durable.make_folder(path.parent, self._paths.dir)
        needed = snapshot.nbytes + self._overhead
        short = disk.trouble(path.parent, needed)
        if short is not None and not (
            short.errno == errno.ENOSPC and self._stock.make_room(self._verified, needed)
        ):
            raise short
        try:
            return self.write(path, snapshot)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._stock.make_room(self._verified):
                raise
        return self.write(path, snapshot)

    def write(self, path: Path, snapshot: Snapshot) -> tuple[int, float]:
        """Write a file in the calling thread; it is durable and verified then.

        Returns: its size in bytes, and the processor time in seconds that this took in other processes.

        Raises:
            StorageError, OSError: it could not be written.
        """
        return checkpoint.write(path, snapshot, created=now_text()), 0.0

    def _failed(self, taken: tuple[Snapshot, float] | None, error: Exception) -> None:
        if taken is None:
            return
        snapshot = taken[0]
        self._failures += 1
        self._quiet = (0.0, 0.0)
        self._retry_at = self._clock() + cadence.retry_s(self._failures)
        path = self._paths.checkpoint(snapshot.step).relative_to(self._paths.dir)
        retry_s = cadence.retry_s(self._failures)
        self._tell({"event": "save-failed", "path": str(path), "reason": _reason(error), "retry_s": retry_s})

    def _sweep(self) -> None:
        """Remove what a killed writer left: only one attempt of a job runs at a time."""
        for folder in (self._paths.checkpoints, self._paths.quarantine):
            with contextlib.suppress(OSError):
                for path in list(folder.iterdir()):
                    if _TEMPORARY.fullmatch(path.name):
                        path.unlink(missing_ok=True)

    def _tell(self, fact: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._report(fact)


def _read(path: Path, step: int) -> Snapshot:
    snapshot = checkpoint.read(path)
    if snapshot.step != step:
        raise BadCheckpointError(
            f"{path}: holds step {snapshot.step}, not the one it is named for; rename it"
        )
    return snapshot


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
