"""Fits of less usual kinds, killed and resumed; a loop after a fit; fits without number."""

from __future__ import annotations

import json
from pathlib import Path

from runner.training import fingerprint
from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_exact_resume import lost_or_gained

LOOP = """
import os
import keras, numpy as np, runner
keras.utils.set_random_seed(1)
x = np.random.rand(16, 2)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0)
run = runner.attach(model, every="2 steps")
for step in run.steps(9):
    model.layers[0].kernel.assign_add(np.random.normal(size=(2, 1)))
    if step == int(os.environ.get("DIE", 99)):
        if step:
            run.checkpoint()
        os.kill(os.getpid(), 9)
print("RESULT end", model.layers[0].kernel.numpy().tolist())
"""
MANY = """
import keras, numpy as np
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
for number in range(12):
    x = np.random.rand(8, 2)
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
print("RESULT end", model.layers[0].kernel.numpy().tolist())
"""
PROBED = """
import keras, numpy as np, tensorflow as tf
x = np.random.rand(16, 2).astype("float32")
data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(16).batch(4)


class Probe(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.sum()

    @tf.function
    def sum(self):
        return data.reduce(0.0, lambda total, batch: total + tf.reduce_sum(batch[0]))


model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(data, validation_data=data.repeat(2), epochs=2, verbose=0, callbacks=[Probe()])
"""
#: The bootstrap with next to nothing allowed for keeping the ends of fits.
MEAN = """
source = open(BOOTSTRAP).read().replace('    main()\\n', '')
__file__ = BOOTSTRAP
exec(compile(source, BOOTSTRAP, 'exec'))
from runner.training import allowance
allowance.FREE_S, allowance.SHARE = 0.0, 1e-4
main()
"""


def test_fits_of_less_usual_kinds(tmp_path: Path, nursery: Nursery) -> None:
    calm = Job(tmp_path / "undisturbed", "odd.py", nursery=nursery)
    undisturbed = calm.run_through().results
    assert len(undisturbed) == 7
    # The callback stops the training after its second step; the next fit goes on counting from there.
    assert [line["step"] for line in calm.metrics() if line["fit"] in {2, 3}] == [24, 27, 30]
    job = Job(tmp_path / "killed", "odd.py", nursery=nursery)
    kill = "taught/train:7 loaded/train:4 after/train:4 ended/train:5 ragged/train:7 sparse/train:8"
    killed = job.run_through(kill=kill, every=("steps", 1), saved=True)
    assert lost_or_gained(undisturbed, killed.results) == []
    assert job.metrics_without_time() == calm.metrics_without_time()
    resumed = job.facts_of("resumed")
    assert len(resumed) == 6
    assert all(fact["exact"] for fact in resumed), resumed
    classified = {fact["fit"]: fact["reason"] for fact in calm.facts_of("classified")}
    assert classified[0] == "by replay: a Python generator makes the data"
    assert not calm.facts_of("warning"), "none of these is a loop of the script's own"


def test_a_loop_after_a_fit_is_kept_where_it_was_killed_early(tmp_path: Path, nursery: Nursery) -> None:
    expected = Job(tmp_path / "undisturbed", "loop.py", text=LOOP, nursery=nursery).run().results
    job = Job(tmp_path / "killed", "loop.py", text=LOOP, nursery=nursery)
    assert job.run(env={"DIE": "0"}).code == -9
    assert job.run(env={"DIE": "5"}).code == -9
    done = job.run()
    assert (done.code, done.results) == (0, expected), done.errors
    assert not job.facts_of("warning")
    assert [fact["step"] for fact in job.facts_of("resumed", 3)] == [8 + 6]


def test_fits_without_number_are_not_all_kept(tmp_path: Path, nursery: Nursery) -> None:
    job = Job(tmp_path, "many.py", text=MANY, nursery=nursery)
    job.bootstrap = tmp_path / "mean.py"
    job.bootstrap.write_text(MEAN.replace("BOOTSTRAP", repr(str(Job(tmp_path / "j", "odd.py").bootstrap))))
    first = job.run()
    assert first.code == 0, first.errors
    kept = sorted(path.name for path in job.paths.checkpoints.glob("fit-*"))
    assert kept == ["fit-000.weights.h5"]
    (warning,) = [fact["message"] for fact in job.facts_of("warning")]
    assert "from fit 1 on they are not kept" in warning
    assert job.paths.best.exists(), "the best model is written all the same"
    second = job.run()
    assert second.results == first.results, "the fits are run again"
    assert len({json.dumps(line) for line in job.metrics_without_time()}) == 12


def test_a_compiled_function_that_reads_the_data_is_told_and_not_disturbed(
    tmp_path: Path, nursery: Nursery
) -> None:
    job = Job(tmp_path, "probed.py", text=PROBED, nursery=nursery)
    done = job.run()
    assert done.code == 0, done.errors
    assert not job.facts_of("classified")[-1]["exact"]


def test_devices_have_names() -> None:
    import tensorflow  # noqa: F401 - what is asked

    assert fingerprint.accelerators("CPU") == ["CPU"]


def test_python_code_in_a_step_goes_on_with_what_it_remembers(tmp_path: Path, nursery: Nursery) -> None:
    undisturbed = Job(tmp_path / "undisturbed", "pythonic.py", nursery=nursery).run_through().results
    assert len(undisturbed) == 3
    job = Job(tmp_path / "killed", "pythonic.py", nursery=nursery)
    kill = "eager/train:6 eager/end:2 compiled/train:5 last/train:2"
    killed = job.run_through(kill=kill, every=("steps", 1), saved=True)
    assert lost_or_gained(undisturbed, killed.results) == []
    assert all(fact["exact"] for fact in job.facts_of("resumed"))
    assert not job.facts_of("warning")
