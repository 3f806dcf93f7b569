"""One attempt, seen from inside the worker: what it was asked, what it reports to, where it is.

There is one `Worker` per process. It holds what the parts share; what needs NumPy or h5py is made when the
script has imported Keras, never before.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from runner.training.entropy import Entropy
from runner.training.launch import Launch
from runner.training.report import Facts, MetricsLog, Progress
from runner.training.stopping import Stake, Stop, leave

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot
    from runner.training.best import BestKeeper
    from runner.training.fitting import Fit
    from runner.training.saver import Saver

#: The exit code of a configuration that no retry can help (EX_CONFIG).
BAD_CONFIGURATION = 78


class Worker:
    """The attempt's shared parts."""

    def __init__(self, launch: Launch):
        self.launch = launch
        self.facts = Facts(launch.attempt_paths.facts)
        self.progress = Progress(launch.paths.progress, launch.attempt)
        self.metrics = MetricsLog(launch.paths.metrics)
        self.stop = Stop(launch.grace_s)
        self.stop.tick = self.progress.write_if_due
        self.entropy = Entropy(launch.seed)
        self.step = 0  #: completed steps over all fits
        self.fits = 0  #: calls of fit that were begun
        self.saved: Snapshot | None = None  #: the newest checkpoint, until it has been restored
        self.traces: dict[int, Any] = {}  #: id of a model -> chance before its training step was traced
        self.untraced: set[int] = set()  #: models whose step was traced in an earlier process only
        self.fit: Fit | None = None  #: the call of fit that is running
        self._saver: Saver | None = None
        self._best: BestKeeper | None = None

    def install(self) -> None:
        """Take over signals and chance; nothing here imports NumPy or Keras."""
        self.stop.install()
        # Kept open for the life of the process: faulthandler writes to its descriptor from a signal handler.
        self._stacks = self.launch.attempt_paths.stacks.open("a")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True, chain=False)
        self.entropy.install()
        self.facts("phase", phase="import")
        self.progress.set()
        self.progress.write_if_due()

    @property
    def saver(self) -> Saver:
        """What writes and reads the checkpoints."""
        if self._saver is None:
            from runner.training.saver import Saver

            self._saver = Saver(self.launch.paths, self.launch.checkpoint, self.facts, time.monotonic)
        return self._saver

    @property
    def best(self) -> BestKeeper:
        """What keeps the best model."""
        if self._best is None:
            from runner.training.best import BestKeeper

            self._best = BestKeeper(self.launch.paths, self.launch.checkpoint, self.facts)
        return self._best

    def find_saved(self) -> None:
        """Look for a checkpoint to resume from; a bad one is put aside by the saver."""
        self.saved = self.saver.latest()
        if self.saved is None:
            self.metrics.cut(0)

    def phase(self, phase: str, *, tell: bool = False) -> None:
        """Enter a phase; `tell` makes a fact of it."""
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
            if snapshot is not None:
                self.phase("save")
                self.saver.save_now(snapshot)
            leave()

    def hold(self, snapshot: Snapshot) -> None:
        """Let the watcher serve a stop from this snapshot until `release`."""
        self.stop.save_held = lambda: self.saver.save_now(snapshot)
        self.stop.stake = Stake.HELD

    def release(self) -> None:
        """The snapshot that was held is no longer the present."""
        with self.stop.leaving:
            self.stop.stake = Stake.WORK
            self.stop.save_held = lambda: None


_current: Worker | None = None


def current() -> Worker | None:
    """Return this process's worker; None outside the runner."""
    return _current


def start(launch: Launch) -> Worker:
    """Make this process's worker and install it."""
    global _current
    _current = Worker(launch)
    _current.install()
    return _current
