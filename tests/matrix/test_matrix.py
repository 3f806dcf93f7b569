"""The short form of the matrix: a few variants; the negative control on one. `make matrix` runs it all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.play import Rules, play
from tests.matrix.registry import groups, variants

SHORT = ("arrays-validation-data", "csv-logger-appends", "tensorboard", "stream-endless")


def test_there_are_at_least_eighty() -> None:
    found = variants()
    assert len(found) >= 80
    assert set(SHORT) <= {one.name for one in found}


def test_those_that_are_not_exact_are_kept_apart() -> None:
    for group in groups(variants(), 6):
        assert len(group) <= 6
        assert len({(one.script, one.seeded, bool(one.inexact)) for one in group}) == 1


@pytest.mark.parametrize("name", ["arrays-validation-data", "tensorboard", "stream-endless"])
def test_a_few(name: str, tmp_path: Path) -> None:
    chosen = [one for one in variants() if one.name == name]
    for verdict in play(chosen, Rules(tmp_path, seed=5, kills=3), name):
        assert not verdict.faults, str(verdict)
        assert len(verdict.deaths) == 3


def test_the_matrix_notices_a_resume_that_forgets_its_place_in_the_data(tmp_path: Path) -> None:
    """The negative control: without it, equal results would prove nothing."""
    chosen = [one for one in variants() if one.name == "stream-seed"]
    (verdict,) = play(chosen, Rules(tmp_path, seed=3, kills=1, forgetful=True), "control")
    assert any("variables differ" in fault for fault in verdict.faults), str(verdict)
