"""What the files of an attempt tell of its end."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runner.core.events import Ended
from runner.core.job import State
from runner.storage.layout import Home
from runner.supervisor.ends import read_outcome, signs_s
from tests.core.life import in_state


@pytest.mark.parametrize(
    ("told", "ran_s", "ended_s"),
    [
        ({"duration_s": 12.5, "ended_s": 700}, 12.5, 700.0),
        ({"duration_s": 12.5}, 12.5, None),
        ({"duration_s": -1, "ended_s": "soon"}, None, None),
        ({"duration_s": True, "ended_s": 1e300}, None, None),
    ],
)
def test_an_outcome_tells_how_long_it_ran(
    tmp_path: Path, told: dict[str, Any], ran_s: float | None, ended_s: float | None
) -> None:
    paths = Home(tmp_path).job("j").attempt(1)
    paths.outcome.parent.mkdir(parents=True)
    paths.outcome.write_text(json.dumps({"version": 1, "exit_code": 0, "signal": None, **told}))
    assert read_outcome(paths) == Ended(exit_code=0, ran_s=ran_s, ended_s=ended_s)


def test_where_nobody_saw_the_end_its_last_sign_of_life_tells(tmp_path: Path) -> None:
    paths, job = Home(tmp_path).job("j"), in_state(State.RUNNING).job
    assert job.current is not None
    started_s = datetime.fromisoformat(job.current.started_at).timestamp()
    assert signs_s(paths, job) == 0.0, "there is none"
    paths.attempt(1).log.parent.mkdir(parents=True)
    for path, seconds in ((paths.attempt(1).log, 40), (paths.progress, 90), (paths.attempt(1).facts, 60)):
        path.touch()
        os.utime(path, (0, started_s + seconds))
    assert signs_s(paths, job) == 90.0
    later = job.with_attempt(replace(job.current, started_at="2026-03-01T00:00:00+00:00"))
    assert signs_s(paths, later) == 0.0, "those are an earlier attempt's"
