"""What a command says of its request, with the supervisor's part played by hand."""

from __future__ import annotations

import threading

import pytest

from runner.cli import daemon, rm
from runner.core.events import Request
from runner.core.job import Job, State
from runner.errors import RefusedError
from runner.storage import durable, eventlog, lock, records, requests
from runner.storage.layout import Home
from tests.waiting import wait_for

NAME = "digits"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "TAKE_UP_S", 60.0)  # the thread that plays the supervisor may be slow
    home = Home(tmp_path)
    home.create()
    home.folder(NAME).mkdir()
    save(home, State.QUEUED, 2)
    return home


def save(home, state, revision):
    records.save_job(
        home.job(NAME).record, Job(NAME, state, "2026-01-01T00:00:00+00:00", 1, revision=revision)
    )


def ask(home, request, answer):
    """Ask while a supervisor serves the home that deals with the request by `answer(path)`."""

    def serve():
        (path,) = wait_for(lambda: requests.pending(home), "the request")
        answer(path)

    held = lock.try_lock(home.lock)
    assert held is not None
    server = threading.Thread(target=serve)
    server.start()
    try:
        daemon.ask(home, NAME, request)
    finally:
        server.join()
        durable.remove(home.lock)


def refuse(home, verb, seq, reason):
    event = {"seq": seq, "time": "", "event": "refused", "verb": verb, "reason": reason}
    eventlog.append(home.job(NAME).events, [event])


def test_removed_is_said_only_of_what_is_gone(home, capsys):
    def remove(path):
        durable.remove_tree(home.folder(NAME))
        durable.remove_tree(home.job(NAME).dir)
        path.unlink()

    ask(home, Request.REMOVE, remove)
    assert capsys.readouterr().out == "digits: removed\n"


@pytest.mark.parametrize("left", ["folder", "state"])
def test_what_the_disk_kept_is_not_called_removed(home, left, monkeypatch):
    monkeypatch.setattr(daemon, "_REMOVED_S", 0.05)

    def remove(path):
        durable.remove_tree(home.job(NAME).dir if left == "folder" else home.folder(NAME))
        path.unlink()

    with pytest.raises(RefusedError, match=r"digits: not removed, .* is still there"):
        ask(home, Request.REMOVE, remove)


def test_what_is_not_taken_up_in_time_is_said(home, monkeypatch, capsys):
    monkeypatch.setattr(daemon, "TAKE_UP_S", 0.05)
    held = lock.try_lock(home.lock)
    assert held is not None
    daemon.ask(home, NAME, Request.PAUSE)
    assert capsys.readouterr().out == "digits: pause asked; the supervisor has not taken it up yet\n"
    assert len(requests.pending(home)) == 1


def test_another_verb_never_says_removed(home, capsys):
    def forget_record(path):
        durable.remove_tree(home.job(NAME).dir)
        path.unlink()

    ask(home, Request.PAUSE, forget_record)
    assert capsys.readouterr().out == "digits: queued (not taken up yet)\n"


def test_a_refusal_that_came_since_is_told(home):
    def answer(path):
        refuse(home, "pause", 3, "digits: not now")
        path.unlink()

    with pytest.raises(RefusedError, match=r"^digits: not now$"):
        ask(home, Request.PAUSE, answer)


@pytest.mark.parametrize(("verb", "seq"), [("pause", 2), ("stop", 3)])
def test_a_refusal_of_before_or_of_another_verb_is_not(home, capsys, verb, seq):
    for number in range(1, seq):
        eventlog.append(home.job(NAME).events, [{"seq": number, "time": "", "event": "queued"}])
    refuse(home, verb, seq, "no")
    ask(home, Request.PAUSE, lambda path: path.unlink())
    assert capsys.readouterr().out == "digits: queued\n"


def test_a_removal_that_was_refused_is_told_by_its_reason(home):
    def answer(path):
        refuse(home, "rm", 3, "digits: it is active")
        path.unlink()

    with pytest.raises(RefusedError, match=r"^digits: it is active$"):
        ask(home, Request.REMOVE, answer)


def test_a_request_that_could_not_be_read_is_told(home):
    def set_aside(path):
        (path.parent / ".refused").mkdir()
        path.rename(path.parent / ".refused" / path.name)

    with pytest.raises(RefusedError, match=r"digits: the supervisor could not read .*\.refused/"):
        ask(home, Request.STOP, set_aside)


def test_who_may_not_take_the_lock_asks_for_a_removal(home, monkeypatch, capsys):
    def forbidden(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(lock, "try_lock", forbidden)
    rm.command([NAME], home.root)
    assert "rm asked; takes effect when a supervisor runs" in capsys.readouterr().out
    assert home.folder(NAME).exists()
    (path,) = requests.pending(home)
    assert requests.read(path).verb == "rm"
