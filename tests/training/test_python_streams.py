"""`tf.data` that runs Python code or shuffles anew: killed anywhere, it ends as undisturbed, to the bit."""

from __future__ import annotations

from pathlib import Path

from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def killed_and_compared(tmp_path: Path, nursery: Nursery, data: str, count: int, kill: str) -> Job:
    undisturbed = (
        Job(tmp_path / "undisturbed", "python_streams.py", nursery=nursery).run_through(data).results
    )
    assert len(undisturbed) == count
    job = Job(tmp_path / "killed", "python_streams.py", nursery=nursery)
    killed = job.run_through(data, kill=kill, every=("steps", 1), saved=True)
    assert lost_or_gained(undisturbed, killed.results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))
    return job


def test_training_data(tmp_path: Path, nursery: Nursery) -> None:
    """`from_generator`, `py_function`, caches and late reshuffles."""
    kill = (
        "generator/train:12 object/train:8 endless/train:7 hidden/train:15 jittered/train:11 cached/train:13"
        " repeated/train:17 joined/train:12"
    )
    job = killed_and_compared(tmp_path, nursery, "train", 9, kill)
    reasons = {fact["fit"]: fact["reason"] for fact in job.facts_of("classified")}
    assert reasons[0] == "by replay of the epoch: the dataset runs Python code"
    assert reasons[3].startswith("by replay: the dataset runs Python code whose state is hidden")
    assert reasons[7].startswith("by replay: a shuffle is begun anew")


def test_validation_data(tmp_path: Path, nursery: Nursery) -> None:
    """The same for validation, and a dataset that two fits share."""
    kill = (
        "validated/test:7 validated-cached/train:14 validated-noise/test:3 validated-anew/train:15"
        " twice-again/train:8"
    )
    killed_and_compared(tmp_path, nursery, "validation", 6, kill)
