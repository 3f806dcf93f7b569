"""Data that Python code makes: killed anywhere, the training ends as undisturbed, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained


@pytest.mark.parametrize(
    ("fits", "kill", "reason"),
    [
        (
            "shared passes several-steps validated the-same-again arrays",
            "shared/train:8 validated/test:5 the-same-again/train:7",
            "by replay: a Python generator makes the data",
        ),
        (
            "pieces in-order big threads processes finite",
            "pieces/train:9 pieces/test:8 big/train:16 threads/train:9 processes/train:8 finite/train:6",
            "by replay of the epoch: a PyDataset makes the data",
        ),
    ],
    ids=["generators", "PyDatasets"],
)
def test_data_that_python_code_makes(
    tmp_path: Path, nursery: Nursery, fits: str, kill: str, reason: str
) -> None:
    """Killed in the middle of epochs, at their ends and while validating."""
    names = fits.split()
    undisturbed = Job(tmp_path / "undisturbed", "python_data.py", nursery=nursery).run_through(*names).results
    assert len(undisturbed) == len(names)
    job = Job(tmp_path / "killed", "python_data.py", nursery=nursery)
    killed = job.run_through(*names, kill=kill, every=("steps", 1), saved=True)
    assert lost_or_gained(undisturbed, killed.results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))
    assert {fact["fit"]: fact["reason"] for fact in job.facts_of("classified")}[0] == reason


def test_data_that_python_code_makes_are_as_in_plain_python(tmp_path: Path, nursery: Nursery) -> None:
    # The others have unseeded `default_rng`s, which differ from process to process in plain Python.
    alike = "--seeded", "shared", "passes", "arrays", "threads", "processes", "finite"
    plain = Job(tmp_path / "plain", "python_data.py").plain(*alike).results
    job = Job(tmp_path / "killed", "python_data.py", nursery=nursery)
    killed = job.run_through(*alike, kill="passes/train:12 threads/train:13", saved=True)
    # The losses are compared, for how far plain Keras has read ahead of an endless generator when the
    # training ends is left to chance.
    losses = [{name: said.split()[1] for name, said in found.items()} for found in (plain, killed.results)]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


AHEAD = """
import os, time
import keras, numpy as np
from victim import Mortal, say

keras.utils.set_random_seed(1)
resumed = os.path.exists("lives.txt")


def batches():
    for number in range(100):
        if resumed and number >= 2:
            time.sleep(0.3)
        batch = np.random.rand(4, 3).astype("float32")
        yield batch, batch[:, :1]


class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.0 if resumed else 0.2)


model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
history = model.fit(
    batches(), steps_per_epoch=4, epochs=2, verbose=0, callbacks=[Slow(), Mortal("ahead")]
)
say("ahead", model, history)
"""


def test_what_was_read_ahead_is_not_taken_for_drawn(tmp_path: Path, nursery: Nursery) -> None:
    """A checkpoint after two batches, which Keras has taken beforehand, knows of draws for those behind."""
    undisturbed = Job(tmp_path / "undisturbed", "ahead.py", text=AHEAD, nursery=nursery).run().results
    job = Job(tmp_path / "killed", "ahead.py", text=AHEAD, nursery=nursery)
    killed = job.run_through(kill="ahead/train:3@2", every=("steps", 2))
    assert [fact["step"] for fact in job.facts_of("resumed")] == [2]
    assert lost_or_gained(undisturbed, killed.results) == []


ONCE = """
import time
import keras, numpy as np
from victim import Mortal, say

keras.utils.set_random_seed(1)


def batches():
    order = np.random.permutation(12)
    while True:
        for row in order:
            time.sleep(0.02)  # a callback draws meanwhile
            batch = np.full((4, 3), row / 12, "float32")
            yield batch, batch[:, :1]


class Jitter(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.1 * np.random.rand()


model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
history = model.fit(
    batches(), steps_per_epoch=4, epochs=5, verbose=0, callbacks=[Jitter(), Mortal("once")]
)
say("once", model, history)
"""


def test_a_generator_that_draws_once_leaves_the_rest_to_callbacks(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "once.py", text=ONCE, nursery=nursery).run().results
    job = Job(tmp_path / "killed", "once.py", text=ONCE, nursery=nursery)
    killed = job.run_through(kill="once/train:11@10 once/train:18@17", every=("steps", 1))
    assert [fact["step"] for fact in job.facts_of("resumed")] == [10, 17]
    assert lost_or_gained(undisturbed, killed.results) == []
