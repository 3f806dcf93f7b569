"""Thousands of jobs, folders and requests: each turn does a bounded piece of them, and the rest is served."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runner.core.job import Moment, State
from runner.core.spec import JobSpec
from runner.core.table import Decision, decide
from runner.storage import records, requests
from runner.storage.layout import Home
from runner.supervisor import allotment, arrivals, process
from runner.supervisor.book import Book, moment
from runner.supervisor.broom import Broom
from runner.supervisor.intake import Inbox, take_up
from tests.system.conftest import Site
from tests.waiting import wait_for

RECORDS = 2000
FOLDERS = 400
#: So many that a daemon has found do not go in one turn.
BACKLOG = 200
REQUESTS = 2000
#: Of the machine, more than half: two of these never run at once.
MOST = f"[resources]\ncpus = {0.6 * allotment.cpus()}\n"
LONG_AGO = 1e9
PAST = 0.0  # a deadline that is over: one piece of work and no more


def put_folder(home: Home, name: str) -> None:
    staged = home.jobs / f".{name}.tmp"
    staged.mkdir()
    (staged / "job.toml").write_text(f'command = ["true"]\n{MOST}')
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(home.folder(name))


def put_requests(home: Home, count: int, name: str) -> None:
    home.requests.mkdir(exist_ok=True)
    for number in range(count):
        text = f'{{"version": 1, "verb": "cancel", "name": "{name}", "args": {{}}}}'
        (home.requests / f"{number:08d}.json").write_text(text)


class Desk:
    """An inbox with its book, as a daemon has them, but moved by hand."""

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.home = Home(root)
        self.home.create()
        self.book = Book(self.home, Broom())
        self.inbox = Inbox(self.book, self.handle, only)

    def handle(self, name: str, event: object) -> Decision | None:
        decision = decide(self.book.jobs[name], event, Moment("2026-01-01T00:00:00.000+00:00"))
        return decision if self.book.commit(decision.job) else None

    def names(self) -> list[str]:
        return sorted(self.book.jobs)

    def finish(self) -> None:
        while self.inbox.work(PAST):
            pass


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "home")


def test_a_turn_takes_up_one_folder_and_one_request(desk: Desk) -> None:
    for name in ("c", "a", "b"):
        put_folder(desk.home, name)
    put_requests(desk.home, 3, "nobody")
    desk.inbox.find()
    counts = []
    for _ in range(3):
        assert desk.inbox.work(PAST)
        counts.append((len(desk.book.jobs), len(requests.pending(desk.home))))
    assert counts == [(1, 2), (2, 1), (3, 0)]
    assert not desk.inbox.work(PAST)
    assert sorted(desk.names(), key=lambda name: desk.book.jobs[name].order) == ["a", "b", "c"]


def test_what_came_last_is_taken_up_first_and_keeps_its_place(desk: Desk) -> None:
    for name in ("b", "c", "d"):
        put_folder(desk.home, name)
    desk.inbox.find()
    desk.inbox.work(PAST)
    put_folder(desk.home, "a")
    desk.inbox.find()
    desk.inbox.work(PAST)
    assert desk.names() == ["a", "b"]
    desk.finish()
    assert {name: job.order for name, job in desk.book.jobs.items()} == {"b": 1, "c": 2, "d": 3, "a": 4}


def test_a_folder_that_went_before_its_turn_is_no_job(desk: Desk) -> None:
    for name in ("a", "b"):
        put_folder(desk.home, name)
    desk.inbox.find()
    desk.inbox.work(PAST)
    shutil.rmtree(desk.home.folder("b"))
    desk.finish()
    assert desk.names() == ["a"]


def test_a_folder_whose_record_the_disk_refused_is_taken_up_later(desk: Desk) -> None:
    put_folder(desk.home, "a")
    desk.home.job("a").dir.write_text("in the way")
    os.utime(desk.home.jobs, (LONG_AGO, LONG_AGO))  # nothing in it changes from now on
    desk.inbox.find()
    desk.finish()
    assert desk.names() == []
    desk.home.job("a").dir.unlink()
    desk.inbox.find()
    desk.finish()
    assert desk.names() == ["a"]


def test_a_request_for_a_folder_far_behind_waits_for_it(desk: Desk) -> None:
    for name in ("a", "b", "z"):
        put_folder(desk.home, name)
    put_requests(desk.home, 1, "z")
    desk.inbox.find()
    desk.inbox.work(PAST)
    assert len(requests.pending(desk.home)) == 1
    desk.finish()
    assert requests.pending(desk.home) == []
    assert desk.book.jobs["z"].state is State.CANCELLED


def test_a_request_that_comes_again_does_nothing_to_another_job_of_that_name(desk: Desk) -> None:
    """Its supervisor died when it was carried out and not yet removed; the job went, another one came."""
    put_folder(desk.home, "a")
    desk.inbox.find()
    desk.finish()
    request = requests.submit_request(desk.home, "cancel", "a")
    left = request.read_text()
    desk.inbox.find()
    desk.finish()
    first = desk.book.jobs["a"]
    assert (first.state, request.exists()) == (State.CANCELLED, False)
    desk.book.remove("a")
    wait_for(lambda: moment().iso != first.submitted_at, "another time")
    put_folder(desk.home, "a")
    request.write_text(left)
    desk.inbox.find()
    desk.finish()
    assert (desk.book.jobs["a"].state, request.exists()) == (State.QUEUED, False)


def test_a_request_for_what_never_comes_keeps_nobody_busy(desk: Desk) -> None:
    desk.book.postponed.add("gone")
    put_requests(desk.home, 1, "gone")
    put_folder(desk.home, "a")
    desk.inbox.find()
    turns = 0
    while desk.inbox.work(PAST):
        turns += 1
        assert turns < 10
    assert len(requests.pending(desk.home)) == 1


def test_one_of_many_is_served_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "home", only="b")
    for name in ("a", "b", "c"):
        put_folder(desk.home, name)
    desk.inbox.find()
    desk.finish()
    assert desk.names() == ["b"]


@pytest.fixture(scope="module")
def scanned() -> Iterator[list[str]]:
    """Every folder that is listed in this process, from now on."""
    found: list[str] = []
    listening = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "os.scandir":
            found.append(str(arguments[0]))

    sys.addaudithook(hear)
    yield found
    listening = False


def test_jobs_are_not_listed_again_while_nothing_changes(desk: Desk, scanned: list[str]) -> None:
    put_folder(desk.home, "a")
    os.utime(desk.home.jobs, (LONG_AGO, LONG_AGO))
    desk.inbox.find()
    desk.finish()
    scanned.clear()
    desk.inbox.find()
    assert str(desk.home.jobs) not in scanned
    put_folder(desk.home, "b")
    for _ in range(2):  # so soon after a change, the time of jobs/ proves nothing
        scanned.clear()
        desk.inbox.find()
        assert str(desk.home.jobs) in scanned
    desk.finish()
    assert desk.names() == ["a", "b"]


def test_a_change_within_the_grain_of_the_clock_is_seen(desk: Desk) -> None:
    desk.inbox.find()
    before = desk.home.jobs.stat()
    put_folder(desk.home, "a")
    os.utime(desk.home.jobs, ns=(before.st_atime_ns, before.st_mtime_ns))
    desk.inbox.find()
    desk.finish()
    assert desk.names() == ["a"]


def test_jobs_are_listed_now_and_then_whatever_their_time_says(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(desk.home.jobs, (LONG_AGO, LONG_AGO))
    desk.inbox.find()
    put_folder(desk.home, "a")
    os.utime(desk.home.jobs, (LONG_AGO, LONG_AGO))  # as on a disk that others write to
    desk.inbox.find()
    desk.finish()
    assert desk.names() == []
    monkeypatch.setattr(arrivals, "_ANYWAY_S", 0.0)
    desk.inbox.find()
    desk.finish()
    assert desk.names() == ["a"]


def test_the_book_tells_of_what_changes_the_queue_only(desk: Desk) -> None:
    changes: list[None] = []
    desk.book.on_change = lambda: changes.append(None)
    put_folder(desk.home, "a")
    desk.inbox.find()
    desk.finish()
    assert len(changes) == 1
    desk.book.note("a", "adopted")
    desk.book.commit(replace(desk.book.jobs["a"], reason="waits for a free slot"))
    assert len(changes) == 1
    desk.book.commit(replace(desk.book.jobs["a"], spec=JobSpec(priority=1)))
    desk.book.commit(replace(desk.book.jobs["a"], state=State.RUNNING))
    desk.book.remove("a")
    assert len(changes) == 4


def put_records(home: Home, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a daemon made of so many folders, in less time; only the last has its folder."""
    put_folder(home, f"job-{count:05d}")
    job = take_up(home, f"job-{count:05d}", count, moment())  # now: jobs age in the queue
    job = replace(job, outbox=(), reason="waits for a free slot")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        for order in range(1, count + 1):
            named = replace(job, name=f"job-{order:05d}", order=order)
            records.save_job(home.job(named.name).record, named)


