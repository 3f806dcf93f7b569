"""Records: what is damaged is refused by name, never taken for something else."""

from __future__ import annotations

import json
import math
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core.events import Ended
from runner.core.job import RECORD_VERSION, Job, Outcome, State
from runner.core.spec import CheckpointSpec, JobSpec, LimitsSpec
from runner.core.table import decide
from runner.errors import UnreadableRecordError
from runner.storage import records
from tests.core.life import ADMITTED, BACKOFF_OVER, KILLED, Life, at, in_state, queued, saved

DATA = Path(__file__).parents[1] / "data"


def rich_job() -> Job:
    """A job with something in every field."""
    best = {"event": "best", "path": "best/b.h5", "step": 80, "epoch": 1, "metric": "val_loss", "value": 0.25}
    said = {"event": "classified", "exact": True, "reason": "arrays"}
    life = Life(queued(JobSpec(args=("--größe", "1"), env={"SEED": "7"}), source="other@1200"))
    life.all([ADMITTED, saved(150, stall_s=0.5), replace(saved(200), facts=(best, said)), KILLED])
    life.all([KILLED, BACKOFF_OVER, ADMITTED, Ended(exit_code=1, max_rss_bytes=1 << 30)])
    return replace(life.job, reason='said "no"\n')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "digits" / "job.json"


@pytest.mark.parametrize(
    "job", [*(in_state(state).job for state in State), rich_job()], ids=lambda j: j.state
)
def test_a_record_comes_back_as_it_went_in(job: Job, path: Path) -> None:
    records.save_job(path, job)
    assert records.load_job(path) == job
    assert os.listdir(path.parent) == ["job.json"]  # noqa: PTH208 - hidden files too


def test_a_record_is_json_that_people_and_strict_readers_take(path: Path) -> None:
    records.save_job(path, replace(rich_job(), spec=JobSpec(limits=LimitsSpec(hang_s=math.inf))))
    text = path.read_text()
    value = json.loads(text, parse_constant=pytest.fail)
    assert value["state"] == "backoff"
    assert text.startswith('{\n "name": "digits",\n "state": "backoff",\n')
    assert re.search(r',\n "sha256": "[0-9a-f]{64}"\n}\n$', text)


@pytest.mark.parametrize("field", ["hang_s", "startup_s", "wall_s"])
def test_a_limit_of_never_stays_so(field: str, path: Path) -> None:
    job = queued(JobSpec(limits=LimitsSpec(**{field: math.inf})))
    records.save_job(path, job)
    assert records.load_job(path) == job


def test_half_a_character_does_not_stop_the_supervisor(path: Path) -> None:
    records.save_job(path, replace(queued(), reason="cannot start \udcff", outbox=({"path": "\udcff"},)))
    assert records.load_job(path).reason == "cannot start ?"


def test_the_frozen_record_of_version_1_is_readable_for_ever() -> None:
    job = records.load_job(DATA / "job.v1.json")
    assert (job.name, job.state, job.version, job.attempt) == ("digits", State.BACKOFF, 1, 3)
    assert job.spec.args == ("--größe", "1")
    assert job.spec.checkpoint == CheckpointSpec()
    assert job.spec.limits.hang_s == math.inf
    assert job.checkpoint is not None
    assert job.checkpoint.step == 150
    assert job.best is not None
    assert job.best.value == 0.25
    assert [attempt.number for attempt in job.attempts] == [1, 2, 3]
    assert job.attempts[-1].max_rss_bytes == 1 << 30
    assert [line["event"] for line in job.outbox] == ["ended", "backoff"]


def test_the_frozen_record_goes_on_with_what_newer_ones_count(path: Path) -> None:
    job = records.load_job(DATA / "job.v1.json")
    for second, event in ((9.0, BACKOFF_OVER), (11.0, ADMITTED)):
        job = decide(job, event, at(second)).job
    records.save_job(path, job)
    job = records.load_job(path)
    assert (job.restarts, job.restarts_by_cause) == (3, {Outcome.CRASHED: 2, Outcome.FAILED: 1})
    assert (job.ledger.waiting_s, job.ledger.down_s) == (2.0, 2.0 + 1.0)


