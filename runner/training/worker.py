"""One attempt, seen from inside the worker: what it was asked, what it reports to, where it is.

There is one `Worker` per process. It holds what the parts share; what needs NumPy or h5py is made when the
script has imported Keras, never before.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from runner.core.exactness import Kind, text
from runner.core.spec import Every
from runner.errors import StorageError
from runner.storage import mirrored
from runner.training import imports
from runner.training.allowance import Allowance
from runner.training.entropy import Entropy
from runner.training.hot import Held, Hot, Unseen
from runner.training.imported import Imported
from runner.training.launch import Launch
from runner.training.report import Facts, MetricsLog, Progress, now_text
from runner.training.stopping import Stake, Stop, leave
from runner.training.vigil import Vigil

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot
    from runner.training.best import BestKeeper
    from runner.training.fitting import Fit
    from runner.training.saver import Saver
    from runner.training.shelf import Shelf
    from runner.training.unhurried import Unhurried

#: The exit code of a configuration that no retry can help (EX_CONFIG).
BAD_CONFIGURATION = 78
#: How long a checkpoint that is being written is waited for when the script has ended.
SETTLE_S = 60.0
#: After so many fits the log tells how one resumes only where that differs from the fit before.
_FITS_TOLD = 20


class Worker:
    """The attempt's shared parts."""

    def __init__(self, launch: Launch, imported: Imported | None = None, hot: Hot | None = None):
        self.launch = launch
        self.hot = hot  #: this process may never become a worker, until its script calls `fit`
        facts, progress = (Facts, Progress) if hot is None else (Held, Unseen)
        self.facts: Facts = facts(launch.attempt_paths.facts)
        self.progress: Progress = progress(launch.paths.progress, launch.attempt)
        self.metrics = MetricsLog(launch.paths.metrics)
        self.stop = Stop(launch.grace_s)
        self.stop.tick = self._tick
        self.entropy = Entropy(launch.seed) if imported is None else imported.entropy
        self.imported = imported  #: what is noted for a spare
        self._was_spare = imported is not None
        self.ends = Allowance(self)  #: for keeping the ends of fits
        self.vigil = Vigil(self)
        self.step = 0  #: completed steps over all fits
        self.fits = 0  #: calls of fit that were begun
        self.saved: Snapshot | None = None  #: the newest checkpoint, until it has been restored
        #: model -> "train", "test" -> the state of chance before that function was traced
        self.traces: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
        #: model -> which of its functions were traced in an earlier process only
        self.untraced: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        self.put_back = False  #: a fit or loop is where its checkpoint was; no phase has begun since
        self.fit: Fit | None = None  #: the call of fit that is running
        self.attached = False  #: the script called runner.attach
        self.looping = False  #: a loop of the script's own is running
        self.restoring = False  #: a finished fit is being restored, its step perhaps traced
        self.searched = False  #: checkpoints were looked for
        self.own_loops_told = False  #: that the script trains by itself was reported
        self.seeded = False  #: the job's seed stands in for the operating system's entropy
        self._told_last: tuple[Kind, str] | None = None
        self._saver: Saver | None = None
        self._saver_made_in: int | None = None  #: a process id: a fork of it is not to settle anything
        self._shelf: Shelf | None = None
        self._best: BestKeeper | None = None
        self._fit_best: Unhurried | None = None

    @property
    def entry(self) -> Path | None:
        """The script; None where the job is a command."""
        return self.launch.cwd / self.launch.entry if self.launch.entry else None

    def _tick(self) -> None:
        """Once a second: show that Python runs, write what is due, and what the disk has refused."""
        self.progress.beat()
        self.facts.flush()
        if self.imported is not None and self.progress.values["phase"] == "train":
            self.imported.tell(self.launch.attempt_paths.imported)
            self.imported = None
        with contextlib.suppress(OSError):
            self.metrics.flush()

    def note_metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; where the disk refuses it, it follows later."""
        try:
            self.metrics.note(line)
        except OSError as error:
            self.facts.warn(f"metrics.jsonl cannot be written, its lines wait in memory: {error}")

    def set_cadence(self, every: Every) -> None:
        """Let checkpoints be due by another cadence than the job's; before the first is asked for."""
        checkpoint = dataclasses.replace(self.launch.checkpoint, every=every)
        self.launch = dataclasses.replace(self.launch, checkpoint=checkpoint)
        if self._saver is not None:
            self.flush_best()
            self._saver.flush()
            self._saver = self._fit_best = None
            self.saver.latest()

    def install(self, *, seed: bool = True) -> None:
        """Take over signals and chance; nothing here imports NumPy or Keras."""
        self.stop.install()
        self.seeded = seed
        if seed and not self._was_spare:
            self.entropy.install()
        if self.launch.spare and not self._was_spare:
            self.imported = Imported(self.entropy, dict(os.environ))
            imports.watch(self.imported.note)
        if self.hot is None:
            self.begin()

    def begin(self) -> None:
        """Say that the attempt begins."""
        # Kept open for the life of the process: faulthandler writes to its descriptor from a signal handler.
        self._stacks = self.launch.attempt_paths.stacks.open("a")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True, chain=False)
        self.facts("phase", phase="import")
        if self._was_spare:
            self.facts("spare-took-over", hot=self.hot is not None)
        self.progress.set()
        self.progress.write_if_due()

    @property
    def saver(self) -> Saver:
        """What writes and reads the checkpoints."""
        if self._saver is None:
            self._saver = self._make_saver()
        return self._saver

    def _make_saver(self) -> Saver:
        from runner.training.saver import Saver

        self.prepare_to_settle()
        launch = self.launch
        told, before, past = self._report, self.flush_best, launch.past
        arguments = launch.paths, launch.checkpoint, told, time.monotonic, before, past
        shelf = self._open_shelf()
        if shelf is not None:
            from runner.training.kept import KeptSaver

            return KeptSaver(*arguments, shelf=shelf)
        return Saver(*arguments)

    def prepare_to_settle(self) -> None:
        """Settle as the process ends: behind h5py's own import, hence before what that does then."""
        if self._saver_made_in is None:
            self._saver_made_in = os.getpid()
            atexit.register(self._settle)

    def _settle(self) -> None:
        """Write what waits, and let nothing be written while the interpreter takes itself apart.

        A thread that is stopped inside HDF5 then keeps its lock for ever, and the main thread waits for it.
        """
        if self._saver is not None and os.getpid() == self._saver_made_in:
            with contextlib.suppress(OSError, StorageError):
                self.flush_best()
            if not self._saver.flush(SETTLE_S):
                self.facts.warn("a checkpoint was still being written as the script ended; it is given up")
            self._tick()

    def _open_shelf(self) -> Shelf | None:
        """Return this process's memory for snapshots; None where it has none."""
        if self._shelf is None and self.launch.keeper is not None:
            from runner.training.shelf import Shelf

            try:
                self._shelf = Shelf(*self.launch.keeper, self.launch.memory_bytes, self.facts.warn)
            except (OSError, ValueError) as error:
                self.facts.warn(f"there are no snapshots in memory: {error}")
                self.launch = dataclasses.replace(self.launch, keeper=None)
        return self._shelf

    @property
    def best(self) -> BestKeeper:
        """What keeps the best model."""
        if self._best is None:
            from runner.training.best import BestKeeper

            launch = self.launch
            self._best = BestKeeper(launch.paths, launch.checkpoint, self.facts.append, self._write_best)
        return self._best

    def _report(self, fact: dict[str, Any]) -> None:
        """Take a fact of the saver's, and show it in the progress too."""
        self.facts.append(fact)
        if fact["event"] == "checkpoint":
            costs = {key: fact[key] for key in ("interval_s", "stall_s", "save_s", "size_bytes")}
            costs["memory_bytes"] = self._shelf.held_bytes() if self._shelf is not None else 0
            self.progress.show(checkpoint_step=fact["step"], saving=costs)
        elif fact["event"] == "save-failed":
            saving = {"since": now_text(), **self.progress.values["saving"]}
            saving.update({"reason": fact["reason"], "retry_s": fact["retry_s"]})
            self.progress.show(saving=saving)

    def _write_best(self, path: Path, snapshot: Snapshot) -> None:
        self.saver.write(path, snapshot)

    @property
    def fit_best(self) -> Unhurried:
        """The same for a fit, where epochs may follow each other fast; the saver has it flushed."""
        if self._fit_best is None:
            from runner.training.unhurried import Unhurried

            self._fit_best = Unhurried(self.best, self.launch.checkpoint, self.saver)
        return self._fit_best

    def flush_best(self) -> None:
        """Write a best model that waits in memory."""
        if self._fit_best is not None:
            self.say(self._fit_best.flush())

    def say(self, message: str | None) -> None:
        """Put a line into the job's log, where there is one."""
        if message:
            # Not to sys.stdout: the script may have put something else there, to see its own lines only.
            with contextlib.suppress(OSError, ValueError):  # it may have closed it
                print(message, file=sys.__stdout__, flush=True)

    def find_saved(self) -> None:
        """Look for a checkpoint to resume from; a bad one is put aside by the saver.

        Raises:
            StorageError: there are checkpoints, and none can be read.
        """
        self.searched = True
        self.vigil.step_back()
        paths, mirror = self.launch.paths, self.launch.checkpoint.mirror
        were_there = mirror is not None and bool(paths.list_checkpoints())
        found = self.vigil.newest()
        if found is None and were_there and mirror and mirrored.must_fetch(paths, mirror, self.launch.job):
            self.say("runner: no checkpoint here is good: its mirror is looked at before anything is trained")
            leave()
        if found is None and not self.launch.paths.fit(0).exists():
            self.metrics.cut(0)
        elif found is not None:
            self.saved = saved = found[1]
            verified = self.saver.verified_step
            self.progress.set(step=saved.step, epoch=saved.epoch, checkpoint_step=verified)

    def start_over(self) -> None:
        """Forget what was found to resume from: it has been put aside."""
        self.saver.outdate()
        self.saved, self._saver, self._fit_best = None, None, None

    def phase(self, phase: str, *, tell: bool = False) -> None:
        """Enter a phase; `tell` makes a fact of it."""
        self.put_back = False
        self.progress.phase(phase)
        if tell:
            self.facts("phase", phase=phase)

    def refuse(self, reason: str) -> Any:
        """End the attempt for good: the script is not the one of the checkpoint."""
        message = (
            f"{reason}. The script has changed since the checkpoint was taken, and resuming would be wrong."
            f" Put the script back, or start afresh: runner rm {self.launch.job}, then submit it again"
        )
        self.facts("warning", message=message)
        sys.stderr.write(f"runner: {message}\n")
        leave(BAD_CONFIGURATION)

    def leave_with(self, snapshot: Snapshot | None) -> Any:
        """Save `snapshot` where there is one, and stop as asked."""
        with self.stop.leaving:
            self.save_now(snapshot)
            leave()

    def save_now(self, snapshot: Snapshot | None) -> None:
        """Save a snapshot that is not on the disk yet; a failure is in the facts, and no reason to stay."""
        self.saver.hurry()
        self.flush_best()
        if snapshot is None or self.saver.verified_step == snapshot.step:
            return
        self.phase("save")
        with contextlib.suppress(OSError, StorageError):
            self.saver.save_now(snapshot)

    def state(self) -> dict[str, Any]:
        """Return what the state of each snapshot says of this attempt."""
        retreat = self.launch.retreat
        return self.metrics.state() | (retreat.mark if retreat is not None else {})

    def classify(self, fit: int, kind: Kind, reason: str) -> None:
        """Say how exactly a fit, or a loop of the script's own, can be resumed."""
        self.facts("classified", fit=fit, exact=kind is not Kind.NOT_EXACT, kind=kind, reason=reason)
        if fit < _FITS_TOLD or self._told_last != (kind, reason):
            self.say(f"runner: resumes of fit {fit}: {text(kind, reason)}")
        self._told_last = kind, reason

    def tell_resumed(self, saved: Snapshot, reasons: list[str], replay_s: float = 0.0) -> None:
        """Report from where the attempt goes on; `reasons` say why not exactly, where so.

        Args:
            saved: the checkpoint, or what was left in memory.
            reasons: in words.
            replay_s: what reading data again has taken; 0 where there was no need to.
        """
        path = self.launch.paths.checkpoint(saved.step)
        on_disk = self.saver.verified_step == saved.step
        self.put_back = True
        retreat = self.launch.retreat
        if retreat is not None and retreat.learning_rate != 1.0 and not retreat.is_behind(saved.state):
            reasons = [*reasons, retreat.reason]
        self.facts(
            "resumed",
            path=str(path.relative_to(self.launch.paths.dir)) if on_disk else None,
            step=saved.step,
            epoch=saved.epoch,
            exact=not reasons,
            **({"reason": "; ".join(reasons)} if reasons else {}),
            **({"replay_s": round(replay_s, 3)} if replay_s else {}),
        )
        self._say_replayed(replay_s)

    def tell_lost(self, fit: int, lost: Iterable[str]) -> list[str]:
        """Warn of what a resume could not put back; return the reasons why it is not exact, therefore."""
        reasons = []
        for one in lost:
            message = f"could not be put back, stays as the script has made it: {one}"
            self.facts.warn(message, fit=fit, missed=one)
            reasons.append(f"could not be put back: {one}")
        return reasons

    def tell_replayed(self, fit: int, replay_s: float) -> None:
        """Report what reading data again has taken, where a resumed fit came to it only after a while."""
        self.facts("replayed", fit=fit, replay_s=round(replay_s, 3))
        self._say_replayed(replay_s)

    def _say_replayed(self, replay_s: float) -> None:
        self.say(f"runner: data were read again in {replay_s:.1f} s" if replay_s else None)
        self.progress.restart_rate()

    def keep_nothing(self) -> None:
        """Let a stop end the process at once: all there is has been saved."""
        with self.stop.leaving:
            self.stop.stake = Stake.NOTHING
        if self.stop.may_leave:
            self.leave_with(None)

    def hold(self, snapshot: Snapshot) -> None:
        """Let the watcher serve a stop from this snapshot until `release`."""
        self.stop.save_held = lambda: self.save_now(snapshot)
        self.stop.stake = Stake.HELD

    def release(self) -> None:
        """Forget the snapshot that was held: it is no longer the present."""
        with self.stop.leaving:
            self.stop.stake = Stake.WORK
            self.stop.save_held = lambda: None


_current: Worker | None = None


def current() -> Worker | None:
    """Return this process's worker; None outside the runner."""
    return _current


def start(
    launch: Launch, *, seed: bool = True, imported: Imported | None = None, hot: Hot | None = None
) -> Worker:
    """Make this process's worker and install it.

    Args:
        launch: its orders.
        seed: lets the job's seed stand in for entropy.
        imported: what it has imported already, where it was a spare.
        hot: it is a spare still, and waits to be wanted where the script calls `fit`.
    """
    global _current
    _current = Worker(launch, imported, hot)
    _current.install(seed=seed)
    return _current