def test_records_are_left_alone_by_the_collector(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put_records(site.home, 100, monkeypatch)
    book, before = Book(site.home, Broom()), gc.get_freeze_count()
    try:
        book.load_all(site.home.recorded())
        assert gc.get_freeze_count() >= before + 100
        assert gc.isenabled()
    finally:
        gc.unfreeze()
    assert len(book.jobs) == 100


def test_a_daemon_with_thousands_of_records(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put_records(site.home, RECORDS, monkeypatch)
    damaged = site.home.job("job-00007").record
    damaged.write_bytes(damaged.read_bytes().replace(b'"threads": ', b'"threads": 1', 1))
    others = [site.home.job(f"job-{number:05d}").record for number in (1, 2, 3, RECORDS)]
    was = {path: path.stat().st_mtime_ns for path in (damaged, *others)}
    site.submit("holder", command=["sleep", "600"], toml=f"priority = 1\n{MOST}")
    site.start()
    site.wait("holder", State.RUNNING)
    site.submit("urgent", "5", "0.01", toml="priority = 1\n[resources]\ncpus = 0.1\n")
    site.wait("urgent", State.SUCCEEDED)
    assert f"{damaged}: damaged: it does not match the sha256" in site.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in was} == was, "nothing was written where nothing changed"
    site.ask("cancel", "job-00009")
    assert site.job("job-00009").state is State.CANCELLED


def stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGSTOP)
    wait_for(lambda: process.is_stopped(daemon.pid), "the daemon to stop")


