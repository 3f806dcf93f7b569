"""`tf.data` that runs Python code or shuffles anew: killed anywhere, it ends as undisturbed, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def killed_and_compared(tmp_path: Path, nursery: Nursery, fits: str, kill: str) -> Job:
    names = fits.split()
    undisturbed = Job(tmp_path / "undisturbed", "python_streams.py", nursery=nursery).run_through(*names)
    assert len(undisturbed.results) == len(names)
    job = Job(tmp_path / "killed", "python_streams.py", nursery=nursery)
    killed = job.run_through(*names, kill=kill, every=("steps", 1), saved=True)
    assert lost_or_gained(undisturbed.results, killed.results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))
    return job


@pytest.mark.parametrize(
    ("fits", "kill", "last"),
    [
        (
            "generator object endless hidden",
            "generator/train:12 object/train:8 endless/train:7 hidden/train:15",
            "by replay: the dataset runs Python code whose state is hidden",
        ),
        (
            "jittered pure cached joined repeated",
            "jittered/train:11 cached/train:13 joined/train:12 repeated/train:17",
            "by replay: a shuffle is begun anew",
        ),
    ],
    ids=["generators", "functions, caches and late reshuffles"],
)
def test_training_data(tmp_path: Path, nursery: Nursery, fits: str, kill: str, last: str) -> None:
    """`from_generator`, `py_function`, caches and late reshuffles."""
    job = killed_and_compared(tmp_path, nursery, fits, kill)
    reasons = {fact["fit"]: fact["reason"] for fact in job.facts_of("classified")}
    assert reasons[0] == "by replay of the epoch: the dataset runs Python code"
    assert reasons[max(reasons)].startswith(last)


@pytest.mark.parametrize(
    ("fits", "kill"),
    [
        (
            "validated validated-cached validated-noise",
            "validated/test:7 validated-cached/train:14 validated-noise/test:3",
        ),
        ("validated-anew twice twice-again", "validated-anew/train:15 twice-again/train:8"),
    ],
    ids=["by Python code", "anew, and shared"],
)
def test_validation_data(tmp_path: Path, nursery: Nursery, fits: str, kill: str) -> None:
    """The same for validation, and a dataset that two fits share."""
    killed_and_compared(tmp_path, nursery, fits, kill)
