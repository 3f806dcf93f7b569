"""Callbacks whose state comes into being while they listen: killed anywhere, they end as undisturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from runner.training import listeners
from runner.training.codec import Encoder
from runner.training.decode import Decoder
from runner.training.listeners import Listener
from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


def test_state_that_comes_into_being_while_training(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "listening.py", nursery=nursery).run_through().results
    assert len(undisturbed) == 7
    job = Job(tmp_path / "killed", "listening.py", nursery=nursery)
    kill = (
        "objects/train:7@6 objects/end:2@8 globals/train:6@21 globals/begin:4@28 closure/train:7@38"
        " lazy-data/train:7@54 generators/train:7@70 classes/train:7@86 classes/end:2@88"
    )
    found = job.run_through(kill=kill, every=("steps", 1)).results
    assert lost_or_gained(undisturbed, found) == []
    assert [fact["message"] for fact in job.facts_of("warning")] == []
    assert len(job.facts_of("resumed")) == 9


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
    state, missed = listeners.capture(Encoder(arrays, "a"), [Listener(first)], set())
    assert missed == []
    state = json.loads(json.dumps(state))
    same, changed = a_life(text, tmp_path), a_life(text.replace("second", "third"), tmp_path)
    assert listeners.restore(Decoder(arrays), [Listener(same)], state) == []
    seen = same.on_epoch_end.__globals__
    assert (seen["first"], seen["second"], seen["lists"]) == (1, 1, [1])
    lost = listeners.restore(Decoder(arrays), [Listener(changed)], state)
    assert lost == ["script.second (the script does not use it now)"]
    assert changed.on_epoch_end.__globals__["first"] == 1
    changed.on_epoch_end()
    lost = listeners.restore(Decoder(arrays), [Listener(changed)], state)
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


BOARD = """
import keras, numpy as np
from victim import Mortal
x = np.random.RandomState(1).rand(32, 4).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
board = keras.callbacks.TensorBoard("logs", write_graph=False)
model.fit(x, x[:, :1], batch_size=8, epochs=6, verbose=0, callbacks=[board, Mortal("board")])
"""


def test_event_files_of_others_in_the_same_folder_are_let_be(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=BOARD, nursery=nursery)
    folder = job.folder / "logs" / "train"
    folder.mkdir(parents=True)
    now_s, host, process = int(time.time()), socket.gethostname(), os.getpid()
    theirs = [
        folder / f"events.out.tfevents.{time_s}.{where}.{process}.0.v2"
        for time_s, where in ((now_s, host), (now_s - 9, host), (now_s, "elsewhere"))
    ]
    for path in theirs:
        path.write_bytes(b"begun")
    for kill in ("board/train:6@5", "board/train:6@5 board/train:10@9"):
        assert job.run(env={"KILL": kill}, every=("steps", 1)).code == -signal.SIGKILL
        for path in theirs:
            with path.open("ab") as file:
                file.write(b" and gone on")
    assert job.run(every=("steps", 1)).code == 0
    assert [path.read_bytes() for path in theirs] == [b"begun" + 2 * b" and gone on"] * 3
    assert job.facts_of("warning") == []
    ours = [path for path in folder.iterdir() if path not in theirs]
    assert len(ours) == 3
    assert len(job.facts_of("resumed")) == 2
