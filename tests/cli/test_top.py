"""`runner top`: all jobs at a glance, once and live, and what a look costs."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import staging
from runner.cli.board import _TURNS, Board
from runner.cli.top import metric, pause_s, summary, table
from runner.storage import durable
from runner.storage.layout import Home
from runner.supervisor import process
from tests.cli.conftest import ENVIRON
from tests.waiting import wait_for

DATA = Path(__file__).parents[1] / "data"
CLEAN_UP = b"\x1b[?1049l"  # the terminal's own screen is back


def put(home: Home, name: str, state: str, **fields: object) -> None:
    """Put a job's record there, or another in its place; the old one's form is what there is to go by."""
    record = json.loads((DATA / "job.v1.json").read_text())
    path = home.job(name).record
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.publish(path, json.dumps({**record, "name": name, "state": state, **fields}).encode())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def names(board: Board, rows_max: int | None = None) -> list[str]:
    return [job["name"] for job in board.look(rows_max).jobs]


def test_what_runs_is_first_then_what_waits_then_what_ended_last(home: Home, tmp_path: Path) -> None:
    for second, name in enumerate(("early", "late")):
        put(home, name, "succeeded", finished_at=f"2026-01-02T00:00:0{second}.000+00:00")
    for name in ("lr10", "lr9"):
        put(home, name, "running")
    for state in ("paused", "queued", "backoff"):
        put(home, state, state)
    put(home, "torn", "flying")
    staging.submit(home, _script(tmp_path), "new")
    board = Board(home)
    order = ["lr9", "lr10", "backoff", "torn", "new", "queued", "paused", "late", "early"]
    assert names(board) == order
    view = board.look(2)
    assert ([job["name"] for job in view.jobs], view.more) == (order[:2], 7)
    assert view.states == {
        "running": 2,
        "backoff": 1,
        "unreadable": 1,
        "queued": 2,
        "paused": 1,
        "succeeded": 2,
    }
    assert summary(view).startswith("2 queued, 2 running, 1 backoff, 1 paused, 2 succeeded, 1 unreadable; ")
    assert "NO SUPERVISOR: runner supervise; " in summary(view)
    assert summary(view).endswith(" free")


def _script(folder: Path) -> Path:
    (folder / "new").mkdir()
    (folder / "new" / "train.py").write_text("")
    return folder / "new"


def test_a_row_tells_what_is_known_and_a_column_of_nothing_is_left_out(home: Home) -> None:
    put(home, "digits", "running", checkpoint_at="2026-01-01T00:00:00+00:00", attempts=[])
    bare, _ = table(Board(home).look())
    assert bare == ["NAME", "STATE", "STEP", "SAVED", "GOODPUT"]
    progress = {"attempt": 3, "step": 160, "epoch": 1, "epochs": 4, "steps_per_s": 12.6, "rss_bytes": 2**30}
    progress["metrics"] = {"accuracy": 0.5, "loss": 0.25}
    home.job("digits").progress.write_text(json.dumps(progress))
    causes = {"crashed": 2, "hung": 1}
    put(home, "digits", "running", restarts_by_cause=causes, attempts=[], ledger={"waiting_s": 75})
    head, (row,) = table(Board(home).look())
    told = dict(zip(head, row, strict=True))
    age = told.pop("SAVED")
    assert " h " in age
    assert told == {
        "NAME": "digits",
        "STATE": "running",
        "STEP": "160",
        "EPOCH": "2/4",
        "RATE": "13/s",
        "METRIC": "loss 0.25",
        "RESTARTS": "crashed 2, hung 1",
        "MEMORY": "1.0 GiB",
        "WAITED": "1 min 15 s",
        "GOODPUT": "100 %",
    }


@pytest.mark.parametrize(
    ("ledger", "told"),
    [
        ({}, "100 %"),
        ({"useful_s": 99.8, "lost_s": 0.2, "waiting_s": 500}, "100 %"),
        (
            {"useful_s": 90, "lost_s": 6, "down_s": 3, "checkpoint_s": 1},
            "90 % (lost 6, down 3, checkpoint 1)",
        ),
        ({"down_s": 10}, "0 % (down 100)"),
    ],
)
def test_where_the_time_went_is_told_as_far_as_it_matters(
    home: Home, ledger: dict[str, float], told: str
) -> None:
    put(home, "digits", "paused", ledger=ledger)
    head, (row,) = table(Board(home).look())
    assert row[head.index("GOODPUT")] == told


def test_what_runs_is_timed_by_a_clock_that_nobody_sets(home: Home) -> None:
    attempt = {"number": 3, "started_at": "2026-01-01T00:00:00+00:00", "boot": process.boot_id()}
    put(home, "digits", "running", ledger={}, attempts=[{**attempt, "began_s": time.monotonic() - 100}])
    assert 100 <= Board(home).look().jobs[0]["goodput"]["useful_s"] < 200


@pytest.mark.parametrize(
    ("metrics", "best", "shown"),
    [
        ({"loss": 1.0, "auc": 0.5}, "auc", "auc 0.5"),
        ({"loss": 1.0, "val_loss": 2.0}, None, "val_loss 2"),
        ({"auc": 0.5, "loss": None}, "gone", "loss not finite"),
        ({"auc": 0.5}, None, "auc 0.5"),
        ({}, "auc", ""),
    ],
)
def test_one_metric_is_shown(metrics: dict[str, float], best: str | None, shown: str) -> None:
    assert metric({"metrics": metrics, "best": best and {"metric": best}}) == shown


# --- what a look costs ------------------------------------------------------------------------------------


def test_looking_again_reads_only_what_has_changed(home: Home) -> None:
    for number in range(40):
        put(home, f"done{number}", "succeeded", finished_at="2026-01-02T00:00:00+00:00")
    put(home, "waits", "queued")
    opened: list[str] = []
    listening = [True]

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open" and str(arguments[0]).endswith("job.json"):
            opened.append(Path(str(arguments[0])).parent.name)

    sys.addaudithook(listen)
    try:
        board = Board(home)
        board.look(1)
        assert len(opened) >= 41, "the first time all are read"
        opened.clear()
        for _ in range(_TURNS):
            assert names(board, 1) == ["waits"]
        assert set(opened) == {"waits"}, "of those that are not shown none"
        put(home, "waits", "running")
        assert board.look(1).states["running"] == 1, "what has not ended is seen at once"
        put(home, "done7", "queued")
        shutil.rmtree(home.job("done8").dir)
        put(home, "come", "queued")
        states = board.look(1).states
        assert states["succeeded"] + states["queued"] == 40
        assert [board.look(1) for _ in range(_TURNS)][-1].states == {
            "running": 1,
            "queued": 2,
            "succeeded": 38,
        }
        assert names(board, 3) == ["waits", "come", "done7"]
    finally:
        listening.clear()


def test_looking_takes_a_fiftieth_of_a_processor_and_never_long_to_come() -> None:
    assert pause_s(0.001) == 1.0
    assert pause_s(0.05) == pytest.approx(2.5)
    assert pause_s(1.4) == 5.0, "the first look at ten thousand jobs"


# --- the command ------------------------------------------------------------------------------------------


def test_one_table_where_there_is_no_terminal(runner) -> None:
    assert runner("top").out.startswith("no jobs; NO SUPERVISOR: runner supervise; ")
    for number in range(3):
        put(runner.home, f"lr{number}", "queued")
    lines = runner("top", "--rows", "2").out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["NAME", "lr0", "lr1"]
    assert lines[-1] == "and 1 more"
    found = runner("top", "--json").json
    assert [job["name"] for job in found["jobs"]] == ["lr0", "lr1", "lr2"]
    assert (found["states"], found["more"]) == ({"queued": 3}, 0)
    assert found["supervisor"] == {"serving": False, "private": False, "pid": None}
    assert found["disk_free_bytes"] > 0
    assert {"goodput", "restarts_by_cause", "checkpoint_at"} <= found["jobs"][0].keys()


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    view = Board(Home(tmp_path / "nowhere")).look()
    assert (view.jobs, view.disk_free_bytes) == ([], None)
    assert summary(view) == "no jobs; NO SUPERVISOR: runner supervise"
    assert not (tmp_path / "nowhere").exists()


class Screen:
    """A terminal of our own with `runner top` on it."""

    def __init__(self, argv: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        environ = ENVIRON | {"TERM": "xterm", "COLUMNS": "120", "LINES": "8"}
        self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
        os.close(theirs)
        os.set_blocking(self._ours, False)
        self.shown = b""

    def shows(self, text: bytes) -> bool:
        with contextlib.suppress(OSError):  # nothing there, or the other end is gone
            self.shown += os.read(self._ours, 1 << 20)
        return text in self.shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def screen(runner) -> Iterator[Screen]:
    for number in range(30):
        put(runner.home, f"lr{number}", "queued")
    screen = Screen(runner.argv("top"))
    try:
        yield screen
    finally:
        screen.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + 15)])
def test_on_a_terminal_it_follows_until_it_is_told_to_end(runner, screen, number, code) -> None:
    wait_for(lambda: screen.shows(b"and 26 more"), "as many jobs as the screen has room for")
    assert b"lr3" in screen.shown
    assert b"lr4" not in screen.shown
    put(runner.home, "fast", "running")
    wait_for(lambda: screen.shows(b"fast"), "the job that has begun to run")
    assert screen.process.poll() is None
    screen.process.send_signal(number)
    assert screen.process.wait(120) == code
    wait_for(lambda: screen.shows(CLEAN_UP), "the terminal's own screen")
    assert b"Traceback" not in screen.shown


def test_the_supervisor_is_told(served) -> None:
    (daemon,) = served.started
    found = served("top", "--json").json
    assert found["supervisor"] == {"serving": True, "private": False, "pid": daemon.pid}
    assert f"no jobs; supervisor runs (pid {daemon.pid})" in served("top").out
