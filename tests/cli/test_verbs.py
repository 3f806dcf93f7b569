"""Each verb on a home without a supervisor: what it says, and its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

from runner import __version__
from runner.cli import VERBS
from runner.storage import requests


def test_help_names_every_verb():
    done = subprocess.run([sys.executable, "-m", "runner.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb):
    assert _plain(verb, "--help").returncode == 0


def _plain(*words):
    return subprocess.run([sys.executable, "-m", "runner.cli", *words], capture_output=True, text=True)


def test_version():
    assert _plain("version").stdout == f"training-runner {__version__}\n"
    assert json.loads(_plain("version", "--json").stdout)["version"] == __version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    done = _plain("completion", shell)
    assert done.returncode == 0
    assert "_RUNNER_COMPLETE" in done.stdout


def test_names_complete_in_the_shell(runner):
    runner("submit", str(runner.folder("digits")))
    runner("submit", str(runner.folder("pima")))
    done = subprocess.run(
        [sys.executable, "-m", "runner.cli"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "_RUNNER_COMPLETE": "complete_bash",
            "COMP_WORDS": f"runner status --home {runner.home.root} d",
            "COMP_CWORD": "4",
        },
    )
    assert done.stdout.split() == ["digits"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stauts", "x"], "Did you mean 'status'?"),
        (["status"], "Missing argument"),
        (["status", "x", "--jsom"], "--jsom"),
        (["logs", "x", "--attempt", "0"], "--attempt"),
        (["logs", "x", "--attempt", "many"], "--attempt"),
        (["export", "x"], "Missing argument"),
        (["supervise", "--on-term", "maybe"], "--on-term"),
        (["supervise", "--isolate", "--home", "/tmp/runner-home"], "--isolate "),
        (["drill", ".", "--kills", "-1"], "--kills"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(words, expected):
    done = _plain(*words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("runner: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["status", "nope"],
        ["logs", "nope"],
        ["wait", "nope"],
        ["stop", "nope"],
        ["cancel", "nope"],
        ["pause", "nope"],
        ["resume", "nope"],
        ["retry", "nope"],
        ["rm", "nope"],
        ["checkpoints", "nope"],
        ["best", "nope"],
        ["export", "nope", "out.weights.h5"],
        ["status", "../../etc"],
        ["status", "digist"],
        ["status", ""],
        ["status", "a\nb"],
        ["status", "\udce9"],
    ],
)
def test_no_such_job_is_3(runner, words):
    runner("submit", str(runner.folder("digits")))
    answer = runner(*words)
    assert answer.code == 3
    assert "no such job" in answer.complaint()
    assert ("did you mean digits?" in answer.err) == (words[1] == "digist")


def test_a_home_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    done = _plain("ls", "--home", str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr == f"runner: --home {tmp_path / 'file'}: not a folder\n"


def test_an_empty_home(runner, tmp_path):
    assert "no jobs" in runner("ls").out
    assert runner("ls", "--json").json == []
    assert _plain("ls", "--home", str(tmp_path / "not-there")).returncode == 0
    assert not (tmp_path / "not-there").exists(), "looking makes nothing"


def test_submit_without_a_supervisor(runner):
    answer = runner("submit", str(runner.folder("digits")))
    assert answer.code == 0
    assert answer.out == "digits: submitted; it starts when a supervisor runs: runner supervise\n"
    job = runner.job("digits")
    assert (job["state"], job["reason"], job["attempt"], job["pid"]) == (
        "queued",
        "not taken up yet",
        0,
        None,
    )
    assert runner("ls", "--json").json[0]["name"] == "digits"
    assert "digits" in runner("ls").out
    assert "no supervisor runs here" in runner("status", "digits").out
    mark = json.loads((runner.home.folder("digits") / ".submitted.json").read_text())
    assert (mark["version"], mark["source"]) == (1, None)
    assert [path.name for path in runner.home.jobs.iterdir() if path.name.endswith(".tmp")] == []


def test_submit_copies_and_later_edits_do_not_matter(runner):
    folder = runner.folder("digits")
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"1")
    (folder / "sub" / "link").symlink_to("data")
    (folder / "__pycache__").mkdir()
    (folder / os.fsdecode(b"caf\xe9")).write_text("")
    runner("submit", str(folder), "--name", "other.name-1")
    (folder / "sub" / "data").write_bytes(b"2")
    copy = runner.home.folder("other.name-1")
    assert (copy / "sub" / "link").read_bytes() == b"1"
    assert not (copy / "__pycache__").exists()
    assert (copy / os.fsdecode(b"caf\xe9")).exists()


def test_a_name_is_given_once(runner):
    folder = runner.folder("digits")
    runner("submit", str(folder))
    answer = runner("submit", str(folder))
    assert answer.code == 5
    assert answer.complaint().startswith("digits: there is a job of that name already; choose another")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-x", "a b", "x" * 65, "x.tmp", "\udce9", "a\nb", "é"]
)
def test_bad_names_are_2(runner, name):
    answer = runner("submit", str(runner.folder("digits")), f"--name={name}")
    assert answer.code == 2, answer
    assert "not a name for a job" in answer.complaint()


def test_submit_what_is_not_a_folder(runner, tmp_path):
    assert runner("submit", "nowhere").complaint() == "nowhere: no such folder"
    (tmp_path / "train.py").write_text("")
    answer = runner("submit", "train.py")
    assert answer.code == 2
    assert answer.complaint() == "train.py: is not a folder; name the folder that holds it"


def test_submit_shows_a_mistake_in_the_settings_at_once(runner):
    folder = runner.folder("digits", toml="[checkpoint]\nevry = 3\n")
    answer = runner("submit", str(folder))
    assert answer.code == 1
    assert answer.complaint() == "job.toml:3: unknown key checkpoint.evry; did you mean checkpoint.every?"
    assert not runner.home.folder("digits").exists()


def _link_out(folder):
    (folder / "data").symlink_to("/etc")


def _fifo(folder):
    os.mkfifo(folder / "pipe")


def _socket(folder):
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_link_out, "data: a link that leads out of the folder (to /etc)"),
        (_fifo, "pipe: a socket, FIFO or device"),
        (_socket, "sock: a socket, FIFO or device"),
    ],
)
def test_what_cannot_be_copied_is_refused(runner, spoil, expected):
    folder = runner.folder("digits")
    spoil(folder)
    answer = runner("submit", str(folder))
    assert answer.code == 1
    assert answer.complaint().startswith(expected)
    assert list(runner.home.submitted()) == []
    assert [path for path in runner.home.jobs.iterdir() if path.name.endswith(".tmp")] == []


def test_a_virtual_environment_may_link_to_the_system(runner):
    folder = runner.folder("digits")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert runner("submit", str(folder)).code == 0
    assert (runner.home.folder("digits") / ".venv/bin/python").is_symlink()


def test_submit_the_home_itself(runner, tmp_path):
    (tmp_path / "train.py").write_text("")
    answer = runner("submit", str(tmp_path), "--name", "all")
    assert answer.code == 5
    assert "holds the home" in answer.complaint()


def test_submit_what_lies_in_jobs_already(runner):
    folder = runner.home.folder("mine")
    folder.mkdir()
    (folder / "train.py").write_text("")
    answer = runner("submit", str(folder))
    assert answer.code == 0
    assert "is in" in answer.out
    assert runner("submit", str(folder), "--name", "copy").code == 0


@pytest.mark.parametrize("verb", ["stop", "cancel", "pause"])
def test_requests_wait_for_a_supervisor_and_say_so(runner, verb):
    runner("submit", str(runner.folder("digits")))
    answer = runner(verb, "digits")
    assert answer.code == 0
    assert answer.out == f"digits: {verb} asked; takes effect when a supervisor runs: runner supervise\n"
    (path,) = requests.pending(runner.home)
    assert (requests.read(path).verb, requests.read(path).name) == (verb, "digits")


@pytest.mark.parametrize(("verb", "why"), [("resume", "it is queued already"), ("retry", "it has not ended")])
def test_what_is_not_legal_is_refused_at_once(runner, verb, why):
    runner("submit", str(runner.folder("digits")))
    answer = runner(verb, "digits")
    assert answer.code == 5
    assert why in answer.complaint()
    assert requests.pending(runner.home) == []


def test_a_priority_is_asked_for_with_its_number(runner):
    runner("submit", str(runner.folder("digits")))
    answer = runner("priority", "digits", "-5")
    assert answer.out == "digits: priority asked; takes effect when a supervisor runs: runner supervise\n"
    (path,) = requests.pending(runner.home)
    assert (requests.read(path).verb, requests.read(path).args) == ("priority", {"priority": -5})
    for wrong in ("1.5", "high", "1001", "-1001"):
        answer = runner("priority", "digits", wrong)
        assert answer.code == 2
        assert "'N'" in answer.complaint()
    assert runner("priority", "nope", "1").code == 3


def test_rm_without_a_supervisor(runner):
    runner("submit", str(runner.folder("digits")))
    assert runner("rm", "digits").out == "digits: removed\n"
    assert not runner.home.folder("digits").exists()
    assert runner("status", "digits").code == 3


def test_a_damaged_record_is_named_and_can_be_removed(runner):
    runner("submit", str(runner.folder("digits")))
    record = runner.home.job("digits").record
    record.parent.mkdir(parents=True)
    for text in (
        "{",
        "[]",
        "{}",
        '{"state": "flying"}',
        '{"name": 1, "state": "queued", "attempt": []}',
        "\xff",
    ):
        record.write_text(text, encoding="latin-1")
        answer = runner("status", "digits")
        assert answer.code == 1
        assert str(record) in answer.complaint()
        assert runner("ls", "--json").json[0]["state"] == "unreadable"
    assert runner("rm", "digits").code == 0


def test_logs_and_models_of_a_job_that_has_not_run(runner):
    runner("submit", str(runner.folder("digits")))
    assert runner("logs", "digits").complaint() == "digits: it has not run yet; there is no log"
    assert runner("logs", "digits", "--attempt", "3").code == 5
    assert runner("checkpoints", "digits").out == "digits: no checkpoint yet\n"
    assert runner("checkpoints", "digits", "--json").json == []
    assert runner("best", "digits").code == 5
    assert runner("best", "digits", "--json").json == {"best": None, "kept": []}
    assert runner("export", "digits", "out.keras").code == 5
    assert "no checkpoint yet" in runner("export", "digits", "--step", "3", "out.weights.h5").complaint()
    assert runner("export", "digits", "out.txt").code == 2
    assert runner("submit", str(runner.folder("next")), "--from", "digits").code == 5
    assert runner("submit", str(runner.root / "next"), "--from", "digits@x").code == 2
    assert runner("submit", str(runner.root / "next"), "--from", "nope@3").code == 3


def test_wait_no_longer_than_told(runner):
    runner("submit", str(runner.folder("digits")))
    answer = runner("wait", "digits", "--timeout", "0.2")
    assert answer.code == 5
    assert "still queued" in answer.complaint()


def test_drill_checks_its_words(runner):
    folder = str(runner.folder("digits"))
    assert "--faults fire: expected" in _plain("drill", folder, "--faults", "fire").stderr
    assert _plain("drill", folder, "--kills", "1", "--faults", "worker").returncode == 2
    assert _plain("drill", "nowhere").returncode == 2


def test_a_bug_of_ours_is_one_line_too(runner, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import runner.storage.layout as l\ndef bug(*_): raise ZeroDivisionError('oops')\nl.find_home = bug\n"
    )
    answer = runner("ls", PYTHONPATH=str(tmp_path))
    assert answer.code == 70
    assert "internal error: ZeroDivisionError: oops; please report it" in answer.complaint()
    assert "Traceback" in runner("ls", PYTHONPATH=str(tmp_path), RUNNER_DEBUG="1").err


def test_a_reader_that_leaves_early(runner):
    runner("submit", str(runner.folder("digits")))
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *runner.argv("status", "digits", "--json")],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
