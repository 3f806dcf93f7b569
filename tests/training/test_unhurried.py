"""When the best model is written: soon enough, and not at every epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.core.spec import CheckpointSpec
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training.best import BestKeeper
from runner.training.saver import Saver
from runner.training.unhurried import Unhurried


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Asked(Saver):
    """A saver that notes when it is asked to have the best model written."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.asked: list[bool] = []

    def nudge(self) -> None:
        self.asked.append(True)


def snapshot_of(step: int) -> Callable[[], Snapshot]:
    return lambda: Snapshot(step, 0, {}, {"a": np.array([step])})


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Unhurried, Clock, JobPaths]:
    return make(tmp_path, CheckpointSpec())


def make(tmp_path: Path, spec: CheckpointSpec) -> tuple[Unhurried, Clock, JobPaths]:
    paths, clock = JobPaths(tmp_path), Clock()
    saver = Asked(paths, spec, lambda _fact: None)
    best = Unhurried(BestKeeper(paths, spec, lambda _fact: None), spec, saver, clock)
    best.due = saver.asked  # type: ignore[attr-defined]
    return best, clock, paths


def consider(best: Unhurried, step: int, loss: Any) -> str | None:
    """Judge an epoch, and do at once what is asked for soon."""
    due: list[bool] = best.due  # type: ignore[attr-defined]
    due.clear()
    message = best.consider(step, step, {"loss": loss}, snapshot_of(step), lambda _path: None)
    return best.flush() if due else message


def written(paths: JobPaths) -> int:
    return checkpoint.read(paths.best / "best.weights.h5").step


def test_the_first_is_written_at_once(parts: tuple[Unhurried, Clock, JobPaths]) -> None:
    best, _clock, paths = parts
    assert consider(best, 1, 9.0)
    assert written(paths) == 1


def test_the_next_waits_and_the_better_one_takes_its_place(parts: tuple[Unhurried, Clock, JobPaths]) -> None:
    best, _clock, paths = parts
    for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (4, 7.5), (5, None), (6, float("nan"))):
        consider(best, step, loss)
    assert written(paths) == 1
    assert best.flush()
    assert written(paths) == 3
    assert best.flush() is None


@pytest.mark.parametrize(("loss", "expected"), [(7.0, 3), (8.5, 2), (None, 2)])
def test_when_its_time_has_come(
    parts: tuple[Unhurried, Clock, JobPaths], loss: float | None, expected: int
) -> None:
    best, clock, paths = parts
    consider(best, 1, 9.0)
    consider(best, 2, 8.0)
    clock.now = 100.0
    assert consider(best, 3, loss)
    assert written(paths) == expected


def test_a_worse_one_never_waits(parts: tuple[Unhurried, Clock, JobPaths]) -> None:
    best, _clock, paths = parts
    consider(best, 1, 9.0)
    consider(best, 2, 9.0)
    assert best.flush() is None
    assert written(paths) == 1


def test_each_of_a_series_is_written_at_once(tmp_path: Path) -> None:
    best, _clock, paths = make(tmp_path, CheckpointSpec(best="w-{epoch:02d}.weights.h5"))
    for step, loss in ((0, 9.0), (1, 8.0), (2, 8.5), (3, 7.0)):
        consider(best, step, loss)
    assert sorted(path.name for path in paths.best.glob("*.h5")) == [
        "w-01.weights.h5", "w-02.weights.h5", "w-04.weights.h5",
    ]  # fmt: skip


def test_while_one_is_written_a_better_one_waits_and_a_worse_one_does_not(tmp_path: Path) -> None:
    """Training goes on while another thread writes; nothing is written twice, nothing better is lost."""
    spec, paths, clock = CheckpointSpec(), JobPaths(tmp_path), Clock()
    during: list[float] = [6.0, 7.0]

    def report(fact: dict[str, Any]) -> None:
        while fact["event"] == "best" and during:
            consider_only(len(during) + 10, during.pop())

    best = Unhurried(BestKeeper(paths, spec, report), spec, Asked(paths, spec, report), clock)

    def consider_only(step: int, loss: float) -> None:
        best.consider(step, step, {"loss": loss}, snapshot_of(step), lambda _path: None)

    consider_only(1, 8.0)
    assert best.flush()
    assert written(paths) == 1
    assert best.flush()
    assert written(paths) == 11
    assert best.flush() is None


def test_what_the_disk_refused_waits_on(tmp_path: Path) -> None:
    best, _clock, paths = make(tmp_path, CheckpointSpec())
    paths.best.write_text("a file where the folder should be")
    assert consider(best, 1, 9.0) is None
    paths.best.unlink()
    assert best.flush()
    assert written(paths) == 1


def test_what_is_saved_and_only_its_record_fails_does_not_wait(tmp_path: Path) -> None:
    best, _clock, paths = make(tmp_path, CheckpointSpec())
    (paths.best / "best.json").mkdir(parents=True)
    assert consider(best, 1, 9.0) is None
    assert written(paths) == 1
    assert best._waiting is None
