"""What changes between two attempts is noticed, and said: the script, the data of a fit, the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runner.training import fingerprint
from tests.training.harness import Job
from tests.training.nursery import Nursery


def give(job: Job, first: int, second: int) -> None:
    for name, seed in (("first", first), ("second", second)):
        np.save(job.folder / f"{name}.npy", np.random.default_rng(seed).random((20, 3), np.float32))


def killed_in_the_second_fit(root: Path, nursery: Nursery) -> Job:
    job = Job(root, "changing.py", nursery=nursery)
    give(job, 1, 2)
    attempt = job.run(env={"KILL": "second/train:6@13"}, every=("steps", 1))
    assert attempt.code == -9
    return job


def undisturbed(root: Path, nursery: Nursery, first: int, second: int) -> dict[str, str]:
    job = Job(root, "changing.py", nursery=nursery)
    give(job, first, second)
    return job.run().results


def warnings(job: Job) -> list[str]:
    return [fact["message"] for fact in job.facts_of("warning")]


def test_a_fit_with_other_data_is_trained_again_and_what_follows_it(tmp_path: Path, nursery: Nursery) -> None:
    job = killed_in_the_second_fit(tmp_path / "killed", nursery)
    give(job, 3, 2)
    done = job.run()
    assert done.code == 0, done.errors
    assert done.results == undisturbed(tmp_path / "undisturbed", nursery, 3, 2)
    assert any("the data of fit 0 have changed" in message for message in warnings(job))
    assert not job.facts_of("resumed")
    assert [fact["fit"] for fact in job.facts_of("fit-finished")][-2:] == [0, 1]
    assert [line["fit"] for line in job.metrics()] == [0, 0, 1, 1]
    aside = {fact["path"] for fact in job.facts_of("quarantined")}
    assert "checkpoints/fit-000.weights.h5" in aside
    assert all("/rejected-" in fact["to"] for fact in job.facts_of("quarantined")), "mirrors follow"


def test_a_fit_whose_data_stay_is_not_trained_again(tmp_path: Path, nursery: Nursery) -> None:
    job = killed_in_the_second_fit(tmp_path / "killed", nursery)
    give(job, 1, 3)
    done = job.run()
    assert done.code == 0, done.errors
    assert done.results["first"] == undisturbed(tmp_path / "undisturbed", nursery, 1, 3)["first"]
    (resumed,) = job.facts_of("resumed")
    assert (resumed["exact"], resumed["reason"]) == (False, "the data have changed")
    assert not job.facts_of("quarantined")


def test_a_changed_script_is_said_and_its_fits_are_restored(tmp_path: Path, nursery: Nursery) -> None:
    job = killed_in_the_second_fit(tmp_path / "killed", nursery)
    script = job.folder / "changing.py"
    script.write_text(script.read_text() + "print('changed')\n")
    done = job.run()
    assert done.code == 0, done.errors
    assert done.results == undisturbed(tmp_path / "undisturbed", nursery, 1, 2)
    assert any("the script has changed since fit 0 was done" in message for message in warnings(job))
    (resumed,) = job.facts_of("resumed")
    assert (resumed["exact"], resumed["reason"]) == (False, "the script has changed")


def test_differences_are_named() -> None:
    saved = fingerprint.machine() | {"source": "a", "data": "b"}
    assert fingerprint.differences(saved, saved) == []
    other = saved | {
        "numpy": "0.1",
        "cpu features": [*saved["cpu features"][1:], "avx9"],
        "source": "c",
        "flags": saved["flags"] | {"TF_ENABLE_ONEDNN_OPTS": "7"},
    }
    gone = saved["cpu features"][0]
    assert fingerprint.differences(saved, other) == [
        f"numpy was {saved['numpy']}, is 0.1",
        f"cpu features: now without {gone} and with avx9",
        "the script has changed",
        f"TF_ENABLE_ONEDNN_OPTS was {saved['flags']['TF_ENABLE_ONEDNN_OPTS']}, is 7",
    ]


def test_data_of_every_kind_have_a_digest() -> None:
    import tensorflow as tf

    x = np.arange(12.0).reshape(6, 2)
    kinds = [
        {"x": x},
        {"x": {"a": x, "b": [x]}},
        {"x": tf.constant(x)},
        {"x": tf.data.Dataset.from_tensor_slices((x, x)).shuffle(3).batch(2)},
        {"x": x, "validation_data": (x, x)},
    ]
    for kind in kinds:
        before = fingerprint.data(kind)
        assert before is not None
        assert before == fingerprint.data(kind)
    assert fingerprint.data({"x": x}) != fingerprint.data({"x": x + 1})
    assert fingerprint.data({"x": tf.data.Dataset.from_tensor_slices(x)}) != fingerprint.data(
        {"x": tf.data.Dataset.from_tensor_slices(x + 1)}
    )
    assert fingerprint.data({"x": iter([])}) is None
