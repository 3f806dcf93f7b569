"""Generators under `steps_per_execution`: they train, and are asked for, what plain Keras asks for."""

from __future__ import annotations

from pathlib import Path

from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery

SCRIPT = """
import keras, numpy as np
from victim import Mortal
keras.utils.set_random_seed(7)
x = np.random.RandomState(1).rand(60, 4).astype("float32")
def rows(seed, count=10**9):
    chance = np.random.RandomState(seed)
    for _ in range(count):
        chosen = chance.choice(60, 10)
        yield x[chosen], x[chosen].sum(1, keepdims=True)
def trained(name, **options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("adam", "mse", steps_per_execution=2)
    history = model.fit(**options, epochs=3, verbose=0, callbacks=[Mortal(name)])
    first = history.history.get("val_loss", [None])[0]
    print("RESULT", name, int(model.optimizer.iterations), history.history["loss"], first)
    print("RESULT all/" + name, history.history, flush=True)
trained("endless", x=rows(3), steps_per_epoch=5)
trained("validated", x=x, y=x[:, :1], batch_size=20, validation_data=rows(4), validation_steps=3)
shared = rows(5)
trained("both", x=shared, steps_per_epoch=3, validation_data=rows(6), validation_steps=1)
trained("short", x=rows(7, 15), steps_per_epoch=5)
trained("whole", x=rows(8), steps_per_epoch=4)
trained("all/again", x=shared, steps_per_epoch=3)
"""


def test_as_many_batches_as_in_plain_python(tmp_path: Path, nursery: Nursery) -> None:
    plain = Job(tmp_path / "plain", "train.py", text=SCRIPT).plain()
    assert plain.code == 0, plain.errors
    counts = {name: result.split()[0] for name, result in losses(plain).items()}
    assert counts == {"endless": "18", "validated": "9", "both": "12", "short": "15", "whole": "12"}
    calm = Job(tmp_path / "calm", "train.py", text=SCRIPT, nursery=nursery).run_through()
    assert losses(calm) == losses(plain)
    kill = (
        "endless/train:3 endless/train:8 endless/train:9@14 validated/test:4 validated/train:6 both/train:3"
        " both/test:2 short/train:7 short/train:8 whole/train:5 all/again/train:5"
    )
    job = Job(tmp_path / "killed", "train.py", text=SCRIPT, nursery=nursery)
    assert job.run_through(kill=kill, every=("steps", 1), saved=True).results == calm.results


def losses(attempt: Attempt) -> dict[str, str]:
    """Return what plain Keras does not leave to chance, as it does how far a validation reads ahead."""
    return {name: told for name, told in attempt.results.items() if not name.startswith("all/")}
