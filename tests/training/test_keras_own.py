"""Keras's own tests come out the same under the instrumentation: a selection; `make keras-tests` runs all."""

from __future__ import annotations

from pathlib import Path

from tests.training.keras_own import SHORT, Comparison, Run, compare, differing, judge


def test_keras_tests_come_out_the_same(tmp_path: Path) -> None:
    comparison = compare(tmp_path, SHORT)
    assert not comparison.wrong, comparison.summary()
    assert comparison.ours.count("checkpoint")
    assert sum(outcome == "passed" for outcome in comparison.plain.outcomes.values()) > 20


def test_control_a_difference_is_seen_and_flaky_is_what_differs_plainly() -> None:
    plain = [{"a": "passed", "b": "passed", "c": "passed"}, {"b": "failed E", "c": "passed"}]
    ours = [{"a": "passed", "b": "failed E", "c": "failed E", "d": "passed"}, {"b": "passed", "c": "passed"}]
    comparison = Comparison(Run(plain[0], []), Run(ours[0], []))
    suspects = differing(plain[0], ours[0])
    assert suspects == ["b", "c", "d"]
    judge(comparison, suspects, plain, ours)
    assert list(comparison.flaky) == ["b"]
    assert list(comparison.different) == ["c", "d"]
    assert any("no fit was instrumented" in line for line in comparison.wrong)
