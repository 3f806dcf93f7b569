"""`runner doctor`: what it says of real scripts, and that it leaves nothing behind; `status` says it too."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.cli import checkup, doctor, staging
from runner.core.exactness import Kind
from runner.core.job import Classified, Job, State
from runner.storage import records
from runner.training import rehearsal
from tests.cli.conftest import ENVIRON, Answer, Bench, command_line
from tests.waiting import wait_for

HEAD = """
import threading
import keras, numpy as np, tensorflow as tf
def compiled():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model
x = np.ones((64, 2), "float32")
model = compiled()
"""
ARRAYS = """
from pathlib import Path
class Guard(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.door = threading.Lock()
steps = []
count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: steps.append(1))
stopping = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
told = model.fit(x, x[:, :1], validation_split=0.5, validation_freq=5, batch_size=4, epochs=200,
    verbose=0, callbacks=[Guard(), count, stopping, keras.callbacks.ModelCheckpoint("mine.keras")])
Path("data.txt").write_text("overwritten")
print("told", sorted(told.history), len(steps))
model.fit(tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(9).batch(8), epochs=50, verbose=0)
"""
STREAMS = """
def forever():
    while True:
        yield x[:4], x[:4, :1]
class Pieces(keras.utils.PyDataset):
    def __len__(self):
        return 7
    def __getitem__(self, index):
        return x[:4], x[:4, :1]
data = tf.data.Dataset.from_tensor_slices((x, x[:, :1]))
noisy = data.map(lambda a, b: (a + tf.random.uniform((2,)), b)).batch(8)
pieces = Pieces(workers=2)
def train(*arguments, **options):
    model.fit(*arguments, verbose=0, **options)
train(forever(), steps_per_epoch=5, epochs=50)
train(pieces, epochs=50, validation_data=Pieces(workers=2))
train(pieces, epochs=50, validation_data=data.shuffle(9).repeat().batch(8), validation_steps=3)
train(noisy, epochs=50)
"""
LOOPS = """
import runner
for number in range(100_000):
    loss, _ = model.train_on_batch(x, x[:, :1])
print("loss", loss > 0)
with tf.GradientTape() as tape:
    loss = tf.reduce_mean(model(x) ** 2)
weights = model.trainable_variables
keras.optimizers.Adam().apply_gradients(zip(tape.gradient(loss, weights), weights))
model.build((None, 2))
optimizer = keras.optimizers.Adam()
data = tf.data.Dataset.from_tensor_slices(x).batch(8)
run = runner.attach(model=model, optimizer=optimizer)
seen = []
for epoch in run.epochs(50):
    for batch in run.batches(data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(batch) ** 2)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        run.report(run.step, loss=float(loss))
        seen.append(epoch)
    run.checkpoint()
for step in run.steps(500):
    seen.append(step)
