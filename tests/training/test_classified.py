"""How exactly a fit can be resumed is said before it trains; a resume says what reading again took."""

from __future__ import annotations

from pathlib import Path

from tests.training.harness import Job
from tests.training.nursery import Nursery

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import keras, numpy as np
from victim import until_saved
x = np.ones((8, 2), "float32")
def forever():
    while True:
        time.sleep(0.01)
        yield x, x[:, :1]
class Death(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_begin(self, batch, logs=None):
        self.dies("middle", batch == 3, 4)
        self.dies("begin", self.epoch == 2, 11)
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.7 * (epoch == 1))  # so that the checkpoint is due when the next one begins
    def dies(self, where, now, saved):
        if now and not Path(where).exists():
            until_saved(saved)
            Path(where).touch()
            os.kill(os.getpid(), signal.SIGKILL)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(x, x[:, :1], verbose=0)
sys.stdout = None
model.fit(forever(), steps_per_epoch=5, epochs=3, verbose=0, callbacks=[Death()])
"""


def test_the_kind_of_each_fit_and_the_cost_of_replay(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=SCRIPT, nursery=nursery)
    lives = [job.run(every=every) for every in (("steps", 1), ("s", 0.5), ("s", 0.5))]
    assert [life.code for life in lives] == [-9, -9, 0], lives[-1].errors
    found = [(fact["fit"], fact["kind"], fact["exact"]) for fact in job.facts_of("classified")]
    assert found == [(0, "exact", True), *[(1, "by-replay", True)] * 3]
    assert [line for line in lives[0].output.splitlines() if line.startswith("runner: ")] == [
        "runner: resumes of fit 0: exact",
        "runner: resumes of fit 1: exact by replay: a Python generator makes the data",
    ]
    (resumed,), (late,) = job.facts_of("resumed", 2), job.facts_of("resumed", 3)
    assert 0.03 <= resumed["replay_s"] < 5, "three batches of a hundredth of a second"
    assert 0.1 <= late["replay_s"] < 5, "ten batches"
    assert job.facts_of("replayed") == []


LATE = """
import os, signal, time
from pathlib import Path
import keras, numpy as np, tensorflow as tf
saved = Path(os.environ["RUNNER_STATE"], "checkpoints", "step-000000000010.weights.h5")
class Death(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(2.2 * (epoch == 1))  # so that the checkpoint is due when the next one begins
    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == 2 and not Path("died").exists():
            while not saved.exists():
                time.sleep(0.01)
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
x = np.ones((8, 2), "float32")
data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(8).repeat(2).shuffle(16).repeat().batch(4)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(data, steps_per_epoch=5, epochs=3, verbose=0, callbacks=[Death()])
"""


def test_data_that_are_asked_for_when_an_epoch_has_begun_are_read_again_then(
    tmp_path: Path, nursery: Nursery
) -> None:
    job = Job(tmp_path, "train.py", text=LATE, nursery=nursery)
    lives = [job.run(every=("s", 2)) for _ in range(2)]
    assert [life.code for life in lives] == [-9, 0], lives[1].errors
    (resumed,), (replayed,) = job.facts_of("resumed", 2), job.facts_of("replayed", 2)
    assert resumed["step"] == 10
    assert "replay_s" not in resumed
    assert 0 < replayed["replay_s"] < 5
    assert "runner: data were read again in" in lives[1].output


SHARED = """
import os, signal, time
from pathlib import Path
import keras, numpy as np, tensorflow as tf
from victim import until_saved
x = np.random.RandomState(1).rand(40, 2).astype("float32")
rows = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(40)
data = rows.map(lambda a, b: (a, b)).shuffle(5).batch(8)
held = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(40).batch(8)
@tf.function
def total():
    found = 0.0
    for a, b in held:
        found += tf.reduce_sum(a)
    return found
class Looking(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.look()
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == 3 and batch == 3 and not Path(self.name).exists():
            until_saved(self.begins)
            Path(self.name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
class Evaluating(Looking):
    name, begins = "evaluating", 15
    def look(self):
        self.model.evaluate(data, verbose=0)
class Compiled(Looking):
    name, begins = "compiled", 25 + 15
    def look(self):
        total()
for looking, of in ((Evaluating(), data), (Compiled(), held)):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(of, epochs=5, verbose=0, callbacks=[looking])
"""


def test_a_callback_that_reads_a_shuffle_in_a_way_that_cannot_be_repeated(
    tmp_path: Path, nursery: Nursery
) -> None:
    job = Job(tmp_path, "train.py", text=SHARED, nursery=nursery)
    lives = [job.run(every=("steps", 1)) for _ in range(3)]
    assert [life.code for life in lives] == [-9, -9, 0], lives[-1].errors
    reasons = [
        "a shuffle that others read too is shuffled again: resumed at the epoch's start",
        "a compiled function reads what the fit shuffles: resumed at the epoch's start",
    ]
    for fit, reason in enumerate(reasons):
        told = [fact for fact in job.facts_of("classified", fit + 1) if fact["fit"] == fit]
        assert [(fact["exact"], fact["reason"]) for fact in told] == [(True, ""), (False, reason)]
        (resumed,) = job.facts_of("resumed", fit + 2)
        assert (resumed["exact"], resumed["step"] % 5) == (False, 0)
        assert reason in resumed["reason"]