# --- damage -----------------------------------------------------------------------------------------------


def refused(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with pytest.raises(UnreadableRecordError) as caught:
        records.load_job(path)
    assert str(path) in str(caught.value)
    assert "runner rm" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == data, "and it is left for the person to look at"
    return str(caught.value)


def test_a_record_cut_off_anywhere_is_refused(path: Path) -> None:
    records.save_job(path, rich_job())
    whole = path.read_bytes()
    for length in range(len(whole)):
        refused(path, whole[:length])


def test_a_record_with_any_bit_flipped_is_refused(path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    records.save_job(path, rich_job())
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        refused(path, bytes(flipped))


@settings(max_examples=50)
@given(st.data())
def test_a_record_with_a_stretch_replaced_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("home") / "job.json"
    records.save_job(path, rich_job())
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 600)))
    damaged = whole[:start] + data.draw(st.binary(max_size=600)) + whole[end:]
    if damaged != whole:
        refused(path, damaged)


def test_zeros_and_nothing_are_refused(path: Path) -> None:
    assert "not JSON" in refused(path, b"")
    assert "not JSON" in refused(path, bytes(4096))


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"[" * 100_000,
        b'{"version": NaN}',
        b"1" * 10_000,
        b"\xff",
        b'{"version": "2"}',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_other_json_is_refused(data: bytes, path: Path) -> None:
    refused(path, data)


def sealed(value: dict[str, Any]) -> bytes:
    """A record as ours, of whatever content."""
    body = records.jsontext.encode(value, indent=1).removesuffix(b"\n}")
    return body + records._SEAL + records._digest(body) + records._END


def content() -> dict[str, Any]:
    value = json.loads((DATA / "job.v1.json").read_bytes())
    del value["sha256"]
    return dict(value)


def test_the_seal_of_these_tests_is_that_of_the_records(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(sealed(content()))
    assert records.load_job(path) == records.load_job(DATA / "job.v1.json")


def test_a_newer_record_is_refused_even_where_it_parses(path: Path) -> None:
    newer = {**content(), "version": RECORD_VERSION + 1}
    assert f"written by a newer runner (record version {RECORD_VERSION + 1})" in refused(path, sealed(newer))
    assert "written by a newer runner" in refused(path, json.dumps({**newer, "state": "dreaming"}).encode())


def test_a_wrong_value_is_named(path: Path) -> None:
    assert "state: " in refused(path, sealed({**content(), "state": "dreaming"}))
    wrong = content()
    wrong["spec"]["restart"]["budget"] = "many"
    assert "spec.restart.budget: " in refused(path, sealed(wrong))


def test_an_edited_record_is_refused_and_told_so(path: Path) -> None:
    edited = (DATA / "job.v1.json").read_bytes().replace(b'"attempt": 3', b'"attempt": 4', 1)
    assert "does not match the sha256 at its end" in refused(path, edited)


def test_a_missing_record_is_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        records.load_job(path)


def test_what_is_no_file_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"x" * 100)
    for name in ("fifo", "folder", "large"):
        with pytest.raises(UnreadableRecordError, match=name):
            records.read_bounded(tmp_path / name, 99)


# --- small JSON files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("durably", [True, False])
def test_small_files(durably: bool, tmp_path: Path) -> None:
    value = {"version": 1, "text": "é", "list": [1, 2.5, None], "rate": math.inf}
    records.save_json(tmp_path / "a.json", value, durably=durably)
    assert records.load_json(tmp_path / "a.json") == {**value, "rate": "Infinity"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, bytes(10)], ids=str)
def test_small_files_that_are_no_json_object_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UnreadableRecordError, match=r"a\.json: "):
        records.load_json(tmp_path / "a.json")
