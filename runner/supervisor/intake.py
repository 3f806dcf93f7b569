"""What comes in through `jobs/`: folders to accept or reject, and requests."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from runner.core.events import AnyEvent, Event, Prioritize, Request, Retry
from runner.core.job import SETTLED, Job, Moment, State
from runner.core.spec import PRIORITY_MAX, PRIORITY_MIN, JobSpec
from runner.core.table import Decision, publish
from runner.errors import BadJobError, UnreadableRecordError
from runner.settings import load_spec
from runner.storage import durable, lock, records, requests
from runner.storage.layout import SUBMITTED_MARK, Home, is_job_name, printable_name
from runner.supervisor.arrivals import Arrival, Arrivals, is_quiet
from runner.supervisor.book import Book, moment

log = logging.getLogger(__name__)

#: Requests listed at once: a bound for memory, nothing else.
_REQUESTS_MAX = 100_000


def take_up(home: Home, folder: str, order: int, moment: Moment) -> Job:
    """Make a record of a folder in `jobs/`: queued, or rejected with the reason."""
    name = printable_name(folder)
    try:
        spec = _spec(home, folder)
    except BadJobError as error:
        job = Job(name, State.REJECTED, moment.iso, order, reason=str(error), finished_at=moment.iso)
        return publish(job, moment, State.REJECTED.value, reason=str(error))
    job = Job(
        name,
        State.QUEUED,
        moment.iso,
        order,
        spec,
        seed=_seed(spec),
        threads=_threads(),
        source=_source(home.folder(name)),
        since=moment.iso,
        since_boot=moment.boot,
        since_s=moment.clock_s,
    )
    return publish(job, moment, State.QUEUED.value, seed=job.seed, threads=job.threads)


def _seed(spec: JobSpec) -> int:
    return spec.seed if spec.seed is not None else secrets.randbits(31)


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _spec(home: Home, folder: str) -> JobSpec:
    if not is_job_name(folder):
        raise BadJobError(
            f"jobs/{printable_name(folder)}: not a name for a job; expected letters, digits, '.', '_' "
            "and '-', at most 64, the first a letter or digit; rename the folder"
        )
    path = home.folder(folder)
    if path.is_symlink():
        raise BadJobError(f"jobs/{folder}: a symbolic link; expected a folder: `runner submit` copies one")
    return load_spec(path)


def _source(folder: Path) -> str | None:
    try:
        source = records.load_json(folder / SUBMITTED_MARK).get("source")
    except (OSError, UnreadableRecordError):
        return None
    return source if isinstance(source, str) else None


def load_again(home: Home, name: str) -> JobSpec:
    """Read the settings of a job that shall run again, as its folder has them now.

    Raises:
        BadJobError: they cannot be accepted, or the folder is gone.
    """
    if not home.folder(name).is_dir():
        raise BadJobError(f"jobs/{name}: the folder is gone; submit it again")
    return _spec(home, name)


class Inbox:
    """Takes up new folders and carries out requests, a piece at a time."""

    def __init__(
        self, book: Book, handle: Callable[[str, AnyEvent], Decision | None], only: str | None
    ) -> None:
        self._book = book
        self._home = book.home
        self._handle = handle
        self._only = only
        self._arrivals = Arrivals(book.home, self._is_known, book.next_order)
        self._requests: deque[Path] = deque()
        self._listed = True  #: nothing was asked, as far as is known, beyond `_requests`
        self._held = False  #: a request waits for its job to be taken up
        self.writing = False  #: a folder is still being written, and must be looked at soon

    def find(self) -> None:
        """Look for what came in; `work` deals with it."""
        self.writing = False
        self._listed = False
        self._arrivals.find()

    def work(self, until_s: float) -> bool:
        """Deal with what was found, until `until_s` on the monotonic clock; tell whether there is more.

        Each turn gets at least one folder and one request done, so that neither kind holds up the other.
        """
        while True:
            busy = self._work_on_folder()
            busy = self._work_on_request() or busy
            if not busy or time.monotonic() >= until_s:
                return busy

    def _is_known(self, name: str) -> bool:
        return self._only not in {None, name} or self._book.knows(name)

    def _work_on_folder(self) -> bool:
        arrival = self._arrivals.take()
        if arrival is None:
            return False
        if not is_quiet(self._home.jobs / arrival.folder, time.time()):
            self.writing = True
            self._arrivals.put_back(arrival)
        elif not self._take_up(arrival):
            self._arrivals.put_back(arrival)
        return True

    def _take_up(self, arrival: Arrival) -> bool:
        job = take_up(self._home, arrival.folder, arrival.order, moment())
        if not self._book.commit(job):
            return False
        self._book.log_events(job)
        log.info("%s: %s %s", job.name, job.state.value, job.reason)
        if self._held and not self._arrivals.any_left:
            self._listed = False  # the requests that had to wait can be dealt with now
        return True

    def _work_on_request(self) -> bool:
        if not self._requests and not self._listed:
            self._listed, self._held = True, False
            self._requests.extend(requests.pending(self._home, _REQUESTS_MAX))
        if not self._requests:
            return False
        self._request(self._requests.popleft())
        return True

    def _request(self, path: Path) -> None:
        try:
            request = requests.read(path)
        except FileNotFoundError:
            return
        except UnreadableRecordError as error:
            log.error("a request was refused: %s", error)
            _set_aside(path)
            return
        except OSError as error:
            log.error("%s: cannot be read: %s; trying again", path, error)
            return
        if self._only in {None, request.name} and self._carry_out(request):
            _discard(path)

    def _carry_out(self, request: requests.RequestFile) -> bool:
        """Do what is asked, or refuse it for good; False where the disk refused: try again."""
        name = request.name
        if requests.means_another(self._home, request):
            log.warning("%s: the request %r meant an earlier job; it was dropped", name, request.verb)
            return True
        if name in self._book.refused and request.verb == Request.REMOVE:
            if _runs(self._home, name):
                log.error("%s: its record cannot be read, and its attempt runs: it is not removed", name)
            else:
                self._book.remove(name)
            return True
        if name not in self._book.jobs and self._is_coming(name):
            self._held = True
            return False
        if name not in self._book.jobs:
            log.warning("%s: no such job; the request %r was dropped", name, request.verb)
            return True
        if request.submitted_at not in {None, self._book.jobs[name].submitted_at}:
            log.warning("%s: the request %r meant an earlier job; it was dropped", name, request.verb)
            return True
        try:
            event = self._event_for(request)
        except (BadJobError, ValueError) as error:
            self._book.note(name, "refused", verb=request.verb, reason=str(error))
            return True
        decision = self._handle(name, event)
        if decision is not None and decision.refusal:
            self._book.note(name, "refused", verb=request.verb, reason=decision.refusal)
        return decision is not None

    def _is_coming(self, name: str) -> bool:
        """Tell whether the job is there but not taken up yet, so that a request for it must wait."""
        return name in self._book.postponed or any(True for _ in self._home.submitted_as(name))

    def _event_for(self, request: requests.RequestFile) -> AnyEvent:
        kind = Request(request.verb)
        if kind is Request.RETRY and self._book.jobs[request.name].state in SETTLED:
            spec = load_again(self._home, request.name)
            return Retry(spec, _seed(spec), _threads())
        if kind is Request.PRIORITY:
            return Prioritize(_priority(request.args.get("priority")))
        return Event(kind)


def _runs(home: Home, name: str) -> bool:
    try:
        return lock.is_locked(home.job(name).lock)
    except OSError:
        return False  # what is damaged has to go


def _priority(value: object) -> int:
    """Return what a request asks for. Raises ValueError where that is no priority."""
    if type(value) is not int or not PRIORITY_MIN <= value <= PRIORITY_MAX:
        raise ValueError(
            f"priority must be a whole number from {PRIORITY_MIN} to {PRIORITY_MAX}, not {value!r:.40}"
        )
    return value


def _set_aside(path: Path) -> None:
    """Keep what is no request where its writer can see that it was refused."""
    try:
        refused = path.parent / ".refused"
        durable.make_folder(refused)
        durable.move(path, refused / path.name)
    except OSError as error:
        log.error("%s: cannot be set aside: %s", path, error)


def _discard(path: Path) -> None:
    """Remove a request that was dealt with; one that stays is dealt with again, which does no harm."""
    try:
        durable.remove(path)
    except OSError as error:
        log.error("%s: cannot be removed: %s", path, error)
