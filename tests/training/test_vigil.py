"""How an attempt ends is told; the next one goes back further, or learns more slowly, where it is to."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from runner.storage import checkpoint
from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery

SCRIPT = """
import os, sys
import keras, numpy as np
from victim import until_saved
keras.utils.set_random_seed(7)
x = np.random.RandomState(1).rand(60, 4).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), "mse")

class Trouble(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        step, trouble = int(self.model.optimizer.iterations), os.environ.get("TROUBLE")
        if step == 5 and trouble == "bug":
            until_saved(3)
        if step == 8 and trouble == "bug":
            until_saved(6)
            raise ValueError("no such class\\nsecond line")
        if step == 8 and trouble == "nan" and float(self.model.optimizer.learning_rate) > 0.007:
            until_saved(7)
            weights = self.model.layers[0].kernel
            weights.assign(weights * float("nan"))
        if step == 9 and trouble == "nan":
            until_saved(8)

if os.environ.get("TROUBLE") == "exit":
    sys.exit(9)
history = model.fit(x, x[:, :1], batch_size=10, epochs=3, verbose=0, callbacks=[Trouble()])
print("RESULT", float(model.optimizer.learning_rate), history.history["loss"], flush=True)
"""
#: Fails within a step, from what the checkpoint of step 9 holds.
POISONED = SCRIPT.replace(
    "model = keras.Sequential(",
    """class Poisoned(keras.Sequential):
    def train_step(self, data):
        if int(self.optimizer.iterations) == 9 and os.environ.get("TROUBLE") == "state":
            until_saved(9)
            raise ValueError("poisoned")
        return super().train_step(data)

model = Poisoned(""",
).replace('"mse")', '"mse", run_eagerly=True)')
#: Around a script that raises.
CAUGHT = """
except ValueError:
    from runner.training import worker
    print("RESULT", worker.current().progress.values["phase"], flush=True)
"""
RETREAT = {"before": None, "learning_rate": 1.0, "reason": "the same failure followed twice"}


def result(attempt: Attempt) -> str:
    assert attempt.code == 0, attempt.errors
    return next(line for line in attempt.output.splitlines() if line.startswith("RESULT"))


def job(root: Path, nursery: Nursery | None, **launch: Any) -> Job:
    return Job(root, "train.py", text=SCRIPT, nursery=nursery, **launch)


def test_the_same_failure_is_left_behind_from_an_older_checkpoint(tmp_path: Path, nursery: Nursery) -> None:
    calm = job(tmp_path / "calm", nursery).run()
    rough = job(tmp_path / "rough", nursery)
    attempts = [rough.run(env={"TROUBLE": "bug"}) for _ in range(2)]
    assert [attempt.code for attempt in attempts] == [1, 1]
    first, second = rough.facts_of("raised")
    line = 1 + SCRIPT.splitlines().index('            raise ValueError("no such class\\nsecond line")')
    assert first == {
        "event": "raised",
        "kind": "ValueError",
        "message": "no such class",
        "where": [
            f"train.py:{len(SCRIPT.splitlines()) - 1} in <module>",
            f"train.py:{line} in on_train_batch_end",
        ],
        "step": 7,
        "started": True,
    }
    assert second == first
    assert rough.facts_of("resumed", 2)[0]["step"] == 6
    third = rough.run(retreat={**RETREAT, "before": 6})
    (resumed,) = rough.facts_of("resumed", 3)
    assert (resumed["step"], resumed["exact"]) == (3, True)
    (aside,) = rough.facts_of("quarantined", 3)
    assert aside["reason"] == RETREAT["reason"]
    checkpoint.verify(rough.paths.dir / aside["to"])
    assert result(third) == result(calm)


def test_the_first_step_after_a_resume_fails_in_training_not_as_the_script_starts(
    tmp_path: Path, nursery: Nursery
) -> None:
    here = Job(tmp_path, "train.py", text=POISONED, nursery=nursery)
    attempts = [here.run(env={"TROUBLE": "state"}) for _ in range(2)]
    assert [attempt.code for attempt in attempts] == [1, 1]
    first, second = here.facts_of("raised")
    assert here.facts_of("resumed", 2)[0]["step"] == 9
    assert (first["message"], first["step"], first["started"]) == ("poisoned", 9, True)
    assert second == first


def test_what_a_script_does_after_it_has_caught_an_exception_is_its_own(
    tmp_path: Path, nursery: Nursery
) -> None:
    """No step is waited for then, which would be called a hang."""
    caught = f"try:\n{textwrap.indent(SCRIPT, '    ')}\n{CAUGHT}"
    here = Job(tmp_path, "train.py", text=caught, nursery=nursery)
    ended = here.run(env={"TROUBLE": "bug"}, every=("steps", 3))
    assert result(ended) == "RESULT after"


def test_where_nothing_is_older_the_newest_is_kept(tmp_path: Path, nursery: Nursery) -> None:
    here = job(tmp_path, nursery)
    here.run(env={"TROUBLE": "bug"})
    assert result(here.run(retreat={**RETREAT, "before": 3}))
    assert here.facts_of("resumed", 2)[0]["step"] == 6
    (warning,) = here.facts_of("warning", 2)
    assert warning["message"] == f"there is no older checkpoint to go back to: {RETREAT['reason']}"
    assert not here.facts_of("quarantined")


def test_a_loss_that_is_not_finite_is_told_and_its_weights_are_not_resumed(
    tmp_path: Path, nursery: Nursery
) -> None:
    calm = job(tmp_path / "calm", nursery).run()
    rough = job(tmp_path / "rough", nursery, nan={"mode": "rollback", "loss_max": None})
    ended = rough.run(env={"TROUBLE": "nan"}, every=("steps", 1))
    assert ended.code == 1
    assert "the attempt ends" in ended.errors
    (raised,) = rough.facts_of("raised")
    assert (raised["kind"], raised["message"]) == ("not-finite", "loss is nan at step 9")
    slower = rough.run(env={"TROUBLE": "nan"}, every=("steps", 1), retreat={**RETREAT, "learning_rate": 0.5})
    (aside,) = rough.facts_of("quarantined", 2)
    assert aside["reason"] == 'it holds weights that are no numbers (limits.nan = "rollback")'
    (resumed,) = rough.facts_of("resumed", 2)
    assert (resumed["step"], resumed["exact"], resumed["reason"]) == (7, False, RETREAT["reason"])
    rate, losses = result(slower).split()[1:3]
    assert float(rate) == pytest.approx(0.005)
    assert losses == result(calm).split()[2], "the first epoch was over"
    assert result(slower) != result(calm)


def test_what_the_job_does_not_mind(tmp_path: Path, nursery: Nursery) -> None:
    here = job(tmp_path, nursery)
    assert "nan" in result(here.run(env={"TROUBLE": "nan"}, every=("steps", 1)))
    assert not here.facts_of("raised")


def test_a_loss_beyond_its_bound(tmp_path: Path, nursery: Nursery) -> None:
    here = job(tmp_path, nursery, nan={"mode": "fail", "loss_max": 1e-9})
    assert here.run().code == 1
    (raised,) = here.facts_of("raised")
    assert "more than limits.loss_max = 1e-09 at step" in raised["message"]


def test_an_exit_code_is_told_too(tmp_path: Path, nursery: Nursery) -> None:
    here = job(tmp_path, nursery)
    assert here.run(env={"TROUBLE": "exit"}).code == 9
    (raised,) = here.facts_of("raised")
    assert (raised["kind"], raised["message"], raised["started"]) == ("SystemExit", "9", False)
