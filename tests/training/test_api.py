"""The Python API: loops that are not `fit`."""

from __future__ import annotations

from pathlib import Path

import pytest

import runner
from tests.training.harness import Job


def test_outside_the_runner_nothing_happens() -> None:
    run = runner.attach()
    assert list(run.steps(3)) == [0, 1, 2]
    assert list(run.steps(5)) == [3, 4]
    run.report(3, loss=1.0)
    run.checkpoint()
    assert not run.should_stop
    assert list(run.track([1, 2])) == [1, 2]
    run.state["seen"] = [1, {"a": None}]
    assert run.state["seen"] == [1, {"a": None}]


@pytest.mark.parametrize("value", [object(), (1, 2), {1: 2}, float("nan"), {"a": {1}}])
def test_state_takes_only_what_json_can_hold(value: object) -> None:
    with pytest.raises(TypeError, match="JSON"):
        runner.attach().state["x"] = value


@pytest.mark.parametrize("every", ["", "often", "-3s", "5 parsecs"])
def test_a_cadence_that_cannot_be_read(every: str) -> None:
    with pytest.raises(ValueError, match="every"):
        runner.attach(every=every)


def test_a_loop_is_resumed_exactly(tmp_path: Path) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "loop.py").run_through().results
    job = Job(tmp_path / "killed", "loop.py")
    done = job.run_through(kill="loop/step:14 loop/step:20 loop/step:29")
    assert done.results == undisturbed
    resumed = [fact["step"] for fact in job.facts_of("resumed")]
    assert all(0 < step <= died and step % 3 == 0 for step, died in zip(resumed, (14, 20, 29), strict=True))
    assert [line["step"] for line in job.metrics()] == list(range(0, 40, 4))
    assert job.facts_of("best")


def test_a_plain_loop_gives_the_same(tmp_path: Path) -> None:
    plain = Job(tmp_path / "plain", "loop.py").plain()
    assert plain.results == Job(tmp_path / "ours", "loop.py").run().results, plain.errors
