"""checkpoints, best, export and submit --from, on a job with real checkpoint files."""

from __future__ import annotations

import json
import zipfile

import h5py
import numpy as np
import pytest

from runner.cli import wait
from runner.core.job import BestRef, CheckpointRef, Job, State
from runner.errors import DaemonNotRunningError
from runner.storage import checkpoint, records


@pytest.fixture
def trained(runner):
    """A job that has succeeded: checkpoints of 10 and 20, the end of its fit at 25, a best of step 15."""
    runner("submit", str(runner.folder("digits")))
    paths = runner.home.job("digits")
    for folder in (paths.checkpoints, paths.best):
        folder.mkdir(parents=True)
    files = {
        10: paths.checkpoint(10),
        20: paths.checkpoint(20),
        25: paths.fit(0),
        15: paths.best / "best.weights.h5",
    }
    for step, path in files.items():
        snapshot = checkpoint.Snapshot(step, step // 10, {}, {"variables/0": np.full(1000, step, np.float32)})
        checkpoint.write(path, snapshot, created="2026-01-01T00:00:00Z")
    record = Job(
        "digits",
        State.SUCCEEDED,
        "2026-01-01T00:00:00Z",
        1,
        checkpoint=CheckpointRef("checkpoints/step-000000000020.weights.h5", 20, 2),
        best=BestRef("best/best.weights.h5", 15, 1, "val_accuracy", 0.75),
    )
    records.save_job(paths.record, record)
    return runner


def value(path):
    with h5py.File(path) as file:
        return float(file["runner/arrays/variables/0"][0])


def test_listing(trained):
    found = trained("checkpoints", "digits", "--json").json
    assert [(entry["step"], entry["epoch"], entry["verified"]) for entry in found] == [
        (10, 1, None),
        (20, 2, None),
        (25, 2, None),
    ]
    assert found[0]["size_bytes"] > 4000
    assert "step-000000000020.weights.h5" in trained("checkpoints", "digits").out
    assert all(entry["verified"] for entry in trained("checkpoints", "digits", "--verify", "--json").json)


def test_pins(trained):
    """What the training does with a pin, tests/training/test_saver.py shows."""
    found = trained("checkpoints", "digits", "--pin", "10", "--json").json
    assert [entry["pinned"] for entry in found] == [True, False, False]
    assert trained.home.job("digits").pin(10).exists()
    assert "PINNED" in trained("checkpoints", "digits").out
    refused = trained("checkpoints", "digits", "--pin", "15")
    assert (refused.code, refused.complaint()) == (
        5,
        "digits: there is no checkpoint of step 15 to pin; there are: 10, 20",
    )
    assert not trained.home.job("digits").pin(15).exists()
    assert "PINNED" not in trained("checkpoints", "digits", "--unpin", "10").out
    assert not trained.home.job("digits").pin(10).exists()


@pytest.mark.parametrize("place", [100, 3000, -1])
def test_one_flipped_byte_is_found(trained, place):
    path = trained.home.job("digits").checkpoint(10)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    answer = trained("checkpoints", "digits", "--verify", "--json")
    assert answer.code == 1
    assert [entry["verified"] for entry in answer.json] == [False, True, True]
    assert "NO: " in trained("checkpoints", "digits", "--verify").out
    answer = trained("export", "digits", "--step", "10", "out.weights.h5")
    assert answer.code == 1
    assert str(path) in answer.complaint()
    assert not (trained.root / "out.weights.h5").exists()
    trained.folder("next")
    assert trained("submit", "next", "--from", "digits@10").code == 1
    assert list(trained.home.submitted()) == ["digits"]


def test_best(trained):
    found = trained("best", "digits", "--json").json
    assert (found["best"]["metric"], found["best"]["value"], found["best"]["step"]) == (
        "val_accuracy",
        0.75,
        15,
    )
    assert found["kept"] == [found["best"]["path"]]
    assert "val_accuracy  0.75" in trained("best", "digits").out


@pytest.mark.parametrize(
    ("words", "step"), [([], 15), (["--best"], 15), (["--step", "10"], 10), (["--step", "25"], 25)]
)
def test_export(trained, words, step):
    answer = trained("export", "digits", *words, "out.weights.h5")
    assert (answer.code, answer.out) == (0, f"out.weights.h5: digits@{step}, verified\n")
    assert value(trained.root / "out.weights.h5") == step
    assert trained("export", "digits", *words, "out.weights.h5").code == 5
    assert trained("export", "digits", *words, "out.weights.h5", "--force").code == 0


def test_what_cannot_be_exported(trained):
    assert "there are 10, 20, 25" in trained("export", "digits", "--step", "11", "x.weights.h5").complaint()
    assert 'set checkpoint.best = "best.keras"' in trained("export", "digits", "x.keras").complaint()
    assert trained("export", "digits", "--best", "--step", "1", "x.weights.h5").code == 2
    assert trained("export", "digits", "no/such/x.weights.h5").code == 2
    (trained.home.job("digits").best / "best.weights.h5").unlink()
    assert trained("export", "digits", "x.weights.h5").code == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_model(trained, whole):
    paths = trained.home.job("digits")
    with zipfile.ZipFile(paths.best / "best.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(paths.checkpoint(10), "model.weights.h5")
    job = records.load_job(paths.record)
    from dataclasses import replace

    assert job.best is not None
    records.save_job(paths.record, replace(job, best=replace(job.best, path="best/best.keras")))
    out = "out.keras" if whole else "out.weights.h5"
    assert trained("export", "digits", out).code == 0
    source = paths.best / "best.keras" if whole else paths.checkpoint(10)
    assert (trained.root / out).read_bytes() == source.read_bytes()
    assert (
        "name a checkpoint by its step"
        in trained("submit", str(trained.folder("n")), "--from", "digits@best").err
    )


@pytest.mark.parametrize(
    ("origin", "step"), [("digits", 25), ("digits@10", 10), ("digits@25", 25), ("digits@best", 15)]
)
def test_a_job_from_anothers_checkpoint(trained, origin, step):
    trained.folder("next")
    answer = trained("submit", "next", "--from", origin)
    assert (answer.code, answer.out.partition(";")[0]) == (0, f"next: submitted from digits@{step}")
    folder = trained.home.folder("next")
    assert value(folder / ".from.weights.h5") == step
    assert json.loads((folder / ".submitted.json").read_text())["source"] == f"digits@{step}"


def test_waiting_for_nobody(trained, monkeypatch):
    trained("submit", str(trained.folder("next")))
    monkeypatch.setattr(wait, "_ALONE_S_MAX", 0.2)
    with pytest.raises(DaemonNotRunningError, match="next: queued, and no supervisor runs on"):
        wait._wait(trained.home, "next", None)
