"""What the worker's facts mean for the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.events import Reported
from runner.core.exactness import Kind
from runner.core.job import BestRef, CheckpointRef, Classified, Job, State
from runner.core.reports import apply_facts
from tests.core.life import ADMITTED, Life, at, in_state

CHECKPOINT = {"event": "checkpoint", "path": "checkpoints/a.h5", "step": 100, "epoch": 1}
BEST = {"event": "best", "path": "best/b.h5", "step": 80, "epoch": 1, "metric": "val_loss", "value": 0.25}
RESUMED = {"event": "resumed", "path": "checkpoints/a.h5", "step": 90, "epoch": 0, "exact": True}
NOW = at(60)


def running() -> Job:
    return in_state(State.RUNNING).job


def after(*facts: dict[str, Any], job: Job | None = None) -> Job:
    return apply_facts(job or running(), facts, NOW)


def test_a_checkpoint() -> None:
    job = after({**CHECKPOINT, "stall_s": 0.25, "size_bytes": 10, "save_s": 1.0})
    assert job.checkpoint == CheckpointRef("checkpoints/a.h5", 100, 1)
    assert job.checkpoint_at == NOW.iso
    assert (job.ledger.checkpoint_s, job.ledger.useful_s) == (0.25, -0.25)
    assert job.durable_step == 100


def test_the_end_of_a_fit_is_saved_work_where_it_is_kept() -> None:
    later, kept = at(90), {"event": "fit-finished", "fit": 0, "size_bytes": 10}
    job = after(CHECKPOINT)
    assert apply_facts(job, [kept], later).checkpoint_at == later.iso
    assert apply_facts(job, [{"event": "fit-finished", "fit": 0}], later).checkpoint_at == NOW.iso


def test_the_best() -> None:
    assert after(BEST).best == BestRef("best/b.h5", 80, 1, "val_loss", 0.25)
    assert after(BEST, {**BEST, "value": 2, "step": 3}).best == BestRef("best/b.h5", 3, 1, "val_loss", 2.0)


def test_what_was_resumed_from_memory_is_not_called_saved() -> None:
    job = after(CHECKPOINT, {**RESUMED, "path": None, "step": 105})
    assert job.checkpoint == after(CHECKPOINT).checkpoint
    assert job.durable_step == 100
    assert job.current is not None
    assert (job.current.start_step, job.current.resumed_at) == (105, NOW.iso)


def test_where_it_resumed_is_what_counts_from_now_on() -> None:
    job = after(CHECKPOINT, RESUMED)
    assert job.durable_step == 90
    assert job.current is not None
    assert job.current.start_step == 90


def test_a_quarantined_checkpoint_is_forgotten_another_is_not() -> None:
    gone = {"event": "quarantined", "path": "checkpoints/a.h5", "to": "quarantine/a.h5", "reason": "digest"}
    assert after(CHECKPOINT, gone).checkpoint is None
    assert after(CHECKPOINT, gone, RESUMED).durable_step == 90
    assert after(CHECKPOINT, {**gone, "path": "best/b.h5"}).durable_step == 100
    assert after(gone) == running()


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"exact": True}, "exact"),
        ({"exact": True, "reason": "arrays"}, "exact: arrays"),
        ({"exact": False, "reason": "a generator"}, "not exact: a generator"),
        ({"exact": True, "kind": "by-replay", "reason": "by replay: threads"}, "exact by replay: threads"),
        ({"exact": True, "kind": "by-replay", "reason": "threads"}, "exact by replay: threads"),
        ({"exact": False, "kind": "not-exact", "reason": "a generator"}, "not exact: a generator"),
    ],
)
def test_what_was_said_of_exactness(fact: dict[str, Any], said: str) -> None:
    assert after({"event": "classified", "fit": 0, **fact}).exactness == said


def test_what_was_said_of_exactness_is_kept_in_parts() -> None:
    first = {"event": "classified", "fit": 0, "exact": True, "kind": "by-replay", "reason": "threads"}
    missed = {"event": "warning", "message": "cannot be captured", "fit": 0, "missed": "Guard.door"}
    assert after(first).classified == Classified(0, Kind.BY_REPLAY, "threads")
    known = Classified(0, Kind.BY_REPLAY, "threads", 0.5, ("Guard.door",))
    assert after(first, missed, missed, {**RESUMED, "replay_s": 0.5}).classified == known
    assert after(first, missed, {"event": "replayed", "fit": 0, "replay_s": 0.5}).classified == known
    late = {**first, "exact": False, "kind": "not-exact", "reason": "late"}
    said = after(first, missed, {**RESUMED, "replay_s": 0.5}, late).classified
    assert said == replace(known, kind=Kind.NOT_EXACT, reason="late"), "of the same fit the rest stays"
    assert after(first, missed, {**first, "fit": 1}).classified == Classified(1, Kind.BY_REPLAY, "threads")
    assert after(first, {**missed, "fit": 3}).classified == after(first).classified


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "soon", 10**400, [], True])
def test_a_duration_that_is_none_spoils_no_resume(bad: Any) -> None:
    said = {"event": "classified", "fit": 0, "exact": True}
    assert after(said, {**RESUMED, "replay_s": bad}) == after(said, RESUMED)


def without(fact: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in fact.items() if k != key}


MALFORMED: list[dict[str, Any]] = [
    {},
    {"event": None},
    {"event": ["checkpoint"]},
    {"event": {"a": 1}},
    {"event": "never heard of"},
    *(without(CHECKPOINT, key) for key in ("path", "step", "epoch")),
    *(without(BEST, key) for key in ("path", "step", "epoch", "metric", "value")),
    *(without(RESUMED, key) for key in ("path", "step", "epoch")),
    *(
        {**CHECKPOINT, "step": bad}
        for bad in (-1, None, "100", 1.5, True, [], {}, float("inf"), 2**63, "NaN")
    ),
    *({**CHECKPOINT, "epoch": bad} for bad in (-1, None, float("nan"), 10**400)),
    *({**CHECKPOINT, "path": bad} for bad in (None, "", 7, ["a"], {})),
    *({**CHECKPOINT, "stall_s": bad} for bad in (None, "soon", [], 10**400)),
    *({**BEST, "value": bad} for bad in (None, "low", [], float("nan"), float("inf"), "NaN", 10**400)),
    {**RESUMED, "step": float("inf")},
    {"event": "quarantined"},
    {"event": "classified"},
    {"event": "classified", "exact": True, "kind": "perfect"},
    {"event": "classified", "exact": True, "fit": -1},
    {"event": "warning"},
    {"event": "warning", "missed": [], "fit": {}},
]


@pytest.mark.parametrize("fact", MALFORMED, ids=str)
def test_what_is_malformed_changes_nothing_and_stops_nothing(fact: dict[str, Any]) -> None:
    assert after(fact) == running()
    assert after(fact, CHECKPOINT) == after(CHECKPOINT)
    assert in_state(State.RUNNING).on(Reported((fact,), 9)).job.facts_read == 9


@pytest.mark.parametrize("stall", [-1.0, float("nan"), float("inf"), 1e308, "NaN", "Infinity", 3600])
def test_a_stall_is_never_longer_than_the_attempt(stall: Any) -> None:
    job = after({**CHECKPOINT, "stall_s": stall})
    assert job.durable_step == 100
    assert 0 <= job.ledger.checkpoint_s <= 59


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([10**400])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KINDS = ["checkpoint", "resumed", "quarantined", "best", "classified", "phase", "ended", "succeeded"]
KEYS = [
    "path",
    "step",
    "epoch",
    "value",
    "metric",
    "stall_s",
    "exact",
    "seq",
    "time",
    "attempt",
    "job",
    "moment",
]
FACTS = st.builds(
    lambda kind, rest: {"event": kind, **rest},
    st.one_of(st.sampled_from(KINDS), VALUES),
    st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), VALUES, max_size=8),
)


@given(st.lists(FACTS, max_size=5))
def test_no_fact_whatever_can_do_harm(facts: list[dict[str, Any]]) -> None:
    life = Life().all([ADMITTED])
    before = life.job
    after = life.on(Reported(tuple(facts), 1)).job
    assert after.durable_step >= 0
    assert [line["seq"] for line in after.outbox] == [before.revision + n + 1 for n in range(len(facts))]
    assert all(line["attempt"] == 1 and line["time"] == at(2).iso for line in after.outbox)
    keeps = {"name", "state", "attempt", "goal", "charged", "spec", "revision"} - {"revision"}
    assert all(getattr(before, key) == getattr(after, key) for key in keeps)
    assert replace(after.ledger, useful_s=0, checkpoint_s=0) == before.ledger
