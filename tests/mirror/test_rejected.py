"""What was put aside for what it holds is gone from the mirror too: no other home goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.storage import mirrored
from runner.storage.layout import Home, JobPaths
from runner.training.quarantine import set_aside
from tests.mirror.servers import Place
from tests.mirror.test_copying import copier, make_home, save

FETCH = "--fetch", "job", "--attempt", "1"


def copy(home: Home, *options: str) -> JobPaths:
    paths = home.job("job")
    paths.attempt(1).dir.mkdir(parents=True, exist_ok=True)
    assert copier(home, *options).wait(60) == 0
    return paths


def put_aside(home: Home, *steps: int, rejected: bool = True) -> None:
    told: list[dict[str, Any]] = []
    for step in steps:
        paths = home.job("job")
        set_aside(paths, paths.checkpoint(step), "why", told.append, rejected=rejected)
    assert [fact["event"] for fact in told] == ["quarantined"] * len(steps)


def steps_on(place: Place) -> set[int]:
    return {step for name in place.files("job") if (step := mirrored.step_of(name)) is not None}


def test_another_home_goes_on_from_before_what_was_rejected(tmp_path: Path, folder: Place) -> None:
    first = make_home(tmp_path / "first", folder.url, 4096, (1, 2, 3, 4, 5))
    copy(first)
    assert steps_on(folder) == {1, 2, 3, 4, 5}
    put_aside(first, 2, rejected=False)
    put_aside(first, 4, 5)
    paths = copy(first)
    assert steps_on(folder) == {1, 2, 3}, "of what is damaged here the mirror has a good copy"
    assert mirrored.load(paths).files.keys() <= folder.files("job").keys()
    second = copy(make_home(tmp_path / "second", folder.url, 0, ()), *FETCH)
    assert [step for step, _ in second.list_checkpoints()] == [3]


def test_what_is_saved_later_under_the_same_name_stays(tmp_path: Path, folder: Place) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (1, 2))
    copy(home)
    put_aside(home, 2)
    save(home.job("job").checkpoint(2), 2, 8192)
    for _ in range(2):
        paths = copy(home)
        assert folder.files("job")["checkpoints/step-000000000002.weights.h5"] == (
            paths.checkpoint(2).read_bytes()
        )


def test_where_all_was_rejected_training_begins_anew(tmp_path: Path, folder: Place) -> None:
    home = make_home(tmp_path / "home", folder.url, 4096, (1, 2))
    home.job("job").metrics.write_text("{}\n")
    copy(home)
    home.job("job").metrics.write_text("")
    put_aside(home, 1, 2)
    assert not mirrored.must_fetch(home.job("job"), folder.url, "job"), "before the mirror has followed"
    paths = copy(home)
    assert steps_on(folder) == set()
    assert folder.files("job")["metrics.jsonl"], "nothing else is touched where there is nothing to copy"
    assert not mirrored.must_fetch(paths, folder.url, "job")


def test_a_fetch_brings_nothing_back_that_was_rejected(tmp_path: Path, folder: Place) -> None:
    copy(make_home(tmp_path / "first", folder.url, 4096, (1, 2)))
    second = make_home(tmp_path / "second", folder.url, 0, ())
    for step in (2, 1):
        paths = copy(second, *FETCH)
        assert [found for found, _ in paths.list_checkpoints()] == [step]
        put_aside(second, step)
        # As the process that copies finds it: there is one that this home never had.
        status = mirrored.load(paths)
        mirrored.save(paths, mirrored.Status(**{**vars(status), "strange": step == 2}))
        assert mirrored.must_fetch(paths, folder.url, "job") == (step == 2)
