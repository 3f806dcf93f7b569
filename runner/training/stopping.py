"""Leaving on request: SIGTERM in any phase, within the grace.

The handler sets a flag and nothing else; the wake-up descriptor lets a watcher thread see the signal even
while the main thread is inside a long call. Who then acts:

- the main thread at its next safe point, saving what it has;
- the watcher, where nothing has been trained since the last durable state (import, build, first trace, after
  a finished fit): it leaves at once;
- the watcher, where a snapshot of the present state is held in memory (validation, callbacks): it waits a
  moment for the main thread, then saves that snapshot and leaves.

If none of these comes, the shim's SIGKILL leaves the last checkpoint standing. A script's own handler for
SIGTERM comes first: it has half of the grace to end the script in its own way. Where the script then ends
with 0, nobody can tell whether it had got to its end: it has stopped (75), and the next attempt finds out. A
fit that was told to stop training meanwhile is not taken for finished, nor is a loop that was left; nothing
of what follows is kept.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum
from types import FrameType
from typing import Any

#: The exit code of a worker that stopped on request (EX_TEMPFAIL).
STOPPED = 75
#: How long the watcher lets the main thread come to a safe point by itself.
PATIENCE_S = 1.0
_TICK_S = 1.0


class Stake(Enum):
    """What would be lost if the process left now."""

    NOTHING = "nothing"  #: the last durable state is as good as the present one
    HELD = "held"  #: the present state is held as a snapshot
    WORK = "work"  #: only the main thread can save it


class Stop:
    """The request to stop, and the watcher that makes sure of it."""

    def __init__(self, grace_s: float):
        self.requested = False
        self.stake = Stake.NOTHING
        self.save_held: Callable[[], None] = lambda: None
        self.tick: Callable[[], None] = lambda: None
        self.leaving = threading.RLock()
        self._grace_s = grace_s
        self._asked_at = 0.0
        self.cut_short = False  #: a fit or loop has been ended early for the request's sake
        self._handled = False  #: our own handler has run
        self._hearing = threading.RLock()  # a handler may come between
        self._read = self._write = -1
        self._masks = threading.local()

    def install(self) -> None:
        """Take SIGTERM over and start the watcher; call from the main thread."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._release_child
        )
        threading.Thread(target=self._watch, name="runner-watcher", daemon=True).start()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._handled = True
        self._ask()

    def _ask(self) -> None:
        if not self.requested:
            self._asked_at = time.monotonic()
            self.requested = True

    def _before_fork(self) -> None:
        """Keep a SIGTERM to the child waiting until it has its own handling: this pipe is shared."""
        self._masks.previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.previous)

    def _release_child(self) -> None:
        """Give a forked child the signal handling of any Python process."""
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wakeup = signal.set_wakeup_fd(-1)
        if wakeup != self._write:
            signal.set_wakeup_fd(wakeup)
        self.requested = False
        self._read = -1
        self._after_fork()

    @property
    def may_leave(self) -> bool:
        """Whether the request is there and a script's own handler has had its time."""
        if not self.requested:
            return False
        return not self._is_scripts() or time.monotonic() - self._asked_at >= self._grace_s / 2

    @property
    def left_to_script(self) -> bool:
        """Whether the request is there, and a handler of the script's own has taken it."""
        return self._is_there() and (self._is_scripts() or not self._handled)

    def cuts_short(self) -> bool:
        """Tell whether a loop that is left now may be so for the request's sake, or something was before."""
        self.cut_short = self.cut_short or self._is_there()
        return self.cut_short

    def _is_there(self) -> bool:
        if self._read >= 0:  # not in a forked child
            self._hear()  # the watcher may not have come to it yet
        return self.requested

    def _is_scripts(self) -> bool:
        return signal.getsignal(signal.SIGTERM) != self._on_signal

    def _hear(self) -> None:
        """Take in the signals that have come."""
        with self._hearing:
            ready = select.select([self._read], [], [], 0)[0]
            if ready and signal.SIGTERM in os.read(self._read, 4096):
                self._ask()

    def _watch(self) -> None:
        while True:
            select.select([self._read], [], [], 0.05 if self.requested else _TICK_S)
            self._hear()
            self.tick()
            if self.may_leave:
                self._leave_for_main()

    def _leave_for_main(self) -> None:
        if self.stake is Stake.NOTHING:
            with self.leaving:
                if self.stake is Stake.NOTHING:
                    leave()
        elif self.stake is Stake.HELD and time.monotonic() - self._asked_at >= PATIENCE_S:
            with self.leaving:
                if self.stake is Stake.HELD:
                    self.save_held()
                    leave()


def leave(code: int = STOPPED) -> Any:
    """End the process without unwinding the script, its output flushed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
