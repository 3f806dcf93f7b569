"""Callbacks whose state comes into being while they listen: killed anywhere, they end as undisturbed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from runner.training import listeners
from runner.training.codec import Encoder
from runner.training.decode import Decoder
from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def test_state_that_comes_into_being_while_training(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "listening.py", nursery=nursery).run_through().results
    assert len(undisturbed) == 6
    job = Job(tmp_path / "killed", "listening.py", nursery=nursery)
    kill = (
        "objects/train:7@6 objects/end:2@11 globals/train:6@5 globals/begin:3@8 closure/train:7@6"
        " lazy-data/train:7@6 generators/train:7@6"
    )
    found = job.run_through(kill=kill, every=("steps", 1)).results
    assert lost_or_gained(undisturbed, found) == []
    assert [fact["message"] for fact in job.facts_of("warning")] == []
    assert len(job.facts_of("resumed")) == 7


def a_life(text: str, tmp_path: Path) -> Any:
    """Return a callback of a script's, as far as there is no need for Keras."""
    module = ModuleType("script")
    exec(compile(text, str(tmp_path / "script.py"), "exec"), module.__dict__)
    return module.__dict__["Listening"]()


def test_what_a_changed_script_has_no_place_for_is_named(tmp_path: Path) -> None:
    text = """
class Listening:
    def on_epoch_end(self):
        global first, second
        first = second = 1
        lists.append(1)
lists = []
"""
    first = a_life(text, tmp_path)
    first.on_epoch_end()
    arrays: dict[str, np.ndarray] = {}
    state, missed = listeners.capture(Encoder(arrays, "a"), [first], set())
    assert missed == []
    state = json.loads(json.dumps(state))
    same, changed = a_life(text, tmp_path), a_life(text.replace("second", "third"), tmp_path)
    assert listeners.restore(Decoder(arrays), [same], state) == []
    seen = same.on_epoch_end.__globals__
    assert (seen["first"], seen["second"], seen["lists"]) == (1, 1, [1])
    lost = listeners.restore(Decoder(arrays), [changed], state)
    assert lost == ["script.second (the script does not use it now)"]
    assert changed.on_epoch_end.__globals__["first"] == 1
    changed.on_epoch_end()
    lost = listeners.restore(Decoder(arrays), [changed], state)
    assert lost[1:] == ["script.third (the checkpoint does not have it)"]


def test_what_hides_its_state_is_named(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "listening.py", nursery=nursery)
    assert job.run("--hiding").code == 0
    named = [fact["missed"].partition(" ")[0] for fact in job.facts_of("warning")]
    assert sorted(named) == [
        "Hiding.items",
        "Hiding.table",
        "__main__.items",
        "__main__.numbers",
        "__main__.tallies",
    ]
