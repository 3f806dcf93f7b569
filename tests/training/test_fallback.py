"""With a Keras that is not as expected, a fit is resumed at the beginning of an epoch, or from its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.harness import Job
from tests.training.nursery import Nursery
from tests.training.test_retreat import FITS, SLOWER, rate
from tests.training.test_stopping import FLAG

#: Gives a Keras that is the installed one, but for the name of one place that the exact resume needs.
STAND_IN = """
import importlib.machinery
import sys

class Renaming(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        source = self.get_data(self.path)
        assert source.count(b"_enumerate_iterator") == 2
        return self.source_to_code(source.replace(b"_enumerate_iterator", b"_walk_through"), self.path)

class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != "keras.src.trainers.epoch_iterator":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Renaming(name, spec.origin)
        return spec

sys.meta_path.insert(0, Finder)
"""
#: The bootstrap with something taken out.
WITHOUT = """
source = open(BOOTSTRAP).read().replace('    main()\\n', '')
__file__ = BOOTSTRAP
exec(compile(source, BOOTSTRAP, 'exec'))
from runner.training import fallback
fallback.arrange = lambda worker, keras, why: worker.facts.warn(why)
main()
"""


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which Keras is not as expected."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "sitecustomize.py").write_text(STAND_IN)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture(scope="module")
def elsewhere(unknown: dict[str, str]) -> Iterator[Nursery]:
    """Gives birth to processes with that Keras."""
    nursery = Nursery(Job.environment(unknown))
    yield nursery
    nursery.close()


def told(job: Job) -> list[list[str]]:
    """Return which fit began or ended which epoch, with which weights."""
    return [line.split() for line in (job.folder / "told.txt").read_text().splitlines()]


def begun(job: Job, name: str) -> list[int]:
    return [int(epoch) for fit, what, epoch, _ in told(job) if (fit, what) == (name, "begin")]


def test_stopped_and_killed_it_goes_on_at_the_beginning_of_an_epoch(
    tmp_path: Path, unknown: dict[str, str], elsewhere: Nursery, nursery: Nursery
) -> None:
    plain = Job(tmp_path / "plain", "epochs.py").plain().results
    assert len(plain) == 4

    job = Job(tmp_path / "job", "epochs.py")
    path = job.folder / "told.txt"
    first = job.start(env={**unknown, "AWAIT": "1"}, every=("epochs", 99))
    first.until(lambda: path.exists() and "first begin 2" in path.read_text())
    first.send(signal.SIGTERM)
    (job.folder / "asked").touch()
    assert first.wait(30).code == 75, first.errors
    job.nursery = elsewhere
    killed = job.run(env={"KILL": "second/train:10@28"}, every=("epochs", 1))
    assert killed.code == -signal.SIGKILL, killed.errors
    # The Keras that is installed now is as expected; the job goes on as it was begun.
    job.nursery = nursery
    last = job.run(env={"KILL": ""}, every=("epochs", 1))
    assert last.code == 0, last.errors
    assert last.results == plain

    warned = [fact["message"] for fact in job.facts_of("warning", 1)]
    assert "EpochIterator._enumerate_iterator" in warned[0]
    assert "only at the beginning of an epoch" in warned[0]
    assert [fact["exact"] for fact in job.facts_of("classified")] == [False] * 5
    resumed = [(fact["step"], fact["epoch"], fact["exact"]) for fact in job.facts_of("resumed")]
    assert resumed == [(8, 2, False), (28, 2, False)]
    assert begun(job, "first") == [0, 1, 2, 2, 3, 4]
    assert begun(job, "second") == [0, 1, 2, 2, 3]
    ended = {(fit, int(epoch)): weights for fit, what, epoch, weights in told(job) if what == "end"}
    for fit, what, epoch, weights in told(job):
        if what == "begin" and epoch != "0":
            assert weights == ended[fit, int(epoch) - 1], (fit, epoch)
    assert [(line["fit"], line["epoch"]) for line in job.metrics()] == [
        *((0, epoch) for epoch in range(5)),
        *((1, epoch) for epoch in range(4)),
    ]


def test_of_an_epoch_that_was_cut_short_nothing_is_kept(tmp_path: Path, elsewhere: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=FLAG, nursery=elsewhere)
    cut = job.run(env={"ASKED": "1"}, every=("epochs", 1))
    assert cut.code == 75, cut.errors
    assert [line["step"] for line in job.metrics()] == [6]
    assert [fact["step"] for fact in job.facts_of("best")] == [6]
    final = job.run(every=("epochs", 1))
    assert final.code == 0, final.errors
    assert job.facts_of("resumed", 2)[0]["step"] == 6
    assert [line["step"] for line in job.metrics()] == [6, 12, 18]


def test_control_without_it_a_fit_begins_with_its_first_epoch(tmp_path: Path, elsewhere: Nursery) -> None:
    job = Job(tmp_path / "job", "epochs.py", nursery=elsewhere)
    with_it = job.run(env={"KILL": "first/train:14", "KILL_SAVED": "1"}, every=("epochs", 1))
    assert with_it.code == -signal.SIGKILL, with_it.errors
    assert job.facts_of("checkpoint")
    job.bootstrap = tmp_path / "without.py"
    job.bootstrap.write_text(
        WITHOUT.replace("BOOTSTRAP", repr(str(Job(tmp_path / "j", "epochs.py").bootstrap)))
    )
    without = job.run(env={"KILL": ""})
    assert without.code == 0, without.errors
    assert begun(job, "first") == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_a_training_that_is_slower_already_is_not_slowed_again(tmp_path: Path, elsewhere: Nursery) -> None:
    job = Job(tmp_path, "train.py", text=FITS, nursery=elsewhere, retreat=SLOWER)
    assert job.run(env={"TROUBLE": "within"}, every=("epochs", 1)).code == 1
    assert rate(job.run(every=("epochs", 1))) == pytest.approx(0.005)
    assert job.facts_of("resumed", 2)


def test_a_model_that_cannot_be_built_beforehand_is_trained_from_its_beginning(
    tmp_path: Path, elsewhere: Nursery
) -> None:
    job = Job(tmp_path, "epochs.py", nursery=elsewhere)
    args = {"args": ["--eager"], "every": ("epochs", 1)}
    killed = job.run(env={"KILL": "eager/train:14", "KILL_SAVED": "1"}, **args)
    assert killed.code == -signal.SIGKILL, killed.errors
    # What lies there, not what was told of: death may come between a rename and the word of it.
    saved = {str(path.relative_to(job.paths.dir)) for _, path in job.paths.list_checkpoints()}
    last = job.run(env={"KILL": ""}, **args)
    assert last.code == 0, last.errors
    assert begun(job, "eager") == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert not job.facts_of("resumed")
    messages = " ".join(fact["message"] for fact in job.facts_of("warning", 2))
    assert "fit 0 is trained from its beginning: the model cannot be built before its first step" in messages
    assert {fact["path"] for fact in job.facts_of("quarantined", 2)} == saved
    assert [line["epoch"] for line in job.metrics()] == [0, 1, 2, 3, 4]


def test_a_checkpoint_for_an_exact_resume_is_left_alone(
    tmp_path: Path, elsewhere: Nursery, nursery: Nursery
) -> None:
    job = Job(tmp_path, "epochs.py", nursery=nursery)
    exact = job.run(env={"KILL": "first/train:14", "KILL_SAVED": "1"})
    assert exact.code == -signal.SIGKILL, exact.errors
    saved = job.paths.list_checkpoints()
    job.nursery = elsewhere
    assert job.run(env={"KILL": ""}).code == 78
    assert "Install Keras" in job.facts_of("warning", 2)[-1]["message"]
    assert job.paths.list_checkpoints() == saved


DOUBTS = """
import keras, numpy as np, tensorflow as tf
from runner.training import doubts

x = np.zeros((8, 2), "float32")
def model():
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.compile("adam", "mse")
    return made
def generator():
    yield x, x
class Data(keras.utils.PyDataset):
    pass
class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.another = keras.optimizers.SGD()
two = Two()
two.compile("adam", "mse")
data = tf.data.Dataset.from_tensor_slices((x, x)).batch(4)
python = tf.data.Dataset.from_generator(generator, output_signature=tf.TensorSpec((8, 2)))
defaults = dict(x=x, callbacks=None, steps_per_epoch=None, validation_data=None)
def ask(name, of=None, **arguments):
    print("RESULT", name, doubts.of_fit(of or model(), {**defaults, **arguments}) or "none")
ask("arrays")
ask("several", x={"a": x, "b": [tf.zeros(3), None]})
ask("dataset", x=data)
ask("endless", x=data.repeat(), steps_per_epoch=2)
ask("validated", validation_data=(x, x))
ask("generator", x=generator())
ask("sequence", x=Data())
ask("python", x=python)
ask("spread", steps_per_epoch=1)
ask("spread-dataset", x=data, steps_per_epoch=1)
ask("validated-generator", validation_data=generator())
ask("nothing", x=None)
ask("backup", callbacks=[keras.callbacks.BackupAndRestore("b")])
ask("optimizers", of=two)
with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
    ask("distributed")
callback = keras.callbacks.Callback()
lists = [None, callback, [callback], (callback,), keras.callbacks.CallbackList([callback]), [[callback]]]
print("RESULT lists", *[one if (one := doubts.listed(given)) is None else len(one) for given in lists])
print("RESULT lacking", doubts.lacking(keras))
del keras.callbacks.History
keras.Model.fit = lambda self, x: None
print("RESULT lacks", *doubts.lacking(keras))
"""


def test_doubts(tmp_path: Path) -> None:
    attempt = Job(tmp_path, "train.py", text=DOUBTS).plain()
    assert attempt.code == 0, attempt.errors
    found = {name: rest for name, _, rest in (line.partition(" ") for line in _results(attempt.output))}
    sure = ("arrays", "several", "dataset", "endless", "validated")
    assert {found.pop(name) for name in sure} == {"none"}
    assert found.pop("lists") == "0 1 1 1 None None"
    assert found.pop("lacking") == "[]"
    assert found.pop("lacks").startswith("callbacks.History Model.fit's parameter callbacks")
    assert found == {
        "generator": "the data come from a generator, whose state is not kept",
        "sequence": "the data come from a Data, whose state is not kept",
        "python": "the dataset runs Python code, whose state is not kept",
        "spread": "steps_per_epoch spreads the data over several epochs",
        "spread-dataset": "steps_per_epoch spreads the data over several epochs",
        "validated-generator": (
            "of the validation data: the data come from a generator, whose state is not kept"
        ),
        "nothing": "the data come from a NoneType, whose state is not kept",
        "backup": "the script resumes by itself (BackupAndRestore)",
        "optimizers": "the model has an optimizer of its own",
        "distributed": "tf.distribute",
    }


def _results(output: str) -> list[str]:
    return [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
