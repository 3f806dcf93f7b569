"""What runs of jobs whose record cannot be read: its place on the machine is given to nobody meanwhile.

Such a job is left alone, and so is its attempt. That it runs, its lock tells; what it was to have, its folder
in `jobs/`; which GPUs it sees, its launch.json. Where its shim was killed, what the worker has started is
killed before anybody else gets the place. Limits: what was edited in the folder since is believed.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from runner.core.job import Attempt, Job, State
from runner.core.spec import JobSpec
from runner.errors import BadJobError
from runner.settings import load_spec
from runner.storage import lock
from runner.storage.layout import attempt_numbers
from runner.supervisor import launch
from runner.supervisor.book import Book, moment
from runner.supervisor.ends import MACHINES_FAULT, read_outcome

log = logging.getLogger(__name__)


class Unread:
    """The attempts that nobody watches, as running jobs for the plans."""

    def __init__(
        self,
        book: Book,
        clear: Callable[[str], bool],
        shown_to: Callable[[Mapping[str, str]], tuple[str, ...]],
    ) -> None:
        """Begin.

        Args:
            book: which names what cannot be read.
            clear: kills what a job without a shim has left; tells whether nothing is left.
            shown_to: returns the GPUs that a process with this environment sees.
        """
        self._book = book
        self._clear = clear
        self._shown_to = shown_to
        self._running: dict[str, Job] = {}
        self._ended: set[str] = set()  #: nobody starts these again

    def any_left(self) -> bool:
        """Tell whether there was one at the last look."""
        return bool(self._running)

    def running(self) -> list[Job]:
        """Look which of them run, and return these, each with what it occupies."""
        unread = self._book.unread
        self._ended &= unread
        self._ended |= {name for name in unread - self._ended if not self._runs(name)}
        self._running = {name: self._running.get(name) or self._job(name) for name in unread - self._ended}
        return list(self._running.values())

    def _runs(self, name: str) -> bool:
        """Tell whether something of its attempt lives; without a shim that is killed."""
        paths = self._book.home.job(name)
        try:
            if lock.is_locked(paths.lock):
                return True
            number = max(attempt_numbers(paths.attempts), default=0)
        except OSError as error:  # what is damaged for good must not have a place for good
            return error.errno in MACHINES_FAULT - {errno.EIO}
        if number == 0 or read_outcome(paths.attempt(number)) is not None:
            return False
        if self._clear(name):
            return False
        log.error("%s: its record cannot be read, and its shim was killed: so is what that has left", name)
        return True

    def _job(self, name: str) -> Job:
        """Return a record in the stead of the one that cannot be read; nobody may stop it."""
        home, now = self._book.home, moment().iso
        number = max(attempt_numbers(home.job(name).attempts), default=1)
        seen = self._shown_to(launch.environment_of(home.job(name).attempt(number)))
        try:
            spec = load_spec(home.folder(name))
        except (BadJobError, OSError):
            spec = JobSpec()
            spec = replace(spec, resources=replace(spec.resources, gpus=len(seen)))
        wish = replace(spec.resources, preemptible=False)
        log.error(
            "%s: its record cannot be read, and its attempt %d runs: it keeps %g cpus and %g gpus",
            *(name, number, wish.cpus, wish.gpus),
        )
        attempts = (Attempt(number, now, gpus=seen),)
        spec = replace(spec, resources=wish)
        return Job(name, State.RUNNING, now, 0, spec, attempt=number, attempts=attempts)
