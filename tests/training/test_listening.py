"""Callbacks whose state comes into being while they listen: killed anywhere, they end as undisturbed."""

from __future__ import annotations

from pathlib import Path

from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def test_state_that_comes_into_being_while_training(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "listening.py", nursery=nursery).run_through().results
    assert len(undisturbed) == 1
    job = Job(tmp_path / "killed", "listening.py", nursery=nursery)
    kill = "objects/train:7@6 objects/end:2@11"
    found = job.run_through(kill=kill, every=("steps", 1)).results
    assert lost_or_gained(undisturbed, found) == []
    assert [fact["message"] for fact in job.facts_of("warning")] == []
    assert len(job.facts_of("resumed")) == 2
