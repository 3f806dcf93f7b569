"""The jobs that are shipped: valid, documented, and doing what their README says."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.settings import load_spec
from tests.environ import whole

JOBS = Path(__file__).parents[1] / "jobs"
NAMES = ["digits", "loop", "pima", "shell", "stream"]
ENVIRON = {key: value for key, value in whole().items() if not key.startswith(("RUNNER_", "PIMA_"))}


@pytest.fixture
def folder(request, tmp_path):
    """A copy, so that what a script leaves behind does not stay in the repository."""
    target = tmp_path / request.param
    shutil.copytree(
        JOBS / request.param, target, ignore=shutil.ignore_patterns("*.csv", "*.h5", "progress.txt")
    )
    return target


def run(*words: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRON | {"TF_CPP_MIN_LOG_LEVEL": "2"} | environ,
    )


def test_these_are_all():
    assert sorted(path.name for path in JOBS.iterdir() if path.name[0] != ".") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_accepted_and_explained(name):
    spec = load_spec(JOBS / name)
    assert (spec.entry is None) == (name == "shell")
    text = (JOBS / name / "README.md").read_text()
    head, paragraph = text.split("\n\n")
    assert head == f"# {name}"
    assert len(paragraph.split()) < 120, "one paragraph"


@pytest.mark.parametrize("folder", ["pima"], indirect=True)
def test_pima_without_data_says_where_to_get_it(folder):
    started = time.monotonic()
    done = run(sys.executable, "train.py", cwd=folder)
    assert done.returncode == 78
    assert done.stderr.startswith("pima: no data at ")
    assert "PIMA_CSV" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 20, "before Keras is loaded"


@pytest.mark.skipif(not os.environ.get("PIMA_CSV"), reason="PIMA_CSV names no data")
@pytest.mark.parametrize("folder", ["pima"], indirect=True)
def test_pima_shows_the_three_strategies(folder):
    script = (folder / "train.py").read_text()
    # Left to chance, one start in hundreds has its best epoch first.
    (folder / "train.py").write_text(f"import keras\n\nkeras.utils.set_random_seed(7)\n{script}")
    done = run(sys.executable, "train.py", cwd=folder, PIMA_CSV=os.environ["PIMA_CSV"])
    assert done.returncode == 0, done.stderr
    assert "the best model on all data: loss" in done.stdout
    assert (folder / "best.weights.h5").exists()
    series = sorted(path.name for path in folder.glob("weights-improvement-*-0.*.weights.h5"))
    assert len(series) > 1
    assert "val_accuracy improved from" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
@pytest.mark.parametrize("folder", ["digits"], indirect=True)
def test_digits_is_an_ordinary_script(folder):
    assert "runner" not in (folder / "train.py").read_text().replace("nothing of the runner", "")
    done = run(sys.executable, "train.py", "--epochs", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "trained 2 epochs\ntest loss " in done.stdout


@pytest.mark.parametrize("folder", ["loop"], indirect=True)
def test_loop_runs_without_the_runner(folder):
    script = (folder / "train.py").read_text().replace("STEPS = 3_000", "STEPS = 100")
    (folder / "train.py").write_text(script)
    done = run(sys.executable, "train.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "after 100 steps: mean error" in done.stdout


@pytest.mark.parametrize("folder", ["stream"], indirect=True)
def test_stream_trains_by_virtual_epochs(folder):
    script = (folder / "train.py").read_text().replace("VIRTUAL_EPOCHS = 60", "VIRTUAL_EPOCHS = 2")
    (folder / "train.py").write_text(script.replace("60 * 50 * BATCH_SIZE", "2 * 50 * BATCH_SIZE"))
    done = run(sys.executable, "train.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2\n50/50" in done.stdout
    assert "mean error of the frequency" in done.stdout


@pytest.mark.parametrize("folder", ["shell"], indirect=True)
def test_shell_continues_after_a_kill(folder):
    script = (folder / "train.sh").read_text().replace("sleep 0.5", "sleep 0.05")
    (folder / "train.sh").write_text(script)
    first = subprocess.Popen(
        ["./train.sh"], cwd=folder, env=ENVIRON, stdout=subprocess.PIPE, start_new_session=True
    )
    progress = folder / "progress.txt"
    while not progress.exists() or int(progress.read_text().split()[0]) < 3:
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = run("./train.sh", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("continuing after chunk ")
    assert done.stdout.endswith("9592 primes below 100000\n")
