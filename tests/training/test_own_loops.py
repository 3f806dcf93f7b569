"""Training that neither `fit` nor the API does: said beforehand, and what was lost afterwards."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.training.harness import Job
from tests.training.nursery import Nursery

BATCHES = """
import os, time
import keras
import numpy as np

keras.utils.set_random_seed(3)
x = np.random.rand(8, 3)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
for step in range(40):
    loss = model.train_on_batch(x, x[:, :1])
    if step == 20 and not os.path.exists("was-here"):
        open("was-here", "w").close()
        time.sleep(3600)
print("RESULT loss", float(loss))
"""
TAPE = """
import keras
import numpy as np
import tensorflow as tf

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
optimizer = keras.optimizers.Adam()
x = tf.ones((8, 3))


@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


for _ in range(5):
    step()
"""
FIT = """
import keras
import numpy as np

x = np.random.rand(8, 3)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(x, x[:, :1], verbose=0)
model.evaluate(x, x[:, :1], verbose=0)
"""


def told(job: Job) -> list[str]:
    return [fact["message"] for fact in job.facts_of("warning") if "a loop of its own" in fact["message"]]


def test_batches_that_are_lost_are_counted(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=BATCHES, nursery=nursery)
    file = job.paths.progress
    attempt = job.start().until(lambda: file.exists() and '"own_batches": 21' in file.read_text())
    assert len(told(job)) == 1
    assert "lost" not in told(job)[0]
    assert json.loads(job.paths.progress.read_text())["phase"] == "own"
    os.kill(attempt.process.pid, signal.SIGKILL)
    attempt.wait()
    again = job.run()  # the marker file is there: it does not wait
    assert again.code == 0, again.errors
    assert "the 21 batches that the attempt before had trained so are lost" in told(job)[-1]


def test_a_loop_with_a_gradient_tape_is_noticed(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=TAPE, nursery=nursery)
    done = job.run()
    assert done.code == 0, done.errors
    assert len(told(job)) == 1
    assert json.loads(job.paths.progress.read_text())["phase"] == "own"


def test_a_fit_is_no_loop_of_its_own(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=FIT, nursery=nursery)
    done = job.run()
    assert done.code == 0, done.errors
    assert told(job) == []
