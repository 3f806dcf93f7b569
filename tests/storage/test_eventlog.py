"""The event log: every event once and in order, whatever was torn, failed or killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.storage import eventlog, jsontext
from runner.storage.eventlog import Torn
from tests.storage import faults

EVENTS = [{"seq": seq, "event": f"number {seq}"} for seq in range(1, 6)]
LINES = [json.dumps(event).encode() + b"\n" for event in EVENTS]


def seqs(path: Path) -> list[int]:
    return [line["seq"] for line in eventlog.read(path) if not isinstance(line, Torn)]


def torn(path: Path) -> list[Torn]:
    return [line for line in eventlog.read(path) if isinstance(line, Torn)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


# --- appending --------------------------------------------------------------------------------------------


def test_events_come_back_as_they_went_in(log: Path) -> None:
    eventlog.append(log, EVENTS[:2])
    eventlog.append(log, EVENTS[2:])
    assert list(eventlog.read(log)) == EVENTS


def test_nothing_to_append_makes_no_log(log: Path) -> None:
    eventlog.append(log, [])
    assert not log.exists()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10))
def test_an_append_that_is_repeated_adds_nothing(
    tmp_path_factory: pytest.TempPathFactory, slices: list[tuple[int, int]]
) -> None:
    log = tmp_path_factory.mktemp("log") / "events.jsonl"
    known = 0
    for start, count in slices:
        start = min(start, known)  # the outbox never leaves a gap
        eventlog.append(log, EVENTS[start : start + count])
        known = max(known, min(start + count, 5)) if count else known
        assert seqs(log) == list(range(1, known + 1))


@pytest.mark.parametrize("cut", range(len(b"".join(LINES)) + 1))
def test_a_log_torn_at_any_byte_is_completed(cut: int, log: Path) -> None:
    log.write_bytes(b"".join(LINES)[:cut])
    eventlog.append(log, EVENTS)
    assert seqs(log) == [1, 2, 3, 4, 5]
    whole = sum(len(line) for line in LINES[: b"".join(LINES)[:cut].count(b"\n")])
    fragment = b"".join(LINES)[whole:cut]
    expected = [] if fragment in {b"", LINES[-1][:-1]} or fragment + b"\n" in LINES else [fragment.decode()]
    assert [line.text for line in torn(log)] == expected


def test_a_torn_line_is_told_with_its_number(log: Path) -> None:
    log.write_bytes(LINES[0] + LINES[1][:10])
    assert list(eventlog.read(log)) == [EVENTS[0], Torn(2, '{"seq": 2,')]


def test_a_torn_end_is_never_glued_to_the_next_event(log: Path) -> None:
    log.write_bytes(LINES[0] + LINES[1][:-1])  # whole but for its newline
    eventlog.append(log, EVENTS[2:3])
    assert seqs(log) == [1, 2, 3]


@pytest.mark.parametrize("size", [60_000, 70_000, 1_000_000])
def test_the_last_number_is_found_behind_a_line_of_any_length(size: int, log: Path) -> None:
    big = [{"seq": 1, "message": "x" * size}]
    eventlog.append(log, big)
    eventlog.append(log, big)
    log.write_bytes(log.read_bytes() + b'{"seq": 2, "torn": "' + b"y" * size)
    eventlog.append(log, [*big, {"seq": 2}])
    assert seqs(log) == [1, 2]


def test_a_number_inside_an_event_is_not_its_number(log: Path) -> None:
    eventlog.append(log, [{"seq": 1, "fact": {"seq": 900}, "text": '{"seq": 901}'}])
    eventlog.append(log, [{"seq": 2}])
    assert seqs(log) == [1, 2]


def test_every_line_is_one_line_and_any_reader_takes_it(log: Path) -> None:
    odd = {"text": "a\nb\u2028c\x85d\r\udcff", "loss": float("nan"), "best": float("-inf"), "name": "Größe"}
    eventlog.append(log, [{"seq": 1, **odd}, {"seq": 2}])
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    strict = json.loads(lines[0], parse_constant=pytest.fail)
    assert strict == {
        "seq": 1,
        "text": "a\nb\u2028c\x85d\r?",
        "loss": "NaN",
        "best": "-Infinity",
        "name": "Größe",
    }


# --- failing and dying ------------------------------------------------------------------------------------

BEFORE = {
    "no log": None,
    "some": b"".join(LINES[:2]),
    "torn": b"".join(LINES[:2]) + LINES[2][:7],
    "newline lost": b"".join(LINES[:3])[:-1],
    "all there": b"".join(LINES),
}


def fresh(folder: Path, before: bytes | None) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if before is not None:
        (folder / "events.jsonl").write_bytes(before)
    return folder


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_death_at_any_call_then_the_same_again_gives_every_event_once(
    before: bytes | None, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    points = faults.trace("append", fresh(folder, before))
    assert {"openat", "fdatasync", "close"} <= {point.name for point in points}
    for point in points:
        code = faults.disturb("append", fresh(folder, before), point, "signal=SIGKILL:when={when}")
        assert code == -9
        eventlog.append(folder / "events.jsonl", EVENTS)
        assert seqs(folder / "events.jsonl") == [1, 2, 3, 4, 5], point
        assert len(torn(folder / "events.jsonl")) <= 1, point


@pytest.mark.parametrize("before", [BEFORE["no log"], BEFORE["torn"], BEFORE["all there"]], ids=str)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_failure_is_told_and_the_same_again_gives_every_event_once(
    before: bytes | None, error: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    for point in faults.trace("append", fresh(folder, before)):
        if point.name in {"openat", "write", "fdatasync", "fsync", "pread64", "close"}:
            code = faults.disturb("append", fresh(folder, before), point, f"error={error}:when={{when}}")
            assert code == 3, f"{point} failed and success was reported"
            assert faults.run("append", folder) == 0
            assert seqs(folder / "events.jsonl") == [1, 2, 3, 4, 5], point


def test_after_a_failed_sync_the_lines_are_written_and_synced_anew(tmp_path: Path) -> None:
    """The kernel drops the pages of a failed sync and then calls the file clean: to sync again is to lie."""
    folder = tmp_path / "folder"
    (sync,) = [p for p in faults.trace("append", fresh(folder, BEFORE["some"])) if p.name == "fdatasync"]
    log, trace = folder / "events.jsonl", folder.with_name("trace")
    command = faults.command("append again", fresh(folder, BEFORE["some"]))
    inject = f"inject=fdatasync:error=EIO:when={sync.when}"
    faults.subprocess.run([*faults.strace("-o", str(trace), "-e", inject), *command], check=True, timeout=60)
    calls = [point.name for point in faults.points(trace)]
    assert [name for name in calls if name in {"write", "fdatasync", "ftruncate"}] == [
        *("write", "fdatasync", "ftruncate"),
        *("write", "fdatasync"),
    ]
    assert seqs(log) == [1, 2, 3, 4, 5]


def test_lines_found_there_are_synced_all_the_same(tmp_path: Path) -> None:
    """Whoever wrote them may have died before they reached the disk."""
    calls = [point.name for point in faults.trace("append", fresh(tmp_path / "folder", BEFORE["all there"]))]
    assert "fdatasync" in calls
    assert "fsync" in calls, "and the folder may not know the file yet"
    assert "write" not in calls


def test_control_blind_appending_is_caught(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    ends = []
    for point in faults.trace("glued", fresh(folder, BEFORE["torn"])):
        faults.disturb("glued", fresh(folder, BEFORE["torn"]), point, "signal=SIGKILL:when={when}")
        faults.run("glued", folder)
        ends.append(seqs(folder / "events.jsonl"))
    assert [1, 2, 3, 4, 5] not in ends


# --- reading on -------------------------------------------------------------------------------------------


def read_all(path: Path, size_max: int) -> list[dict[str, Any]]:
    found, offset = [], 0
    while True:
        events, after = eventlog.read_from(path, offset, size_max)
        assert after >= offset
        if after == offset:
            assert events == []
            return found
        found += events
        offset = after


def test_a_missing_log_is_empty(log: Path) -> None:
    assert eventlog.read_from(log, 7) == ([], 7)
    assert list(eventlog.read(log)) == []


def test_half_a_line_is_left_for_the_next_time(log: Path) -> None:
    whole = b"".join(LINES)
    for cut in range(len(whole) + 1):
        log.write_bytes(whole[:cut])
        events, offset = eventlog.read_from(log, 0)
        assert events == EVENTS[: whole[:cut].count(b"\n")]
        assert offset == whole[:cut].rfind(b"\n") + 1
        log.write_bytes(whole)
        assert events + eventlog.read_from(log, offset)[0] == EVENTS


@pytest.mark.parametrize("size_max", [40, 64, 100, 1000])
def test_little_by_little(size_max: int, log: Path) -> None:
    log.write_bytes(b"".join(LINES))
    assert read_all(log, size_max) == EVENTS


def test_a_huge_line_is_passed_over_and_holds_nothing_up(log: Path) -> None:
    log.write_bytes(LINES[0] + b'{"junk": "' + b"x" * 10_000 + b'"}\n' + LINES[1])
    assert read_all(log, 200) == EVENTS[:2]


JUNK = [b"", b"null", b"7", b"[1]", b"\xff\xfe\x00", b"{", b'"', b"[" * 50_000, b"1" * 9000, b'{"a":' * 2000]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk[:10]))
def test_a_damaged_line_is_passed_over(junk: bytes, log: Path) -> None:
    log.write_bytes(LINES[0] + junk + b"\n" + LINES[1])
    assert eventlog.read_from(log, 0)[0] == EVENTS[:2]
    assert seqs(log) == [1, 2]
    assert [line.line for line in torn(log)] == [2]


def test_behind_the_end_there_is_nothing(log: Path) -> None:
    log.write_bytes(LINES[0])
    assert eventlog.read_from(log, 1000) == ([], 1000)


def test_numbers_that_json_lacks_are_read_as_words(log: Path) -> None:
    log.write_bytes(b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1e3}\n')
    assert eventlog.read_from(log, 0)[0] == [{"a": "NaN", "b": "-Infinity", "c": "Infinity", "d": 1000.0}]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_json_text_is_one_line_and_comes_back(value: dict[str, Any]) -> None:
    text = jsontext.encode(value)
    assert len(text.decode().splitlines()) == 1
    assert jsontext.decode(text) == value


@given(st.binary(max_size=50))
def test_decoding_raises_only_value_errors(data: bytes) -> None:
    try:
        jsontext.decode(data)
    except ValueError:
        return
