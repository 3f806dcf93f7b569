"""The event loop: descriptors, deadlines and signals on one thread.

A turn waits for the nearest of them and calls what belongs to it. Signal handlers set a flag and wake the
loop; nothing else happens in them. Other threads may only `wake` it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import TypeAlias

Callback: TypeAlias = Callable[[], None]


class Timer:
    """A deadline; `cancel` makes it never come."""

    def __init__(self, when_s: float, callback: Callback) -> None:
        self.when_s = when_s
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Make the deadline never come."""
        self.callback = None


class Loop:
    """Runs callbacks when descriptors are readable, deadlines come, or signals arrive."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._arrived: set[int] = set()
        self._on_wake: Callback = _nothing
        self._stopped = False
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wakes)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call back, in a turn of the loop, when the signal has arrived; one that was held back comes now."""
        self._signals[number] = callback
        signal.signal(number, lambda n, _frame: self._arrived.add(n))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

    def has_arrived(self, number: int) -> bool:
        """Tell whether the signal has arrived and was not called back for."""
        return number in self._arrived

    def on_readable(self, fd: int, callback: Callback) -> None:
        """Call back in every turn in which `fd` is readable, until `forget`."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def on_wake(self, callback: Callback) -> None:
        """Call back in a turn of the loop after another thread called `wake`."""
        self._on_wake = callback

    def forget(self, fd: int) -> None:
        """Stop watching `fd`."""
        self._selector.unregister(fd)

    def wake(self) -> None:
        """Make the loop take a turn; safe from any thread."""
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def after(self, delay_s: float, callback: Callback) -> Timer:
        """Call back once, `delay_s` seconds from now."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.when_s, next(self._order), timer))
        return timer

    def every(self, period_s: float, callback: Callback) -> None:
        """Call back every `period_s` seconds, from now on."""

        def tick() -> None:
            self.after(period_s, tick)
            callback()

        self.after(period_s, tick)

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Take turns until `stop`."""
        while not self._stopped:
            self._turn()

    def close(self) -> None:
        """Let go of the descriptors."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _turn(self) -> None:
        timeout = None
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fd in self._selector.get_map():
                key.data()
        while self._arrived:
            self._signals[self._arrived.pop()]()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()

    def _drain_wakes(self) -> None:
        woken = False
        try:
            while data := os.read(self._wake_read, 4096):
                woken = woken or 0 in data
        except BlockingIOError:
            pass
        if woken:
            self._on_wake()


class Soon:
    """A callback that comes soon after it was asked for: once, however often that was.

    Args:
        burst_s: how much of its rests may be owed: after a while without calls, the first ones need not wait.
    """

    def __init__(self, loop: Loop, callback: Callback, burst_s: float = 0.0) -> None:
        self._loop = loop
        self._callback = callback
        self._burst_s = burst_s
        self._rested_at = 0.0
        self._timer: Timer | None = None

    def ask(self, delay_s: float = 0.0) -> None:
        """Have it come in a later turn of the loop, `delay_s` from now, or when it was asked for already."""
        if self._timer is None:
            resting_s = self._rested_at - self._burst_s - time.monotonic()
            self._timer = self._loop.after(max(delay_s, resting_s), self._call)

    def rest(self, seconds: float) -> None:
        """Have what is asked for from now on come no sooner than in `seconds`, less what may be owed."""
        self._rested_at = max(self._rested_at, time.monotonic()) + seconds

    def _call(self) -> None:
        self._timer = None
        self._callback()


def _nothing() -> None:
    """Do nothing."""
