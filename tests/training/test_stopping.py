"""SIGTERM in every phase: the worker leaves in time with 75, and the training ends as if nothing had been."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery

PHASES = ("import", "build", "trace", "train", "validate", "callbacks", "after")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return Job(tmp_path_factory.mktemp("undisturbed"), "phases.py").run().results


def stop_in(job: Job, phase: str) -> tuple[Attempt, float]:
    """Stop an attempt when it lingers in a phase; return it and how long it took to leave."""
    mark, told = job.folder / f"was-in-{phase}", job.folder / "asked"
    told.unlink(missing_ok=True)
    attempt = job.start(env={"LINGER": phase}, every=("steps", 1000)).until(mark.exists)
    asked = time.monotonic()
    attempt.send(signal.SIGTERM)
    told.touch()
    return attempt.wait(30), time.monotonic() - asked


def test_every_phase_in_turn(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    job = Job(tmp_path, "phases.py")
    (tmp_path / "jobs" / "j" / "was-in-train").unlink(missing_ok=True)
    for phase in PHASES:
        attempt, took_s = stop_in(job, phase)
        assert attempt.code == 75, (phase, attempt.errors)
        assert took_s < 10, phase
    final = job.run()
    assert final.code == 0, final.errors
    assert final.results == undisturbed
    steps = [fact["step"] for fact in job.facts_of("checkpoint")]
    assert steps == sorted(set(steps))
    # Stopped in the middle of the first epoch, in the second's validation, in the third's callbacks.
    assert steps[:3] == [5, 16, 24]
    assert [fact["step"] for fact in job.facts_of("resumed")] == [5, 16, 24]


def test_a_handler_of_the_script_comes_first(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "def mine(number, frame):\n"
        "    print('tidied up')\n"
        "    sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, mine)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    job = Job(tmp_path, "train.py", text=script)
    attempt = job.start().until((job.folder / "ready").exists).send(signal.SIGTERM).wait(20)
    assert (attempt.code, attempt.output) == (4, "tidied up\n")


OWN_ENDS = {
    "from the handler": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nready()\ntime.sleep(60)\n",
    "its handler forgotten": (
        "def mine(*_):\n    signal.signal(signal.SIGTERM, ours)\n    sys.exit()\n"
        "ours = signal.signal(signal.SIGTERM, mine)\nready()\ntime.sleep(60)\n"
    ),
    "at once": "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\nready()\ntime.sleep(60)\n",
    "from its loop": (
        "asked = []\nsignal.signal(signal.SIGTERM, lambda *_: asked.append(1))\nready()\n"
        "while not asked:\n    time.sleep(0.01)\n"
    ),
}


@pytest.mark.parametrize("name", OWN_ENDS)
def test_a_script_that_ends_itself_with_0_because_it_was_asked_has_stopped(tmp_path: Path, name: str) -> None:
    beginning = "import os, signal, sys, time\ndef ready():\n    open('ready', 'w').close()\n"
    job = Job(tmp_path, "train.py", text=beginning + OWN_ENDS[name])
    attempt = job.start().until((job.folder / "ready").exists).send(signal.SIGTERM).wait(20)
    assert attempt.code == 75, attempt.errors
    assert "it has stopped (75), not succeeded" in attempt.output


@pytest.mark.parametrize(
    "text",
    [
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n",  # and nobody asks
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\nos._exit(0)\n",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.kill(os.getpid(), signal.SIGTERM)\n",
    ],
    ids=["never asked", "never asked, and ends at once", "deaf"],
)
def test_a_script_that_gets_to_its_end_has_done_so(tmp_path: Path, text: str) -> None:
    attempt = Job(tmp_path, "train.py", text=f"import os, signal, sys\n{text}").run()
    assert (attempt.code, attempt.output) == (0, "")


FLAG = """
import os, signal
import keras, numpy as np
from victim import say, until_saved
keras.utils.set_random_seed(7)
x = np.random.RandomState(1).rand(60, 4).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")

def stop(*_):
    model.stop_training = True

class Asked(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(model.optimizer.iterations) == 8 and os.environ.get("ASKED"):
            until_saved(6)
            os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, stop)