print("seen", seen)
"""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return scratch


def folder_of(root: Path, text: str, toml: str = "", name: str = "mine") -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "train.py").write_text(text)
    (folder / "data.txt").write_text("as it was")
    if toml:
        (folder / "job.toml").write_text(toml)
    return folder


def start(scratch: Path, *words: str, unwatched_s: float = 15.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command_line({"checkup._UNWATCHED_S": unwatched_s}), "doctor", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=scratch.parent,
        env=ENVIRON | {"TMPDIR": str(scratch), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )


def ask(scratch: Path, *words: str, unwatched_s: float = 15.0) -> Answer:
    """Run a doctor; whatever it says, it leaves nothing."""
    started = start(scratch, *words, unwatched_s=unwatched_s)
    try:
        out, err = started.communicate(timeout=300)
    finally:
        started.kill()
    assert list(scratch.iterdir()) == [], "nothing is left"
    return Answer(started.returncode, out, err)


def content(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_arrays_and_a_shuffle_are_exact_and_nothing_is_changed(tmp_path: Path, scratch: Path) -> None:
    folder = folder_of(tmp_path, HEAD + ARRAYS)
    before = content(folder)
    answer = ask(scratch, str(folder), "--verbose")
    assert answer.code == 0, answer
    lines = answer.out.splitlines()
    unless = "what stays as the script makes it has no part in that"
    assert lines[0].startswith("mine: train.py was run in a copy, one step of each fit (")
    assert lines[1:] == [
        f"fit 0, train.py:{_line(folder, 'told = ')}: exact",
        "  a resume goes straight to its place in the data",
        "  stays as the script makes it: Guard.door (a _thread.lock)",
        f"fit 1, train.py:{_line(folder, 'shuffle(9)')}: exact",
        "  a resume goes straight to its place in the data",
        f"mine: exact: killed anywhere, it ends as undisturbed, if {unless}",
    ]
    assert "told ['loss', 'mae', 'val_loss', 'val_mae'] 1\n" in answer.err, "one step of each"
    assert "runner: resumes of fit 1: exact\n" in answer.err
    assert content(folder) == before


def _line(folder: Path, words: str) -> int:
    """Return the line of a call, which may go on over several."""
    lines = (folder / "train.py").read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if words in line)


def test_streams_by_replay_with_its_cost_and_not_exact(tmp_path: Path, scratch: Path) -> None:
    folder = folder_of(tmp_path, HEAD + STREAMS)
    answer = ask(scratch, str(folder), "--json")
    report = answer.json
    assert (answer.code, report["exact"], report["ended"]) == (1, False, ""), report
    fits = report["fits"]
    assert [one["kind"] for one in fits] == ["by-replay", "by-replay", "not-exact", "not-exact"]
    assert [one["method"] for one in fits] == ["replay", "pull", "pull", "epoch"]
    assert {one["where"] for one in fits} == {f"train.py:{_line(folder, 'model.fit')}"}
    generator, pieces = fits[0]["replay"], fits[1]["replay"]
    assert 0 < generator["batches"] <= 200
    assert (generator["epoch_batches"], pieces["epoch_batches"]) == (5, 7)
    assert 0 < generator["batch_s"] <= generator["epoch_s"]
    assert fits[2]["reason"].startswith("the validation data are shuffled, then repeated")
    assert fits[3]["reason"].startswith("RandomUniform in the dataset has no seed")
    assert fits[3]["replay"] is None


def test_reading_again_is_measured_over_some_batches_and_for_about_a_second(monkeypatch) -> None:
    one = object.__new__(rehearsal.Rehearsal)
    one.iterator = SimpleNamespace(steps_per_epoch=5)
    monkeypatch.setattr(one, "_source", lambda _: iter(range(1000)), raising=False)
    monkeypatch.setattr(rehearsal.time, "monotonic", itertools.count(0.0, 0.001).__next__)
    told = one._measure(None)
    assert (told["batches"], told["epoch_batches"]) == (200, 5)
    assert (told["batch_s"], told["epoch_s"]) == pytest.approx((0.001, 0.005))
    monkeypatch.setattr(rehearsal.time, "monotonic", itertools.count(0.0, 0.25).__next__)
    assert one._measure(None)["batches"] == 5, "the first that takes it beyond a second is the last"


def test_loops_of_the_api_and_loops_that_nothing_is_kept_of(tmp_path: Path, scratch: Path) -> None:
    folder = folder_of(tmp_path, HEAD + LOOPS)
    answer = ask(scratch, str(folder), "--verbose", unwatched_s=120.0)
    assert answer.code == 1
    assert "loss True\n" in answer.err, "what is not trained gives results all the same"
    assert "seen [0, 0]\n" in answer.err, "each loop took one step"
    promise = "exact: for what is attached and tracked"
    why = "it trains in a loop of its own, of which the runner keeps nothing"
    assert answer.out.splitlines()[1:] == [
        f"loop 0, train.py:{_line(folder, 'run.epochs')}: {promise}",
        f"loop 1, train.py:{_line(folder, 'run.steps')}: {promise}",
        f"train.py:{_line(folder, 'train_on_batch')}: train_on_batch: {why}",
        f"train.py:{_line(folder, 'apply_gradients')}: an optimizer: {why}",
        "mine: NOT all of it is exact",
    ]


def test_a_script_that_fails_is_quoted(tmp_path: Path, scratch: Path) -> None:
    folder = folder_of(tmp_path, "print('so far')\nraise ValueError('no data')\n")
    answer = ask(scratch, str(folder))
    assert answer.code == 1
    assert "so far" in answer.out
    assert answer.out.splitlines()[-3:] == [
        "  | ValueError: no data",
        "the script failed with exit code 1",
        "mine: NOT all of it was seen",
    ]


def test_a_script_without_training_and_the_settings_of_a_job(runner: Bench, scratch: Path) -> None:
    """Named by its job; arguments, environment, interpreter and seed are those of job.toml."""
    folder = folder_of(
        runner.root,
        "import os, random, sys; print(sys.argv, os.environ['SIZE'], sys.prefix, random.random())",
        'args = ["--fast"]\npython = ".own/bin/python"\n[env]\nSIZE = "7"\n[seed]\nvalue = 3\n',
    )
    (folder / ".own" / "bin").mkdir(parents=True)
    python = folder / ".own" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "own python"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert runner("submit", str(folder)).code == 0
    answers = [ask(scratch, "mine", "--home", str(runner.home.root), "--verbose") for _ in range(2)]
    for answer in answers:
        assert answer.out.splitlines()[-1].startswith("mine: nothing is kept of it"), answer
        assert answer.code == 1
        assert answer.err.startswith("own python\n['train.py', '--fast'] 7 ")
    assert answers[0].err == answers[1].err, "the job's seed"
    assert not list(runner.home.state.iterdir())


def test_what_cannot_be_looked_at(runner: Bench, scratch: Path) -> None:
    answer = ask(scratch, "nowhere", "--home", str(runner.home.root))
    assert answer.code == 3
    assert answer.complaint().startswith("no such folder, and nowhere: no such job")
    (runner.root / "file").write_text("")
    assert ask(scratch, "file").code == 2
    assert ask(scratch, str(scratch)).code == 1, "no train.py"
    answer = ask(scratch, str(runner.folder("counts")))
    assert answer.code == 1
    assert "a command is started again as it is" in answer.out


SLEEPER = """
import subprocess, time
from pathlib import Path
stray = subprocess.Popen(["setsid", "sleep", "612"])
Path({stray!r}).write_text(str(stray.pid))
time.sleep(612)
"""


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_neither_a_timeout_nor_a_signal_leaves_anything(
    tmp_path: Path, scratch: Path, number: signal.Signals | None
) -> None:
    stray = tmp_path / "stray"
    folder = folder_of(tmp_path, SLEEPER.format(stray=str(stray)))
    started = start(scratch, str(folder), "--timeout", "10" if number is None else "600")
    if number is not None:
        wait_for(lambda: stray.exists() and stray.read_text(), "the script")
        assert Path("/proc", stray.read_text()) in _living(scratch), "it is known by its environment"
        started.send_signal(number)
    out, err = started.communicate(timeout=120)
    assert started.returncode == (1 if number is None else 130), (out, err)
    assert ("it was ended after 10 s; more with --timeout" in out) == (number is None)
    assert int(stray.read_text()) > 0, "it had begun"
    assert list(scratch.iterdir()) == []
    wait_for(lambda: not _living(scratch), "all that was killed to be gone")


def _living(scratch: Path) -> list[Path]:
    return [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and _carries(pid, scratch)]


def _carries(process: Path, root: Path) -> bool:
    try:
        return os.fsencode(root) in (process / "environ").read_bytes()
    except OSError:
        return False


def test_big_files_are_linked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "big").write_bytes(bytes(1000))
    (folder / ".venv").mkdir()
    assert staging.copy_to_try(folder, tmp_path / "copy", 500) == [Path("big")]
    assert (tmp_path / "copy" / "big").readlink() == folder / "big"
    assert (tmp_path / "copy" / ".venv").readlink() == folder / ".venv"
    assert not (tmp_path / "copy" / "train.py").is_symlink()


def test_what_a_worker_says_becomes_a_report(tmp_path: Path) -> None:
    said = [
        {"event": "rehearsing", "fit": 0, "what": "fit", "where": "train.py:3"},
        {"event": "classified", "fit": 0, "exact": True, "kind": "exact", "reason": ""},
        {"event": "warning", "message": "metrics.jsonl misses lines"},
        {"event": "classified", "fit": 0, "exact": False, "kind": "not-exact", "reason": "late"},
    ]
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps(fact) + "\n" for fact in said) + '{"event": "cl')
    report = checkup.read(facts)
    assert [(one.kind, one.reason, one.where) for one in report.fits] == [("not-exact", "late", "train.py:3")]
    assert report.warnings == ["metrics.jsonl misses lines"]
    assert not report.is_exact
    replay = {"batches": 9, "batch_s": 0.0021, "epoch_batches": 100, "epoch_s": 12.4}
    assert doctor.costs(replay) == "2.1 ms a batch, 12 s an epoch of 100"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (Classified(0, Kind.EXACT), "exactness  exact"),
        (
            Classified(2, Kind.BY_REPLAY, "by replay: a Python generator makes the data", 0.41),
            "exactness  fit 2: exact by replay: a Python generator makes the data; read again in 0.4 s",
        ),
        (Classified(0, Kind.NOT_EXACT, "no seed", None, ("Guard.door",)), "exactness  not exact: no seed"),
        (None, "exactness  exact: arrays"),
    ],
)
def test_status_says_how_exact_a_resume_is(runner: Bench, said: Classified | None, line: str) -> None:
    job = Job("mine", State.QUEUED, "2026-01-01T00:00:00.000+00:00", 1, exactness="exact: arrays")
    records.save_job(runner.home.job("mine").record, replace(job, classified=said))
    assert line in _shown(runner)
    found = runner.job("mine")["exactness"]
    if said is None:
        assert found == {"fit": 0, "kind": "exact", "reason": "arrays", "replay_s": None, "missed": []}
    else:
        assert (found["fit"], found["kind"], found["reason"]) == (said.fit, said.kind, said.reason)
        assert (found["replay_s"], found["missed"]) == (said.replay_s, list(said.missed))
        assert ("not kept   Guard.door" in _shown(runner)) == bool(said.missed)


def _shown(runner: Bench) -> list[str]:
    return runner("status", "mine").out.splitlines()