def stop_amid_a_backlog(site: Site) -> None:
    """Stop the daemon when it has found folders, and many of them are left; more are put there if need be."""
    daemon = site.daemons[-1]

    def stopped() -> bool:
        stop(daemon)
        if len(untaken(site)) >= BACKLOG:
            return True
        there = sum(path.name.startswith("job-") for path in site.home.jobs.iterdir())
        for number in range(there, there + FOLDERS):
            put_folder(site.home, f"job-{number:05d}")
        left = len(untaken(site))
        daemon.send_signal(signal.SIGCONT)
        wait_for(lambda: len(untaken(site)) <= left - FOLDERS // 10, "the folders to be found")
        return False

    wait_for(stopped, "a backlog")


def untaken(site: Site) -> set[str]:
    """Return the names of the folders that no job was made of so far."""
    return {path.name for path in site.home.jobs.glob("job-*")} - {*site.home.recorded()}


def test_a_backlog_of_folders_holds_up_no_signal_and_no_newcomer(site: Site) -> None:
    put_folder(site.home, "0-first")
    for number in range(FOLDERS):
        put_folder(site.home, f"job-{number:05d}")
    (site.home.folder("0-first") / "job.toml").write_text(f'command = ["sleep", "600"]\n{MOST}')
    daemon = site.start()
    site.wait("0-first", State.RUNNING)
    stop_amid_a_backlog(site)
    backlog = untaken(site)
    site.submit("newcomer", "5", "0.01", toml="priority = 1\n[resources]\ncpus = 0.1\n")
    daemon.send_signal(signal.SIGCONT)
    started_at = site.wait("newcomer", State.SUCCEEDED).started_at
    wait_for(lambda: not untaken(site), "the backlog to be taken up")
    last_at = max(site.job(name).submitted_at for name in backlog)
    assert started_at < last_at, "it waited for the backlog"
    stop_amid_a_backlog(site)
    daemon.terminate()
    daemon.send_signal(signal.SIGCONT)
    assert daemon.wait(timeout=30) == 0
    assert untaken(site), "the signal waited for the backlog"
    assert site.job("0-first").state is State.QUEUED


def test_a_flood_of_requests_holds_up_no_end_and_no_start(site: Site) -> None:
    daemon = site.start()
    site.submit("ends", command=["sh", "-c", "while [ ! -e go ]; do sleep 0.02; done"], toml=MOST)
    site.wait("ends", State.RUNNING)
    site.submit("next", command=["sleep", "600"], toml=MOST)
    wait_for(lambda: (job := site.job("next")) and job.reason == "waits for a free slot", "the queue")
    stop(daemon)
    put_requests(site.home, REQUESTS, "nobody")
    (site.home.folder("ends") / "go").touch()
    wait_for(site.home.job("ends").attempt(1).outcome.exists, "the end, seen by the shim alone")
    daemon.send_signal(signal.SIGCONT)
    site.wait("ends", State.SUCCEEDED)
    site.wait("next", State.RUNNING)
    wait_for(lambda: not requests.pending(site.home), "the flood to be over")
    told = site.log.read_text()
    assert told.index("next: running") < told.rindex("nobody: no such job"), "the end waited for the flood"
