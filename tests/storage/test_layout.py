"""Where everything lies: names that never meet, the choice of the home, what is listed and what is not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.storage.layout import Home, JobPaths, attempt_numbers, find_home, is_job_name, printable_name

# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "7", "digits", "A.b_c-d", "x" * 64, "a..b"])
def test_job_names(name: str) -> None:
    assert is_job_name(name)
    assert printable_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".a",
        "-a",
        "_a",
        "a b",
        "a/b",
        "a\n",
        "é",
        "%20",
        "x" * 65,
        "a.tmp",
        "..",
        "~",
        "a\x00",
        "\udcff",
        "a%",
    ],
)
def test_no_job_names(name: str) -> None:
    assert not is_job_name(name)


#: Names of folders as the kernel allows them: bytes without a slash and a zero.
FOLDERS = (
    st.one_of(
        st.binary(min_size=1, max_size=255),
        st.text("ab%~.-_20 é", min_size=1, max_size=80).map(os.fsencode),
        st.text("x2", min_size=60, max_size=255).map(os.fsencode),
    )
    .filter(lambda raw: b"/" not in raw and b"\0" not in raw and len(raw) <= 255)
    .map(os.fsdecode)
)


@given(FOLDERS)
@example("x" * 65)
@example("-a")
@example("- a")
@example("a.tmp")
@example("é" * 127)
def test_a_printed_name_is_a_plain_file_name(folder: str) -> None:
    printed = printable_name(folder)
    assert re.fullmatch(r"[A-Za-z0-9%][A-Za-z0-9._%~-]*", printed)
    assert len(printed) <= 200
    assert not printed.endswith(".tmp")
    assert is_job_name(printed) == is_job_name(folder)


@given(FOLDERS)
@example(" " + "x" * 70)
@example("20" + "x" * 70)
def test_a_printed_name_tells_the_folder_unless_it_had_to_be_cut(folder: str) -> None:
    printed = printable_name(folder)
    if "~" not in printed:
        assert unquote_to_bytes(printed) == os.fsencode(folder)


@given(FOLDERS, FOLDERS)
@example(" " + "x" * 70, "20" + "x" * 70)
@example("é" * 100, "é" * 101)
@example("é" * 100 + "a", "é" * 100 + "b")
@example("%41", "A")
@example("a.tmp", "a%2Etmp")
def test_two_folders_never_share_a_name(one: str, other: str) -> None:
    assert (printable_name(one) == printable_name(other)) == (one == other)


@given(st.lists(FOLDERS, unique=True, max_size=30), FOLDERS)
def test_folders_with_a_common_beginning_never_share_a_name(ends: list[str], start: str) -> None:
    folders = {start[:100] + end for end in ends}
    assert len({printable_name(folder) for folder in folders}) == len(folders)


# --- the home ---------------------------------------------------------------------------------------------


def a_home(folder: Path) -> Path:
    (folder / "jobs").mkdir(parents=True)
    (folder / "state").mkdir()
    return folder


def test_the_home_is_chosen_in_the_order_of_the_contract(tmp_path: Path) -> None:
    near = a_home(tmp_path / "near")
    inside = near / "jobs" / "digits"
    inside.mkdir()
    environ = {"RUNNER_HOME": str(tmp_path / "environ"), "XDG_STATE_HOME": str(tmp_path / "xdg")}
    assert find_home(tmp_path / "said", environ, inside) == tmp_path / "said"
    assert find_home(None, environ, inside) == tmp_path / "environ"
    del environ["RUNNER_HOME"]
    assert find_home(None, environ, inside) == near
    assert find_home(None, environ, near) == near
    assert find_home(None, environ, tmp_path) == tmp_path / "xdg" / "training-runner"
    assert find_home(None, {}, tmp_path) == Path.home() / ".local" / "state" / "training-runner"


def test_the_nearest_home_wins_and_half_a_home_is_none(tmp_path: Path) -> None:
    outer = a_home(tmp_path)
    inner = tmp_path / "a" / "b"
    (inner / "jobs").mkdir(parents=True)
    assert find_home(None, {}, inner) == outer
    (inner / "state").mkdir()
    assert find_home(None, {}, inner) == inner


def test_an_empty_setting_is_none(tmp_path: Path) -> None:
    assert find_home(None, {"RUNNER_HOME": ""}, a_home(tmp_path)) == tmp_path


def test_a_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_home(Path("here"), {}, tmp_path) == tmp_path / "here"
    assert find_home(None, {"RUNNER_HOME": "here"}, tmp_path) == tmp_path / "here"


# --- what is listed ---------------------------------------------------------------------------------------


def test_submitted_folders(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert list(home.submitted()) == []
    home.create()
    for name in ("b", "a", "sp ace", ".hidden", "staged.tmp"):
        (home.jobs / name).mkdir()
    (home.jobs / "file").touch()
    assert list(home.submitted()) == ["a", "b", "sp ace"]
    assert list(home.submitted_as("sp%20ace")) == [home.jobs / "sp ace"]
    assert list(home.submitted_as("nobody")) == []


def test_recorded_jobs(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    (home.state / ".hidden").mkdir()
    (home.state / ".hidden" / "job.json").touch()
    for name in ("b", "sp ace", "empty"):
        home.job(name).dir.mkdir()
        if name != "empty":
            home.job(name).record.touch()
    (home.job("empty").dir / "other").touch()
    home.job("dangling").dir.mkdir()
    home.job("dangling").record.symlink_to("nowhere")
    assert list(home.recorded()) == ["b", "dangling", "sp%20ace"]


def test_every_path_lies_in_the_jobs_own_folder(tmp_path: Path) -> None:
    job = Home(tmp_path).job("../../etc/passwd")
    assert job.dir.parent == tmp_path / "state"


def test_attempts_are_numbered_from_1_and_sorted_by_number(tmp_path: Path) -> None:
    job = JobPaths(tmp_path)
    assert attempt_numbers(job.attempts) == []
    for number in (1, 2, 10_000, 9_999):
        job.attempt(number).dir.mkdir(parents=True)
    (job.attempts / "junk").mkdir()
    assert job.attempt(1).dir.name == "0001"
    assert attempt_numbers(job.attempts) == [1, 2, 9_999, 10_000]


def test_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    job = JobPaths(tmp_path)
    assert job.list_checkpoints() == []
    job.checkpoints.mkdir()
    for step in (200, 5, 1_000_000):
        job.checkpoint(step).touch()
    (job.checkpoints / ".step-000000000300.weights.h5.tmp").touch()
    (job.checkpoints / "mine.weights.h5").touch()
    assert [step for step, _ in job.list_checkpoints()] == [5, 200, 1_000_000]
    assert job.checkpoint(5).name == "step-000000000005.weights.h5"
