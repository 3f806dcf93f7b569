"""What is read of files and messages that a job can write."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from runner.core.events import Ended, StartFailed
from runner.storage.layout import AttemptPaths
from runner.supervisor import ends, process, spare
from runner.supervisor.process import Identity

JUNK = [b"", b"[", b"[]", b"7", b'"ready"', b"\xff", b"[" * 60_000, b'{"ready": true', b"9" * 5000]


@pytest.mark.parametrize("message", JUNK)
def test_what_is_no_word_of_a_spare_says_nothing(message: bytes) -> None:
    assert spare._said(message) == {}


def test_what_a_spare_says_is_bounded() -> None:
    said = spare._said(b'{"ready": true, "left": 3, "until": null, "reason": ["%s"]}' % (b"x" * 60_000))
    assert said | {"reason": ""} == {"ready": True, "left": 3, "until": None, "reason": ""}
    assert len(said["reason"]) == 500


@pytest.mark.parametrize("pid", [0, -1, 1 << 23, 10**30, "Infinity", None, [], {}])
def test_what_is_no_pid_names_nobody(pid: object) -> None:
    assert Identity.parse({"boot": process.boot_id(), "pid": pid, "start": 1}) is None


def test_a_thread_is_no_process_to_wait_for() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.native_id is not None
    assert process.open_pidfd(Identity(process.boot_id(), thread.native_id, 1)) is None
    over.set()
    thread.join()


@pytest.mark.parametrize("junk", [*JUNK, "socket", "fifo", "folder", "loop"])
def test_what_is_no_file_of_ours_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: bytes | str
) -> None:
    paths = AttemptPaths(tmp_path)
    match junk:
        case bytes():
            paths.outcome.write_bytes(junk)
        case "socket":
            monkeypatch.chdir(tmp_path)
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(paths.outcome.name)
        case "fifo":
            os.mkfifo(paths.outcome)
        case "folder":
            paths.outcome.mkdir()
        case "loop":
            paths.outcome.symlink_to(paths.outcome)
    assert ends.read_outcome(paths) is None


def test_what_a_record_takes_over_of_an_outcome_is_bounded(tmp_path: Path) -> None:
    paths = AttemptPaths(tmp_path)
    long = "x" * 1_000_000
    paths.outcome.write_text(f'{{"error": "{long}"}}')
    found = ends.read_outcome(paths)
    assert isinstance(found, StartFailed)
    assert len(found.reason) < 600
    paths.outcome.write_text(f'{{"signal": "{long}", "exit_code": []}}')
    found = ends.read_outcome(paths)
    assert isinstance(found, Ended)
    assert found.signal is not None
    assert len(found.signal) == 500
