"""Requests: taken in the order of asking, each once; junk is named and harms nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.errors import UnreadableRecordError
from runner.storage import requests
from runner.storage.layout import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def test_a_request_comes_back_as_it_went_in(home: Home) -> None:
    path = requests.submit_request(home, "stop", "digits", {"why": "é"})
    assert requests.pending(home) == [path]
    assert requests.read(path) == requests.RequestFile(path, "stop", "digits", {"why": "é"})


def test_the_first_request_makes_its_folder(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    assert requests.pending(home) == []
    path = requests.submit_request(home, "stop", "digits")
    assert requests.pending(home) == [path]


def test_requests_are_taken_in_the_order_of_asking(home: Home) -> None:
    asked = [requests.submit_request(home, verb, "digits") for verb in ("pause", "resume", "stop") * 5]
    assert requests.pending(home) == asked
    assert requests.pending(home, limit=2) == asked[:2]


def test_what_is_staged_or_no_file_is_no_request(home: Home) -> None:
    (home.requests / ".00000000000000000001-aa.json.7-bb.tmp").write_text("{")
    (home.requests / "00000000000000000001-aa.tmp").write_text("{")
    (home.requests / "folder.json").mkdir()
    (home.requests / "dangling.json").symlink_to("nowhere")
    os.mkfifo(home.requests / "fifo.json")
    assert requests.pending(home) == []


GOOD = '{"version": 1, "verb": "stop", "name": "digits", "args": {}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 60_000,
        b"{}",
        GOOD.replace('"stop"', "7").encode(),
        GOOD.replace('"digits"', "null").encode(),
        GOOD.replace("{}", "[]").encode(),
        GOOD.replace("1,", "2,").encode(),
        GOOD.replace("1,", '"1",').encode(),
        GOOD.replace("{}", '{"x": "' + "y" * 70_000 + '"}').encode(),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_junk_is_named(data: bytes, home: Home) -> None:
    path = home.requests / "00000000000000000001-junk.json"
    path.write_bytes(data)
    assert requests.pending(home) == [path]
    with pytest.raises(UnreadableRecordError, match=r"junk\.json"):
        requests.read(path)


def test_an_oversize_request_is_not_read_into_memory(home: Home) -> None:
    path = home.requests / "1-huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableRecordError, match="at most 65536 are read"):
        requests.read(path)


def test_a_request_that_is_gone_is_gone(home: Home) -> None:
    with pytest.raises(FileNotFoundError):
        requests.read(home.requests / "1-gone.json")