options = {"validation_data": (x, x[:, :1]), "callbacks": [Asked()], "verbose": 0}
say("fit", model, model.fit(x, x[:, :1], batch_size=10, epochs=3, **options))
"""


def test_a_fit_that_a_handler_of_the_script_has_cut_short_goes_on(tmp_path: Path, nursery: Nursery) -> None:
    calm = Job(tmp_path / "calm", "train.py", text=FLAG, nursery=nursery).run()
    job = Job(tmp_path / "rough", "train.py", text=FLAG, nursery=nursery)
    cut = job.run(env={"ASKED": "1"})
    assert cut.code == 75, cut.errors
    assert cut.results["fit"] != calm.results["fit"], "the script has come to its end, early"
    assert [line["step"] for line in job.metrics()] == [6], "of whole epochs"
    final = job.run()
    assert final.code == 0, final.errors
    assert job.facts_of("resumed", 2)[0]["step"] == 6
    assert final.results == calm.results
    assert [line["step"] for line in job.metrics()] == [6, 12, 18]


LOOPS = """
import os, signal, sys
import keras, numpy as np, runner
from victim import until_saved
keras.utils.set_random_seed(7)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
run = runner.attach(model)
asked = []
where = os.environ.get("ASKED", "")
if "obedient" not in where:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))

def train(moment):
    model.layers[0].kernel.assign_add(np.random.normal(size=(2, 1)))
    if moment == where.split(" ")[0]:
        until_saved(run.step - 3)
        os.kill(os.getpid(), signal.SIGTERM)
    return bool(asked) or run.should_stop

for step in run.steps(8):
    if train(f"steps:{step}"):
        break
for epoch in run.epochs(3):
    for step in run.steps(4):
        if train(f"epochs:{epoch}:{step}"):
            break
    run.report(run.step, val_loss=-run.step)
for step in run.steps(8):
    train("at the end")
    run.checkpoint()
run.report(run.step, val_loss=0)
print("RESULT loops", model.layers[0].kernel.numpy().tolist(), run.step)
"""


@pytest.fixture(scope="module")
def calm_loops(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> tuple[Job, Attempt]:
    job = Job(tmp_path_factory.mktemp("calm"), "train.py", text=LOOPS, nursery=nursery)
    return job, job.run()


@pytest.mark.parametrize("where", ["steps:5", "epochs:1:2", "epochs:1:2 obedient"])
def test_a_loop_that_the_script_has_left_when_asked_goes_on(
    tmp_path: Path, nursery: Nursery, calm_loops: tuple[Job, Attempt], where: str
) -> None:
    job = Job(tmp_path, "train.py", text=LOOPS, nursery=nursery)
    cut = job.run(env={"ASKED": where})
    assert cut.code == 75, cut.errors
    told = len(job.metrics()) if job.paths.metrics.exists() else 0
    assert told == int("epochs" in where), "of what is whole"
    final = job.run()
    assert final.code == 0, final.errors
    assert job.facts_of("resumed", 2)[0]["step"] == (12 if "epochs" in where else 3)
    assert final.results == calm_loops[1].results
    assert job.metrics_without_time() == calm_loops[0].metrics_without_time()


def test_children_are_terminated_as_ever(tmp_path: Path) -> None:
    """The worker's signal handling is not inherited: a pool can end its processes."""
    script = (
        "import multiprocessing, time\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    child = context.Process(target=time.sleep, args=(60,))\n"
        "    child.start()\n"
        "    time.sleep(0.2)\n"
        "    child.terminate()\n"
        "    child.join(20)\n"
        "    time.sleep(1.5)\n"
        "    print(child.exitcode)\n"
    )
    attempt = Job(tmp_path, "train.py", text=script).run()
    assert (attempt.code, attempt.output) == (0, "-15\n")


def test_stacks_on_request(tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "def stuck():\n"
        "    open('ready', 'w').close()\n"
        "    while not os.path.exists('go'):\n"
        "        time.sleep(0.01)\n"
        "stuck()\n"
    )
    job = Job(tmp_path, "train.py", text=script)
    stacks = job.paths.attempt(1).stacks
    attempt = job.start().until((job.folder / "ready").exists).send(signal.SIGUSR2)
    attempt.until(lambda: "in stuck" in stacks.read_text())
    (job.folder / "go").touch()
    assert attempt.wait(20).code == 0
