"""`runner drill`: faults really strike, and a difference is found."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from runner.cli import drill as drilling
from runner.cli import lab, sameness
from runner.settings import load_spec
from runner.storage import checkpoint, eventlog
from runner.storage.layout import Home
from tests.cli.conftest import ENVIRON
from tests.waiting import wait_for


def drill(folder, *words, **environ):
    done = subprocess.run(
        [sys.executable, "-m", "runner.cli", "drill", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=600,
        env=ENVIRON | environ,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def stop(started):
    """End a drill that still runs, and let it end what it has started."""
    if started.poll() is None:
        started.send_signal(signal.SIGINT)
        try:
            started.wait(60)
        finally:
            started.kill()


def counting(target, *holds, go="never"):
    """Count; under faults hold at the first of `holds` in attempt 1, and so on, until the file `go`."""
    cases = "".join(f" */disturbed:{attempt}) at={hold};;" for attempt, hold in enumerate(holds, 1))
    counter = shlex.join([sys.executable, "counter.py", str(target), "0.01", "--hold-at"])
    script = f'case "$RUNNER_STATE:$RUNNER_ATTEMPT" in{cases} *) at=-1;; esac; exec {counter} $at {go}'
    return ["sh", "-c", script]


def test_faults_strike_and_are_got_over(runner, tmp_path):
    (tmp_path / "tmp").mkdir()
    # The worker is due at 120, the supervisor at 240, both at 360, the shim at 480.
    command = counting(600, 200, 400, 500)
    folder = runner.folder("count", command=command, toml='[restart]\nbackoff = "50ms"\n')
    told = tmp_path / "report.md"
    words = ("--faults", "worker,supervisor,both,shim", "--json", "--report", str(told))
    done = drill(folder, *words, TMPDIR=str(tmp_path / "tmp"))
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["held"]
    assert [hit["fault"] for hit in report["faults"]] == ["worker", "supervisor", "both", "shim"]
    assert json.loads(told.with_suffix(".json").read_text()) == report
    assert told.read_text().startswith("# count: all of it held\n")
    assert [line.split("|")[-2] for line in told.read_text().splitlines()[-4:]] == [" yes "] * 4
    assert report["undisturbed"]["restarts"] == 0
    assert report["disturbed"]["restarts"] == 3
    assert report["disturbed"]["state"] == "succeeded"
    assert all(hit["step"] > 0 for hit in report["faults"])
    assert list((tmp_path / "tmp").iterdir()) == [], "nothing is left behind"


def test_a_job_that_cannot_get_over_it_fails_the_drill(runner, tmp_path):
    (tmp_path / "tmp").mkdir()
    sleeps = 'case "$RUNNER_STATE" in */disturbed) exec sleep 600;; *) exec sleep 1;; esac'
    folder = runner.folder("sleeps", command=["sh", "-c", sleeps], toml="[restart]\nbudget = 0\n")
    told = tmp_path / "report.md"
    done = drill(folder, "--kills", "1", "--report", str(told), TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 1
    report = json.loads(told.with_suffix(".json").read_text())
    assert [hit["fault"] for hit in report["faults"]] == ["worker"], "it struck"
    assert report["disturbed"]["state"] == "failed"
    assert "NOT all of it held" in done.stdout
    assert "kept for a look: " in done.stdout


def test_what_cannot_happen_is_not_counted_as_got_over(runner, tmp_path):
    (tmp_path / "place").mkdir()
    go, said, told = tmp_path / "go", tmp_path / "said", tmp_path / "report.md"
    # Its checkpoints are not files of ours. The faults are due at 50 and 100.
    folder = runner.folder("count", command=counting(150, 120, go=shlex.quote(str(go))))
    words = ("--faults", "torn,disk", "--home", str(tmp_path / "place"), "--report", str(told))
    argv = [sys.executable, "-m", "runner.cli", "drill", str(folder), *words]
    with said.open("wb") as out:
        started = subprocess.Popen(argv, stdout=out, stderr=out, env=ENVIRON)
    try:
        wait_for(lambda: said.read_text().count("did not happen") == 2, "both to be tried")
        go.touch()
        assert started.wait(120) == 1, "they were asked for"
    finally:
        stop(started)
    assert "Traceback" not in said.read_text()
    report = json.loads(told.with_suffix(".json").read_text())
    assert (report["held"], report["faults"]) == (False, [])
    assert [missed["fault"] for missed in report["missed"]] == ["torn", "disk"]
    assert all("there is no checkpoint" in missed["why"] for missed in report["missed"])
    assert report["disturbed"]["restarts"] == 0
    assert [path.name[:13] for path in (tmp_path / "place").iterdir()] == ["runner-drill-"]


#: In the order in which they strike.
ALL_OF_A_TRAINING = "keeper,stop,hang,memory,nan,torn,disk,slow-disk"
HANGS = '[limits]\nhang = "8s"\ngrace = "1s"\n'


#: Under faults its last steps take long: the last faults are due at 125 and 143 of 160.
SLOW_FROM = 120


def keras_job(folder, epochs=15, units=1):
    folder.mkdir()
    (folder / "train.py").write_text(
        "import os, time, keras, numpy as np\n"
        "keras.utils.set_random_seed(1)\n"
        f"layers = [keras.layers.Dense(units) for units in ({units}, {units}, 1)]\n"
        "model = keras.Sequential([keras.Input((2,)), *layers])\n"
        "model.compile('sgd', 'mse')\n"
        "x = np.ones((64, 2), 'float32')\n"
        "rough = os.environ.get('RUNNER_STATE', '').endswith('/disturbed')\n"
        f"late = {SLOW_FROM} if rough else {8 * epochs}\n"
        "def wait(*_, **__):\n"
        "    time.sleep(0.3 if int(model.optimizer.iterations) > late else 0.05)\n"
        "pause = keras.callbacks.LambdaCallback(on_train_batch_end=wait)\n"
        f"model.fit(x, x[:, :1], batch_size=8, epochs={epochs}, verbose=0, callbacks=[pause])\n"
    )
    return folder


@pytest.mark.timeout(900)
def test_faults_of_a_training_are_got_over_too(tmp_path):
    folder = keras_job(tmp_path / "keras", epochs=20, units=400)  # its checkpoints are larger than its log
    (folder / "job.toml").write_text('[checkpoint]\nevery = "1s"\n[restart]\nbackoff = "50ms"\n' + HANGS)
    done = drill(folder, "--faults", ALL_OF_A_TRAINING, "--json", "--home", str(tmp_path))
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert [hit["fault"] for hit in report["faults"]] == ALL_OF_A_TRAINING.split(",")
    assert [hit["held"] for hit in report["faults"]] == [True] * 8
    notes = {hit["fault"]: hit["note"] for hit in report["faults"]}
    assert re.match(r"it was told as (out-of-memory \(.*Error\)|crashed \(SIG)", notes.pop("memory"))
    assert notes == {
        "keeper": "training went on",
        "stop": "the attempt went on",
        "hang": "it was found out",
        "nan": "it was noticed, and rolled back",
        "torn": "it was quarantined",
        "disk": "a save failed and was reported; training went on",
        "slow-disk": "training went on",
    }
    assert report["disturbed"]["restarts"] == 4
    assert report["same"]["same"]


needs_faketime = pytest.mark.skipif(lab.faketime() is None, reason="needs Debian's package libfaketime")


@needs_faketime
def test_a_clock_that_is_set_disturbs_no_job(runner, tmp_path):
    folder = runner.folder("count", "600", "0.02")
    done = drill(folder, "--faults", "clock", "--json", "--home", str(tmp_path))
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    (hit,) = report["faults"]
    assert (hit["held"], hit["note"]) == (True, "training went on")
    assert report["disturbed"]["restarts"] == 0


@needs_faketime
def test_only_the_supervisors_clock_is_set(runner, tmp_path):
    folder = runner.folder("dates", command=["date", "-u", "+%Y-%m-%d"])
    place = lab.Lab(folder, tmp_path, clock=True)
    try:
        place.start()
        assert place.has_clock()
        today = datetime.now(UTC)
        for days, name in ((1, "forth"), (-1, "back"), (0, "right")):
            place.set_clock(days * 86400)
            place.submit(name)
            wait_for(lambda name=name: place.look(name)["state"] == "succeeded", name)
            (first, *_) = eventlog.read(place.home.job(name).events)
            off = datetime.fromisoformat(first["time"]) - today
            assert round(off / timedelta(days=1)) == days
            told = place.home.job(name).attempt(1).log.read_text().strip()
            assert told in {f"{one:%Y-%m-%d}" for one in (today, datetime.now(UTC))}
    finally:
        place.close(keep=False)


def test_a_command_cannot_be_made_to_hang(runner, tmp_path):
    folder = runner.folder("count", "150", "0.01")
    done = drill(folder, "--faults", "hang", "--json", "--home", str(tmp_path))
    assert [missed["fault"] for missed in json.loads(done.stdout)["missed"]] == ["hang"]
    assert done.returncode == 1


def test_only_faults_that_were_named_must_happen():
    ended = {"state": "succeeded"}
    calm = drilling.Course(ended, 1.0)
    rough = drilling.Course(ended, 1.0, missed=[drilling.Missed("disk", "no save failed")])
    same = sameness.Verdict(True, "")
    assert drilling._all_held(calm, rough, same, named=False)
    assert not drilling._all_held(calm, rough, same, named=True)
    rough.too_short = True
    assert not drilling._all_held(calm, rough, same, named=False)


def test_an_interrupted_drill_leaves_nothing_running(runner, tmp_path):
    (tmp_path / "tmp").mkdir()
    started = subprocess.Popen(
        [sys.executable, "-m", "runner.cli", "drill", str(runner.folder("count", "100000", "0.01"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRON | {"TMPDIR": str(tmp_path / "tmp")},
    )
    wait_for(lambda: list((tmp_path / "tmp").glob("*/home/state/*/progress.json")), "it to train")
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, (out, err)
    marks = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    inside = os.fsencode(tmp_path / "tmp")
    wait_for(lambda: not any(inside in _words(path) for path in marks), "everything to end")


def _words(path):
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (None, 2),
        ("priority = 1\n", 3),
        ("[seed]\n[limits]\n", 2),
        ("seed = {}\npriority = 1\n", 1),
        ("\ufeff[limits]\n", 3),
    ],
)
def test_both_runs_get_one_seed(tmp_path, toml, line):
    (tmp_path / "train.py").write_text("")
    if toml is not None:
        (tmp_path / "job.toml").write_text(toml)
    lab._give(tmp_path / "job.toml", "seed", "value = 1")
    assert load_spec(tmp_path).seed is not None
    assert "value" in (tmp_path / "job.toml").read_text().splitlines()[line - 1]


@pytest.mark.parametrize(
    "toml", ['limits.grace = "5s"\n', 'limits = { grace = "5s" }\n', '[limits] # short\ngrace = "5s"\n']
)
def test_a_limit_is_added_beside_others(tmp_path, toml):
    (tmp_path / "train.py").write_text("")
    (tmp_path / "job.toml").write_text(toml)
    lab._give(tmp_path / "job.toml", "limits", "hang = 20")
    assert (load_spec(tmp_path).limits.hang_s, load_spec(tmp_path).limits.grace_s) == (20, 5)


class TestSameness:
    @pytest.fixture
    def home(self, tmp_path):
        home = Home(tmp_path)
        for name in ("one", "other"):
            home.job(name).checkpoints.mkdir(parents=True)
        return home

    def write(self, path, *values):
        arrays = {"variables/0": np.array(values, np.float32), "variables/1": np.zeros((2, 2))}
        checkpoint.write(path, checkpoint.Snapshot(3, 1, {}, arrays), created="2026-01-01T00:00:00Z")

    def test_the_same(self, home):
        for name, time in (("one", "10:00"), ("other", "11:00")):
            self.write(home.job(name).checkpoint(3), 1.0, 2.0)
            home.job(name).metrics.write_text(f'{{"epoch": 0, "time": "{time}", "loss": 0.5}}\n')
        verdict = sameness.compare(home, "one", "other")
        assert (verdict.same, verdict.arrays, verdict.epochs, verdict.differing) == (True, 2, 1, ())
        assert verdict.digests["one"] == verdict.digests["other"]

    @pytest.mark.parametrize("value", [np.nextafter(np.float32(2), np.float32(3)), np.nan])
    def test_one_bit_is_a_difference(self, home, value):
        self.write(home.job("one").fit(0), 1.0, 2.0)
        self.write(home.job("other").fit(0), 1.0, value)
        verdict = sameness.compare(home, "one", "other")
        assert (verdict.same, verdict.differing) == (False, ("fit-000/variables/0",))

    def test_a_minus_zero_is_a_difference(self, home):
        self.write(home.job("one").fit(0), 0.0)
        self.write(home.job("other").fit(0), -0.0)
        assert not sameness.compare(home, "one", "other").same

    def test_other_metrics_are_a_difference(self, home):
        for name, loss in (("one", 0.5), ("other", 0.25)):
            self.write(home.job(name).fit(0), 1.0)
            home.job(name).metrics.write_text(f'{{"epoch": 0, "loss": {loss}}}\n')
        assert sameness.compare(home, "one", "other").differing == ("metrics.jsonl",)

    def test_other_steps_cannot_be_compared(self, home):
        self.write(home.job("one").checkpoint(3), 1.0)
        self.write(home.job("other").checkpoint(4), 1.0)
        verdict = sameness.compare(home, "one", "other")
        assert not verdict.same
        assert "step-000000000004" in verdict.text

    def test_one_without_any(self, home):
        self.write(home.job("one").checkpoint(3), 1.0)
        assert not sameness.compare(home, "one", "other").same

    def test_neither_with_any(self, home):
        assert sameness.compare(home, "one", "other").same
