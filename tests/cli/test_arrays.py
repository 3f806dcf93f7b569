"""`runner submit --set`: a job for each value, each with a folder that stands for itself; or none at all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.cli import facts, staging
from runner.cli.arrays import parsed, variants
from runner.cli.models import Model
from runner.cli.options import job_names
from runner.errors import RefusedError, UsageError
from runner.settings import load_spec, resolve
from runner.settings.overlay import Setting, overlaid
from runner.storage import durable
from runner.storage.layout import START_FROM, SUBMITTED_MARK, Home, is_job_name
from tests.waiting import wait_for

SAYS = ["sh", "-c", 'echo "$LR" "$@"', "sh"]


def submitted(runner):
    return sorted(runner.home.submitted())


def left_over(runner):
    return [path.name for path in runner.home.jobs.iterdir() if path.name.endswith(".tmp")]


# --- the option -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        ("lr=0.1,0.01", ["0.1", "0.01"]),
        ("lr=0.1", ["0.1"]),
        ("name=a b,it's", ["a b", "it's"]),
        ("layers=\"64,32\",'1,2',[1,2],8", ["64,32", "1,2", "[1,2]", "8"]),
        ('x="say ""yes"""', ['say "yes"']),
        ("x=\"\",''''", ["", "'"]),
        ('x=["a]",2]', ['["a]",2]']),
        ("x=a=b", ["a=b"]),
    ],
)
def test_values_are_apart_where_a_comma_is_not_quoted(option, texts):
    assert [one.text for one in parsed(option)] == texts


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("lr", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("lr=", "a value is empty"),
        ("lr=1,", "a value is empty"),
        ("lr=1,1", "a value is given twice"),
        ('lr="1', "not closed"),
        ('lr="1"2', "not closed"),
        ("lr=[1,2", "not closed"),
    ],
)
def test_an_option_that_cannot_be_understood(option, said):
    with pytest.raises(UsageError, match=said):
        parsed(option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("restart.budgt=3", "unknown key restart.budgt; did you mean restart.budget?"),
        ("restart.budget=1,x", 'restart.budget must be a whole number from 0 to 1000000, not "x"'),
        ('restart.budget="3"', 'restart.budget must be a whole number from 0 to 1000000, not "3"'),
        ("env.RUNNER_HOME=x", "env.RUNNER_HOME is set by the runner itself"),
        ("checkpoint.best_keep=3", "checkpoint.best_keep is for a series of files"),
        ("--lr=1", "without its dashes"),
        ("lr=1,2", "lr: is given twice"),
        ("x=1\udce9", "is not UTF-8 text"),
    ],
)
def test_a_value_that_cannot_be_set_is_named(tmp_path, option, said):
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UsageError) as caught:
        variants(tmp_path, "digits", ["lr=0.1,0.01", option])
    assert str(caught.value).startswith("--set ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_bad_value_submits_nothing(runner):
    folder = runner.folder("digits")
    answer = runner("submit", str(folder), "--set", "lr=0.1,0.01", "--set", "restart.budget=1,x")
    assert answer.code == 2
    assert answer.complaint().startswith("--set restart.budget=x: restart.budget must be a whole number")
    assert submitted(runner) == left_over(runner) == []
    os.mkfifo(folder / "pipe")
    answer = runner("submit", str(folder), "--set", "lr=0.1,0.01")
    assert answer.complaint().startswith("pipe: a socket, FIFO or device")
    assert submitted(runner) == left_over(runner) == []


# --- what is submitted ------------------------------------------------------------------------------------


def test_each_combination_is_a_job_that_stands_for_itself(runner):
    toml = '# mine\npriority = 3\n[env]\n"A.B" = "\\u007f\\"ä"\n[restart]\nbackoff = "1s..2s"\n'
    folder = runner.folder("digits", command=SAYS, toml=toml)
    before = (folder / "job.toml").read_bytes()
    options = ["--set", "lr=0.1,1e-3", "--set", "restart.budget=1,2", "--set", "env.LR=a b"]
    answer = runner("submit", str(folder), *options, "--json")
    assert [job["name"] for job in answer.json] == [
        "digits-lr0.1-budget1-LRa_b",
        "digits-lr0.1-budget2-LRa_b",
        "digits-lr1e-3-budget1-LRa_b",
        "digits-lr1e-3-budget2-LRa_b",
    ]
    for job in answer.json:
        spec = load_spec(runner.home.folder(job["name"]))
        assert spec.command == (*SAYS, "--lr", job["set"]["lr"])
        assert spec.restart.budget == int(job["set"]["restart.budget"])
        assert spec.env == {"A.B": '\x7f"ä', "LR": "a b"}
        assert (spec.priority, spec.restart.backoff_max_s) == (3, 2.0)
        assert facts.gather(runner.home, job["name"])["set"] == job["set"]
    assert (folder / "job.toml").read_bytes() == before
    assert left_over(runner) == []
    assert job_names(runner.home)[0] == "digits-lr1e-3-budget1-LRa_b", "by number"
    again = runner("submit", str(folder), *options)
    assert again.code == 5
    assert "there is a job of that name already (and 3 more of these 4)" in again.complaint()
    assert (
        "set    lr = 0.1, restart.budget = 1, env.LR = a b\n"
        in runner("status", "digits-lr0.1-budget1-LRa_b").out
    )


def test_a_name_that_is_taken_keeps_the_others_out_too(runner):
    folder = runner.folder("digits")
    staging.submit(runner.home, folder, "digits-lr0.2")
    answer = runner("submit", str(folder), "--set", "lr=0.1,0.2,0.3")
    assert answer.code == 5
    assert answer.complaint().startswith("digits-lr0.2: there is a job of that name already; choose")
    assert submitted(runner) == ["digits-lr0.2"]
    answer = runner("submit", str(folder), "--set", "lr=0.1,0.2", "--name", "other")
    assert [line.partition(":")[0] for line in answer.out.splitlines()] == ["other-lr0.1", "other-lr0.2"]


def test_names_are_valid_their_own_and_the_same_each_time(tmp_path):
    (tmp_path / "train.py").write_text("")
    options = ["a=x y,x/y,é", f"long={'v' * 50},.tmp", "seed.value=1"]
    names = [job.name for job in variants(tmp_path, "d" * 60, options)]
    assert len(set(names)) == 6
    assert all(map(is_job_name, names))
    assert [job.name for job in variants(tmp_path, "d" * 60, options)] == names
    assert [job.name for job in variants(tmp_path, "s", ["seed.value=1,2"])] == ["s-seed1", "s-seed2"]
    both = variants(tmp_path, "s", ["lr=1", "env.lr=2"])
    assert [job.name for job in both] == ["s-lr1-env.lr2"]


def test_a_folder_without_settings_and_one_whose_settings_are_a_link_or_nobodys_business(runner):
    plain, linked = runner.root / "plain", runner.folder("linked", command=SAYS)
    plain.mkdir()
    (plain / "train.py").write_text("")
    assert runner("submit", str(plain), "--set", "lr=1").code == 0
    assert load_spec(runner.home.folder("plain-lr1")).args == ("--lr", "1")
    (linked / "job.toml").rename(linked / "real.toml")
    (linked / "job.toml").symlink_to("real.toml")
    (linked / "real.toml").chmod(0o400)
    assert runner("submit", str(linked), "--set", "lr=1").code == 0
    copy = runner.home.folder("linked-lr1")
    assert (copy / "real.toml").read_bytes() == (linked / "real.toml").read_bytes()
    assert not (copy / "job.toml").is_symlink()
    assert (copy / "job.toml").stat().st_mode & 0o777 == 0o400


def test_each_starts_from_the_model_that_was_named(tmp_path):
    home, model = Home(tmp_path / "home"), tmp_path / "model"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "train.py").write_text("")
    model.write_bytes(b"weights")
    jobs = variants(tmp_path / "digits", "digits", ["lr=1,2"])
    staging.submit_all(home, tmp_path / "digits", jobs, Model(model, 5, "other@5"))
    for job in jobs:
        assert (home.folder(job.name) / START_FROM).read_bytes() == b"weights"
        mark = json.loads((home.folder(job.name) / SUBMITTED_MARK).read_text())
        assert (mark["source"], mark["set"]) == ("other@5", job.given)
    assert not staging.is_same(home, tmp_path / "digits", "digits-lr1"), "`runner run` has its own"


