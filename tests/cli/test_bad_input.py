"""What people and accidents put into jobs/: each ends in one clear line, and the daemon goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from runner.cli import facts, ls
from runner.core.job import Job, State
from runner.storage import records
from runner.storage.layout import printable_name
from runner.supervisor import intake
from runner.supervisor.book import moment
from tests.waiting import wait_for


def _empty(folder: Path) -> None:
    """Nothing in it."""


def _toml_fifo(folder: Path) -> None:
    os.mkfifo(folder / "job.toml")


def _toml_folder(folder: Path) -> None:
    (folder / "job.toml").mkdir()


def _toml_binary(folder: Path) -> None:
    (folder / "job.toml").write_bytes(bytes(range(256)))


def _toml_endless(folder: Path) -> None:
    (folder / "job.toml").symlink_to("/dev/zero")


def _toml_huge(folder: Path) -> None:
    with (folder / "job.toml").open("wb") as file:
        file.truncate(1 << 40)


def _entry_missing(folder: Path) -> None:
    (folder / "job.toml").write_text('entry = "trian.py"')


def _entry_device(folder: Path) -> None:
    (folder / "train.py").symlink_to("/dev/zero")


def _program_missing(folder: Path) -> None:
    (folder / "job.toml").write_text('command = ["./no"]')


CASES = {
    "empty": (_empty, "there is no train.py"),
    "toml-fifo": (_toml_fifo, "job.toml: must be a regular file"),
    "toml-folder": (_toml_folder, "job.toml: must be a regular file"),
    "toml-binary": (_toml_binary, "job.toml:"),
    "toml-endless": (_toml_endless, "job.toml: is a link that leads out"),
    "toml-huge": (_toml_huge, "job.toml: is larger than 1 MiB"),
    "entry-missing": (_entry_missing, 'job.toml:1: entry names "trian.py": No such file'),
    "entry-device": (_entry_device, "the entry train.py must stay inside"),
    "program-missing": (_program_missing, 'job.toml:1: command names "./no": No such file'),
    "--help": (_empty, "not a name for a job"),
    "-rf": (_empty, "not a name for a job"),
    "a b": (_empty, "not a name for a job"),
    "x" * 200: (_empty, "not a name for a job"),
    "new\nline": (_empty, "not a name for a job"),
    os.fsdecode(b"caf\xe9"): (_empty, "not a name for a job"),
    "état": (_empty, "not a name for a job"),
}


def test_every_bad_folder_is_rejected_with_its_reason(served):
    for name, (spoil, _) in CASES.items():
        staged = served.home.jobs / ".staged"
        staged.mkdir()
        spoil(staged)
        staged.rename(served.home.jobs / name)
    (served.home.jobs / "a-link").symlink_to("/etc")
    (served.home.jobs / "a-file").write_text("")
    expected = {printable_name(name): reason for name, (_, reason) in CASES.items()}
    expected["a-link"] = "a symbolic link"
    for name, reason in expected.items():
        job = served.until(name, "rejected")
        assert reason in job["reason"], name
        assert job["reason"].isprintable(), "one line"
    assert served.started[0].poll() is None, "the daemon goes on"
    served("submit", str(served.folder("good")))
    assert served("wait", "good").code == 0
    table = served("ls")
    assert table.code == 0
    assert len(table.out.splitlines()) == len(expected) + 2


def test_a_job_removed_while_it_runs(served):
    served("submit", str(served.folder("gone", "100000", "0.01", toml='[restart]\nbackoff = "50ms"\n')))
    wait_for(lambda: served.step("gone") > 5, "some steps")
    pid = served.pid("gone")
    served.home.folder("gone").rename(served.root / "away")  # at once, whatever the worker writes meanwhile
    os.kill(pid, 9)
    job = served.until("gone", "failed")
    assert str(served.home.folder("gone")) in job["reason"], job["reason"]
    assert served("retry", "gone").complaint() == "jobs/gone: the folder is gone; submit it again"
    assert served("rm", "gone").code == 0
    assert served.started[0].poll() is None


def test_the_state_of_a_job_removed_while_it_runs(served):
    served("submit", str(served.folder("gone", "100000", "0.01")))
    wait_for(lambda: served.step("gone") > 5, "some steps")
    shutil.rmtree(served.home.job("gone").dir, ignore_errors=True)
    served("submit", str(served.folder("good")))
    assert served("wait", "good").code == 0
    assert served.started[0].poll() is None
    served.limits["daemon.TAKE_UP_S"] = 1.0  # it may be left until the attempt has ended
    assert served("cancel", "gone").code in {0, 5}


def test_of_two_jobs_of_one_name_one_is_taken(runner):
    folders = [runner.folder("digits")]
    other = runner.root / "sub"
    other.mkdir()
    shutil.copytree(folders[0], other / "digits")
    both = [
        subprocess.Popen(runner.argv("submit", str(folder)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for folder in (folders[0], other / "digits")
    ]
    complaints = [process.communicate()[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 5]
    assert sum("there is a job of that name already" in text for text in complaints) == 1
    assert facts.gather(runner.home, "digits")["state"] == "queued"
    assert [path.name for path in runner.home.jobs.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(("state", "part"), [(State.QUEUED, "waiting_s"), (State.BACKOFF, "down_s")])
def test_a_clock_that_was_never_set_makes_no_wait_of_decades(runner, state, part):
    runner("submit", str(runner.folder("digits")))
    job = intake.take_up(runner.home, "digits", 1, moment())
    job = replace(job, state=state, since="1970-01-01T00:00:00.000+00:00")
    records.save_job(runner.home.job("digits").record, job)
    assert facts.gather(runner.home, "digits")["goodput"][part] < 3600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"verb": "stop"}', '{"verb": 1, "name": []}', "\0" * 9]
)
def test_a_junk_request_does_not_stop_the_daemon(served, text):
    served("submit", str(served.folder("digits", "50", "0.01")))
    served.home.requests.mkdir(exist_ok=True)
    junk = served.home.requests / "0.json"
    junk.write_text(text)
    (served.home.requests / "1.json").write_text('{"version": 1, "verb": "dance", "name": "digits"}')
    wait_for(lambda: not junk.exists(), "the junk to be dropped")
    assert served("wait", "digits").code == 0
    assert served.started[0].poll() is None


@pytest.mark.parametrize(
    "text",
    [
        '{"attempt": 1, "epochs": "x", "step": 1, "metrics": [1]}',
        '{"attempt": 1, "epochs": [3], "step": "many", "epoch": {}, "metrics": {"loss": "NaN", "a": [1]}}',
        '{"attempt": 1, "epochs": 2, "steps_per_s": "fast", "rss_bytes": -1, "phase": 7, "metrics": "none"}',
        '{"attempt": 1, "step": 9e, "steps_per_s": 9e, "metrics": {"m": 9e}}'.replace("9e", "9" * 400),
        '{"attempt": 1, "step": true, "epoch": 1.5, "steps_per_s": Infinity}',
    ],
)
def test_junk_in_progress_does_not_hide_the_jobs(runner, text):
    runner("submit", str(runner.folder("good")))
    record = runner.home.job("digits").record
    records.save_job(record, Job("digits", State.RUNNING, "2026-01-01T00:00:00+00:00", 1, attempt=1))
    runner.home.job("digits").progress.write_text(text)
    assert [job["name"] for job in runner("ls", "--json").json] == ["digits", "good"]
    assert runner("ls").code == 0
    assert runner("status", "digits").code == 0
    job = runner.job("digits")
    assert all(job[key] is None or isinstance(job[key], int) for key in ("epochs", "step", "rss_bytes"))
    assert all(value is None for value in job["metrics"].values())


def test_what_is_sound_in_a_progress_counts(runner):
    record = runner.home.job("digits").record
    records.save_job(record, Job("digits", State.RUNNING, "2026-01-01T00:00:00+00:00", 1, attempt=1))
    runner.home.job("digits").progress.write_text(
        '{"attempt": 1, "step": 7, "epochs": "x", "steps_per_s": 2, "metrics": {"loss": 0.5, "bad": "NaN"}}'
    )
    job = runner.job("digits")
    assert (job["step"], job["epochs"], job["steps_per_s"]) == (7, None, 2)
    assert job["metrics"] == {"loss": 0.5, "bad": None}


def test_an_entry_that_cannot_be_looked_at_does_not_hide_the_jobs(runner):
    runner("submit", str(runner.folder("good")))
    (runner.home.jobs / "endless").symlink_to("x" * 300)
    assert "good" in [job["name"] for job in runner("ls", "--json").json]
    assert runner("ls").code == 0
    assert runner("status", "good").code == 0


def test_ls_survives_a_job_whose_state_the_disk_refuses(runner, monkeypatch):
    runner("submit", str(runner.folder("good")))
    monkeypatch.setattr(facts, "gather", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert ls.look(runner.home, "good")["state"] == "unreadable"
