"""The short form of the matrix: a few variants; the negative control on one. `make matrix` runs it all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.play import Rules, Verdict, play
from tests.matrix.registry import groups, variants


def played(names: set[str], rules: Rules) -> list[Verdict]:
    chosen = [one for one in variants() if one.name in names]
    assert len(chosen) == len(names)
    return [
        verdict
        for number, group in enumerate(groups(chosen, 6))
        for verdict in play(group, rules, str(number))
    ]


def test_there_are_at_least_eighty() -> None:
    assert len(variants()) >= 80


def test_those_that_are_not_exact_are_kept_apart() -> None:
    for group in groups(variants(), 6):
        assert len(group) <= 6
        assert len({(one.script, one.seeded, bool(one.inexact)) for one in group}) == 1


@pytest.mark.parametrize(
    "names", ["csv-logger-appends tensorboard", "stream-endless stream-shared-with-callback"]
)
def test_a_few(names: str, tmp_path: Path) -> None:
    for verdict in played(set(names.split()), Rules(tmp_path, seed=5, forked=True)):
        assert not verdict.faults, str(verdict)
        assert len(verdict.deaths) == 3


def test_the_matrix_notices_a_resume_that_forgets_its_place_in_the_data(tmp_path: Path) -> None:
    """The negative control: without it, equal results would prove nothing."""
    rules = Rules(tmp_path, seed=3, kills=1, forgetful=True, forked=True)
    (verdict,) = played({"stream-seed"}, rules)
    assert any("variables differ" in fault for fault in verdict.faults), str(verdict)
