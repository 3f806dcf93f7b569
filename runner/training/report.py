"""What the worker tells the outside: facts, progress, one line of metrics an epoch.

What the disk refuses is said on stderr, waits in memory and follows when the disk takes it; training never
stops for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.storage import durable
from runner.training.steady import Lines

#: progress.json is written at most this often.
PROGRESS_EVERY_S = 1.0
#: ... and touched as often where there is nothing new: a heartbeat.
BEAT_EVERY_S = 1.0
_TELL_EVERY_S = 0.25


def now_text() -> str:
    """Return the wall-clock time as the records spell it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Make a metric's value fit for JSON: a float where it is a number, else its text; NaN as None."""
    with contextlib.suppress(TypeError, ValueError):
        number = float(value)
        return number if math.isfinite(number) else None
    return str(value)


class Facts:
    """`facts.jsonl`: appended line by line, each written in one call, after the fact is true."""

    def __init__(self, path: Path):
        self._path = path
        self._lines = Lines(path)
        self._said: set[tuple[Any, ...]] = set()

    def __call__(self, event: str, **fields: Any) -> None:
        """Append one fact."""
        self.append({"event": event, **fields})

    def append(self, fact: Mapping[str, Any]) -> None:
        """Append one fact; from any thread."""
        line = json.dumps(fact, default=str) + "\n"
        try:
            self._lines.append(line.encode())
        except OSError as error:
            sys.stderr.write(f"runner: {self._path}: {error}; to be recorded later: {line}")

    def flush(self) -> None:
        """Write what waits for the disk, as far as that can be done."""
        with contextlib.suppress(OSError):
            self._lines.flush()

    def warn(self, message: str, **fields: Any) -> None:
        """Append a warning, once per text and fields."""
        said = (message, *fields.items())
        if said not in self._said:
            self._said.add(said)
            self("warning", message=message, **fields)


_EARLIER_BYTES_MAX = 1 << 16


class Progress:
    """`progress.json`: the newest values, written at most once a second.

    Setting values costs next to nothing; the watcher thread writes them, or, in a forked child, which has no
    watcher, whoever sets them. What nobody has set again is not written again, but touched: its modification
    time is the heartbeat, `work` counts what the training did, `idle_s` is how old the last of that was when
    it was written.
    """

    def __init__(self, path: Path, attempt: int):
        self._path = path
        self._lock = threading.Lock()
        self._written_at = self._told_at = -math.inf
        self._dirty = False
        self._watched_in = os.getpid()
        self._stepped_at = -math.inf
        self._beat_at, self._worked_at = -math.inf, time.monotonic()
        self._rate: tuple[float, int] | None = None
        self.values: dict[str, Any] = {
            "version": 1,
            "attempt": attempt,
            "pid": os.getpid(),
            "time": "",
            "phase": "import",
            "fit": 0,
            "work": 0,
            "idle_s": 0.0,
            "heartbeat_s": BEAT_EVERY_S,
            "step": 0,
            "epoch": 0,
            "epochs": None,
            "step_in_epoch": 0,
            "steps_per_epoch": None,
            "steps_per_s": None,
            "metrics": {},
            "checkpoint_step": None,
            "saving": {},
            "own_batches": 0,
            "rss_bytes": 0,
        }
        #: What an earlier attempt left behind.
        self.earlier: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.earlier = dict(json.loads(path.read_bytes()[:_EARLIER_BYTES_MAX]))

    def set(self, **values: Any) -> None:
        """Take in new values, as a sign of work; they are written when due."""
        self.values["work"] += 1
        self._worked_at = time.monotonic()
        if "step" in values:
            self._stepped_at = self._worked_at
        self.show(**values)

    def show(self, **values: Any) -> None:
        """Take in new values that do not tell of the training, such as those of a thread beside it."""
        self.values.update(values)
        self._dirty = True
        if os.getpid() != self._watched_in:
            if self.values["pid"] == self._watched_in:  # the first time; a watcher may have held the lock
                self._lock, self.values["pid"] = threading.Lock(), os.getpid()
            self.write_if_due()

    def phase(self, phase: str) -> None:
        """Enter a phase."""
        if self.values["phase"] != phase:
            self.set(phase=phase)

    def wants(self, now: float) -> bool:
        """Tell whether it is time to set what takes a moment to find out; yes at most every quarter second.

        Args:
            now: monotonic, in seconds.
        """
        if now < self._told_at + _TELL_EVERY_S:
            return False
        self._told_at = now
        return True

    def write_if_due(self) -> None:
        """Write when there is something new and a second has passed."""
        if self._dirty and time.monotonic() >= self._written_at + PROGRESS_EVERY_S:
            self.write()

    def beat(self) -> None:
        """Write when there is something new and due, else show about once a second that Python runs."""
        self.write_if_due()
        now = time.monotonic()
        if now >= max(self._beat_at, self._written_at) + BEAT_EVERY_S:
            self._beat_at = now
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def write(self) -> None:
        """Write at once."""
        with self._lock:
            now = time.monotonic()
            self._dirty = False
            self._written_at = now
            values = dict(self.values)
            values["idle_s"] = round(now - self._worked_at, 3)
            values["time"] = now_text()
            values["steps_per_s"] = self._steps_per_s(self._stepped_at, int(values["step"]))
            values["rss_bytes"] = _resident_bytes()
            with contextlib.suppress(OSError):
                durable.publish(self._path, (json.dumps(values, default=str) + "\n").encode())

    def restart_rate(self) -> None:
        """Forget the pace: steps were restored or skipped rather than trained."""
        self._rate = None

    def _steps_per_s(self, at: float, step: int) -> float | None:
        before, self._rate = self._rate, (at, step)
        if before is None or before[0] == -math.inf or step < before[1]:
            return None
        return round((step - before[1]) / (at - before[0]), 2) if at > before[0] else 0.0


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - cheaper than Path, once a second
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class MetricsLog(Lines):
    """`metrics.jsonl`: one line an epoch; a resume cuts it back to where the checkpoint knew it."""

    def state(self) -> dict[str, Any]:
        """Return how far it is, for a checkpoint; with the lines that no disk has yet."""
        size, waiting = self.size(), self.waiting
        return {"metrics_size": size} | ({"metrics_waiting": waiting.decode()} if waiting else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as far as a checkpoint's state says; the beginning, where it says nothing."""
        self.cut(int(state.get("metrics_size", 0)), str(state.get("metrics_waiting", "")).encode())

    def note(self, values: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written now; it waits.
        """
        line = json.dumps({name: _jsonable(value) for name, value in values.items()}) + "\n"
        self.append(line.encode())


def _jsonable(value: Any) -> Any:
    return value if isinstance(value, str | int) else plain(value)
