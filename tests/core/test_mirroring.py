"""Whose a mirror is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from runner.core import mirroring
from runner.core.mirroring import Identity, refusal, work_of
from runner.core.reports import apply_facts
from tests.core.life import at, queued

MIRROR = Identity("digits", "work", "owner", 7, 2)


@pytest.mark.parametrize(
    ("mine", "work", "found", "word"),
    [
        ("", "work", None, None),
        ("owner", "work", None, None),
        ("", "work", MIRROR, None),  # the same job, on another machine
        ("owner", "work", MIRROR, None),
        ("owner", "other", MIRROR, None),  # its script was edited: it is this home's all the same
        ("", "other", MIRROR, "another job's"),
        ("other", "work", MIRROR, "another home"),
        ("other", "other", MIRROR, "another home"),
    ],
)
def test_who_may_use_a_mirror(mine: str, work: str, found: Identity | None, word: str | None) -> None:
    why = refusal(mine, work, found)
    assert (why is None) == (word is None)
    assert word is None or word in str(why)


def test_what_was_trained_with_another_seed_is_not_mixed() -> None:
    assert refusal("", "work", MIRROR, seed=7) is None
    assert refusal("owner", "work", MIRROR, seed=8) is None
    assert "another seed" in str(refusal("", "work", MIRROR, seed=8))


def test_an_identity_comes_back_as_it_went() -> None:
    assert mirroring.parse({"version": 1, **asdict(MIRROR)}) == MIRROR


@pytest.mark.parametrize(
    "wrong", [{"version": 2}, {"owner": ""}, {"seed": -1}, {"threads": "2"}, {"work": None}]
)
def test_what_is_no_identity_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        mirroring.parse({"version": 1, **asdict(MIRROR), **wrong})


def test_what_is_run_makes_a_job_its_own_and_how_does_not() -> None:
    spec = {"entry": "train.py", "args": ["1"], "env": {}, "checkpoint": {"keep": 3}}
    assert work_of(spec) == work_of({**spec, "checkpoint": {"keep": 5}, "priority": 3})
    for change in ({"entry": "b.py"}, {"args": []}, {"env": {"A": "1"}}, {"seed": 1}, {"source": "a@1"}):
        assert work_of({**spec, **change}) != work_of(spec)


def test_what_comes_from_a_mirror_is_taken_into_the_record() -> None:
    best = {"path": "best/b.h5", "step": 80, "epoch": 1, "metric": "loss", "value": 0.25}
    fact = {"event": "restored", "path": "checkpoints/c.h5", "step": 90, "epoch": 2, "seed": 11, "threads": 5}
    job = apply_facts(queued(), [{**fact, "best": best}], at(0))
    assert (job.seed, job.threads, job.durable_step) == (11, 5, 90)
    assert job.best is not None
    assert job.best.step == 80
    job = apply_facts(queued(), [{"event": "restored", "seed": 11, "threads": 5}], at(0))
    assert (job.seed, job.checkpoint) == (11, None)
    assert apply_facts(queued(), [{**fact, "seed": "11"}], at(0)) == queued()