def test_what_is_not_submitted_as_a_whole_is_said(tmp_path, monkeypatch):
    """A name that is taken between the look and the renaming; all before it have been submitted."""
    home, folder = Home(tmp_path / "home"), tmp_path / "digits"
    home.create()
    folder.mkdir()
    (folder / "train.py").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train.py").write_text("theirs")
    names = ["x0", "x1", "x2"]
    move = durable.move

    def move_and_take_the_last(source: Path, target: Path) -> None:
        move(source, target)
        if target == home.folder(names[0]):
            (tmp_path / "theirs").rename(home.folder(names[-1]))

    monkeypatch.setattr(durable, "move", move_and_take_the_last)
    with pytest.raises(RefusedError) as caught:
        staging.submit_all(home, folder, [staging.Variant(name) for name in names])
    assert str(caught.value).startswith(f"{names[-1]}: there is a job of that name already")
    assert str(caught.value).endswith(f"submitted before it: {', '.join(names[:-1])}")
    assert (home.folder(names[-1]) / "train.py").read_text() == "theirs"
    assert [path for path in home.jobs.iterdir() if path.name.endswith(".tmp")] == []


def test_an_attempt_and_a_retry_get_what_was_set(served):
    folder = served.folder("says", command=["sh", "-c", 'echo "$LR" "$@"; exit 78', "sh"])
    served("submit", str(folder), "--set", "lr=0.1,0.2", "--set", "env.LR=7")
    served("wait", "says-lr0.1-LR7", "says-lr0.2-LR7")
    assert served("retry", "says-lr0.2-LR7").code == 0
    wait_for(lambda: len(served.until("says-lr0.2-LR7", "failed")["attempts"]) == 2, "it to run again")
    for attempt in ("1", "2"):
        assert served("logs", "says-lr0.2-LR7", "--attempt", attempt).out == "7 --lr 0.2\n"
    assert served("logs", "says-lr0.1-LR7").out == "7 --lr 0.1\n"


# --- the text of a job.toml -------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=50)
@given(word=WORDS, key=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8))
@example(word="\x7f", key="\x7f")
def test_any_text_comes_out_as_it_went_in(tmp_path_factory, word, key):
    folder = _folder(tmp_path_factory, "any", json.dumps([sys.executable, "-c", "pass"]))
    given = [Setting("x", word), Setting("env.Y", word, quoted=True)]
    if key.isprintable() and "=" not in key:
        given.append(Setting(f"env.{key}", word))
    spec = resolve(overlaid(folder, given), folder)
    assert spec.command is not None
    assert spec.command[-2:] == ("--x", word)
    assert set(spec.env.values()) == {word}
    assert spec.env.keys() == {one.path[1] for one in given[1:]}


def _folder(factory, name: str, command: str) -> Path:
    folder = factory.getbasetemp() / name
    folder.mkdir(exist_ok=True)
    (folder / "job.toml").write_text(f"command = {command}\n")
    return folder
