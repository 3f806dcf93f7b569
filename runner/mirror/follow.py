"""Follows a home's jobs: whatever is committed and not mirrored yet is copied, a few jobs at a time.

It ends when no job runs and nothing is left to copy; where no supervisor serves the home any more, also when
what is left fails. The supervisor starts another when there is something to do again. Killed at any moment it
leaves nothing half-published, and the next one goes on.
"""

from __future__ import annotations

import logging
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from runner.core.cadence import retry_s
from runner.errors import MirrorError, StorageError, UnreadableRecordError
from runner.mirror.account import Account, Orders, held, orders
from runner.mirror.copying import copy_all, has_work
from runner.mirror.medium import Medium, open_medium
from runner.storage import lock
from runner.storage.layout import Home

log = logging.getLogger(__name__)

#: Between two looks at all jobs.
LOOK_S = 0.5
#: The mirror of a job that runs is compared with what is known of it at least so often.
RECHECK_S = 600.0
_RETRY_S_MAX = 60.0
_WORKERS = 4


@dataclass
class Follower:
    """One job that has a mirror."""

    orders: Orders
    seen: tuple[int, int]  #: of the record that the orders were read from
    medium: Medium | None = None
    failures: int = 0
    not_before_s: float = 0.0
    compared_s: float = -math.inf
    settled: bool = False  #: nothing is left to do until the record changes
    work: Future[None] | None = None


class Follow:
    """Looks at every job again and again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._jobs: dict[str, Follower] = {}
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="mirror")

    def run(self) -> None:
        """Follow until nobody serves the home and nothing is left that can be done."""
        while True:
            served = lock.is_locked(self._home.lock)  # before the look, which sees all that was left then
            copies = self.look()
            if not copies and not (served and self._may_come()):
                return
            time.sleep(LOOK_S)

    def _may_come(self) -> bool:
        """Tell whether there may soon be something to copy: a job runs, or is to be tried again."""
        return any(job.orders.active or job.failures for job in self._jobs.values())

    def look(self) -> bool:
        """Take a look at all jobs; tell whether anything is being copied."""
        self._read_records()
        now_s = time.monotonic()
        for job in self._jobs.values():
            if job.work is not None and job.work.done():
                self._finish(job, job.work, now_s)
            if job.work is None and now_s >= job.not_before_s and self._wants(job, now_s):
                job.work = self._pool.submit(self._serve, job)
        return any(job.work is not None for job in self._jobs.values())

    def _read_records(self) -> None:
        there = set(self._home.recorded())
        for name in [*self._jobs]:
            if name not in there and self._jobs[name].work is None:
                self._drop(name)
        for name in there:
            if name not in self._jobs or self._jobs[name].work is None:
                self._read_record(name)

    def _read_record(self, name: str) -> None:
        """Read a job's orders, where its record is another than before."""
        job = self._jobs.get(name)
        try:
            status = os.stat(self._home.job(name).record)  # noqa: PTH116 - two values of one call
            seen = status.st_ino, status.st_mtime_ns
            if job is not None and job.seen == seen:
                return
            found = orders(self._home, name)
        except (OSError, UnreadableRecordError):
            return  # it was removed meanwhile, or the supervisor says what is wrong with it
        if found is None or (job is not None and found.url != job.orders.url):
            self._drop(name)
        if found is not None:
            job = self._jobs.setdefault(name, Follower(found, seen))
            job.orders, job.seen, job.settled = found, seen, False

    def _drop(self, name: str) -> None:
        job = self._jobs.pop(name, None)
        if job is not None and job.medium is not None:
            job.medium.close()

    def _wants(self, job: Follower, now_s: float) -> bool:
        """Tell whether a job's mirror is to be worked on now."""
        if job.settled:
            return False
        account = self._account(job)
        if has_work(account):
            return True
        job.settled = not job.orders.active
        return job.orders.active and account.is_in_use and now_s - job.compared_s >= RECHECK_S

    def _account(self, job: Follower) -> Account:
        paths = self._home.job(job.orders.name)
        return Account(paths, job.orders, paths.mirror_facts)

    def _serve(self, job: Follower) -> None:
        """Bring one job's mirror up to date; in a thread of the pool.

        Raises:
            MirrorError, StorageError, OSError: it could not be done; the first of these is told.
        """
        with held(self._home.job(job.orders.name), wait=False) as ours:
            if not ours:
                return  # what it lacks is just being fetched
            account = self._account(job)
            try:
                if job.medium is None:
                    job.medium = open_medium(job.orders.url, job.orders.name)
                copy_all(account, job.medium)
            except (MirrorError, StorageError, OSError) as error:
                account.failed(error)
                raise

    def _finish(self, job: Follower, work: Future[None], now_s: float) -> None:
        """Take in what became of a job's turn; what failed is tried again, later and later."""
        job.work = None
        error = work.exception()
        if error is None:
            job.failures, job.compared_s = 0, now_s
            return
        job.failures += 1
        job.not_before_s = now_s + min(retry_s(job.failures), _RETRY_S_MAX)
        if job.failures == 1 or not isinstance(error, MirrorError | StorageError | OSError):
            log.error("%s: %s", job.orders.name, error, exc_info=not isinstance(error, MirrorError))
        if job.medium is not None:
            job.medium.close()
            job.medium = None
