"""How an attempt ended, as far as its files tell: its shim wrote the outcome, or there are signs of life.

The job can write there too. Whatever it has put in the place of a file of ours, nothing here raises for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.core.events import Ended, StartFailed
from runner.core.job import Job, Outcome
from runner.core.restart import EXIT_RETRY
from runner.errors import UnreadableRecordError
from runner.storage import records
from runner.storage.layout import AttemptPaths, JobPaths

log = logging.getLogger(__name__)

#: Nothing that the job did: the disk is full or broken, no process or descriptor can be had, a server of
#: files is away, a program is just being written.
MACHINES_FAULT = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG),
        *(errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ETXTBSY),
    }
)
#: No clock of a boot gets there.
_SECONDS_MAX = 1e10
#: A record takes over no more of a text.
_TEXT_MAX = 500


def read_outcome(paths: AttemptPaths) -> Ended | StartFailed | None:
    """Read how the attempt ended, as its shim wrote it; None where nothing was written."""
    value = read(paths.outcome)
    if not value:
        return None
    if value.get("error"):
        reason = f"cannot start: {str(value['error'])[:_TEXT_MAX]}"
        if value.get("errno") in tuple(MACHINES_FAULT):  # whatever it is
            return Ended(exit_code=EXIT_RETRY, asked=bool(value.get("asked")), reason=reason)
        return StartFailed(reason)
    code, number = value.get("exit_code"), value.get("signal")
    return Ended(
        exit_code=code if isinstance(code, int) else None,
        signal=str(number)[:_TEXT_MAX] if number is not None else None,
        asked=bool(value.get("asked")),
        reason=Outcome.OUT_OF_MEMORY.value if value.get("kernel_oom") else "",
        max_rss_bytes=_max_rss_bytes(value),
        ran_s=_seconds(value.get("duration_s")),
        ended_s=_seconds(value.get("ended_s")),
        warning=str(value.get("warning") or "")[:_TEXT_MAX],
    )


def signs_s(paths: JobPaths, job: Job) -> float:
    """Return how long after its start the attempt whose end nobody saw gave its last sign of life.

    By what it wrote last, and so by the clock that it was started by.
    """
    attempt, started_s = paths.attempt(job.attempt), 0.0
    if job.current is not None:
        started_s = datetime.fromisoformat(job.current.started_at).timestamp()
    last_s = started_s
    for path in (paths.progress, attempt.facts, attempt.log, attempt.shim):
        with contextlib.suppress(OSError):
            last_s = max(last_s, path.stat().st_mtime)
    return last_s - started_s


def starved(paths: AttemptPaths) -> str | None:
    """Say how much memory the attempt had when the kernel killed it for that; None where it did not."""
    value = read(paths.outcome)
    if not value.get("kernel_oom"):
        return None
    peak, limit = value.get("memory_peak_bytes"), value.get("memory_limit_bytes")
    if not isinstance(peak, int):  # there was no control group: the largest of its processes
        peak = _max_rss_bytes(value)
    text = "the kernel killed it for memory"
    text += f" at its limit (limits.memory = {limit >> 20} MiB)" if isinstance(limit, int) else ""
    return text + (f"; its peak was {peak >> 20} MiB" if isinstance(peak, int) else "")


def _max_rss_bytes(outcome: dict[str, Any]) -> int | None:
    usage = outcome.get("rusage")
    peak = usage.get("max_rss_bytes") if isinstance(usage, dict) else None
    return peak if isinstance(peak, int) else None


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in {int, float} and 0 <= value < _SECONDS_MAX else None


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; what is none, or cannot be read, says nothing."""
    try:
        return records.load_json(path)
    except FileNotFoundError:
        return {}
    except (UnreadableRecordError, OSError) as error:
        _complain(f"{path}: {error}")
        return {}


@lru_cache(maxsize=1000)
def _complain(text: str) -> None:
    """Say what is wrong with a file, not at each look at it."""
    log.error("%s", text)
