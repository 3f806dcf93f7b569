"""Hot spares: the script has run up to its fit, and the step is traced; nothing else has changed."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from runner.core.job import State
from tests.system.conftest import Site
from tests.system.spares import FITS, WAIT_S, submit, waits
from tests.waiting import wait_for

EVERY = '[checkpoint]\nevery = "7 steps"\n'
#: Has a module of its own, and says when the step is traced.
TELLS = FITS.replace(
    "draws = [",
    """
import own


class Tells(keras.layers.Layer):
    def call(self, inputs):
        print("the step is traced", flush=True)
        return inputs


draws = [""",
    1,
).replace("keras.layers.Dense(3)", "keras.layers.Dense(3), Tells()")
TWICE = TELLS.replace("history =", "model.fit(x, y, batch_size=8, epochs=2, verbose=0)\nhistory =")
#: Its step runs Python code, which would notice.
RUNS = TELLS.replace(
    "        return inputs",
    """
        ran = tf.numpy_function(once_more, [inputs], "float32", stateful=False)
        return inputs + 0 * tf.stop_gradient(tf.ensure_shape(ran, inputs.shape))""",
).replace(
    "class Tells",
    """
import tensorflow as tf


def once_more(value):
    print("Python code runs", flush=True)
    return value


class Tells""",
)
#: A loop of its own, by the API.
LOOPS = """
import os, time
import numpy as np
import keras, tensorflow as tf
import runner

x = np.random.default_rng().random((64, 8), "float32")
model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.3), keras.layers.Dense(3)])
optimizer = keras.optimizers.Adam()
optimizer.build(model.trainable_variables)


@tf.function
def step_on(inputs):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs, training=True) ** 2)
    weights = model.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
    return loss


losses = []
run = runner.attach(model=model, optimizer=optimizer)
for step in run.steps(60):
    while step == 30 and not os.path.exists("enough"):
        time.sleep(0.01)
    losses.append(float(step_on(x[step : step + 4])))
with open("result", "w") as out:
    out.write(repr([losses[-1], *(w.tolist() for w in model.get_weights())]))
"""
WRITES = FITS.replace("draws = [", 'open("started", "a").write("once\\n")\ndraws = [', 1)
READS = FITS.replace("draws = [", 'open("own.py").read()\ndraws = [', 1)


def told(site: Site, name: str, event: str) -> list[dict[str, Any]]:
    """Return the events of a kind."""
    return [one for one in site.events(name) if one["event"] == event]


def ready_of(site: Site, name: str) -> dict[str, Any]:
    """Return the event that tells of a spare that is ready; it comes a moment after that."""
    return wait_for(lambda: told(site, name, "spare-ready"), f"the spare of {name} to be told")[0]


def disturbed_beside_undisturbed(site: Site, script: str) -> None:
    """Let a job be taken over by its hot spare, and another one, of the same script, be left alone."""
    site.start()
    for name, spare in (("disturbed", "hot"), ("undisturbed", "none")):
        submit(site, name, toml=EVERY, script=script, spare=spare)
    (site.home.folder("undisturbed") / "enough").touch()
    waiting = waits(site, "disturbed")
    os.kill(site.identity("disturbed", "worker").pid, signal.SIGKILL)
    (site.home.folder("disturbed") / "enough").touch()
    for name, attempts in (("disturbed", 2), ("undisturbed", 1)):
        assert site.wait(name, State.SUCCEEDED, timeout_s=WAIT_S).attempt == attempts
    assert site.identity("disturbed", "worker", 2) == waiting


@pytest.mark.parametrize(("script", "fit"), [(TELLS, 0), (TWICE, 1)], ids=["first fit", "second fit"])
def test_it_goes_on_with_a_step_that_is_traced(site: Site, script: str, fit: int) -> None:
    disturbed_beside_undisturbed(site, script)
    results = [(site.home.folder(name) / "result").read_text() for name in ("disturbed", "undisturbed")]
    assert results[0] == results[1]
    ready = ready_of(site, "disturbed")
    assert ready["hot"]
    assert "reason" not in ready, "the step was executed, too"
    assert [event["hot"] for event in told(site, "disturbed", "spare-took-over")] == [True]
    assert told(site, "disturbed", "resumed")[0]["exact"]
    log = site.home.job("disturbed").attempt(2).log.read_text()
    before, _, after = log.partition(f"runner: resumes of fit {fit}")
    assert "level 3" in before, "what the script has printed comes first"
    assert "the step is traced" in before
    assert "the step is traced" not in after


def test_python_code_in_the_step_is_not_run_before(site: Site) -> None:
    site.start()
    submit(site, "runs", toml=EVERY, script=RUNS, spare="hot")
    waits(site, "runs")
    ready = ready_of(site, "runs")
    assert ready["hot"]
    assert "traced only" in ready["reason"]
    os.kill(site.identity("runs", "worker").pid, signal.SIGKILL)
    (site.home.folder("runs") / "enough").touch()
    site.wait("runs", State.SUCCEEDED, timeout_s=WAIT_S)
    before, _, after = site.home.job("runs").attempt(2).log.read_text().partition("runner: resumes of fit 0")
    assert ["the step is traced" in part for part in (before, after)] == [True, False]
    assert ["Python code runs" in part for part in (before, after)] == [False, True]


def test_what_is_not_as_the_script_has_found_it_makes_it_begin_anew(site: Site) -> None:
    """What the script would write is not written beside; where what it reads has changed, it reads anew."""
    site.start()
    for name, script in (("writes", WRITES), ("reads", READS)):
        submit(site, name, toml=EVERY, script=script, spare="hot")
    spares = {name: waits(site, name) for name in ("writes", "reads")}
    started = site.home.folder("writes") / "started"
    assert started.read_text() == "once\n"
    ready = {name: ready_of(site, name) for name in spares}
    assert [ready[name]["hot"] for name in spares] == [False, True]
    assert "started to write" in ready["writes"]["reason"]
    (site.home.folder("reads") / "own.py").touch()
    for name in spares:
        os.kill(site.identity(name, "worker").pid, signal.SIGKILL)
        (site.home.folder(name) / "enough").touch()
        site.wait(name, State.SUCCEEDED, timeout_s=WAIT_S)
        assert site.identity(name, "worker", 2) == spares[name]
    assert [event["hot"] for event in told(site, "writes", "spare-took-over")] == [False]
    assert started.read_text() == "once\nonce\n"
    assert told(site, "reads", "spare-took-over") == []
    assert "own.py has changed" in site.home.job("reads").attempt(2).log.read_text()


def test_a_loop_of_its_own_goes_on(site: Site) -> None:
    disturbed_beside_undisturbed(site, LOOPS)
    assert [event["hot"] for event in told(site, "disturbed", "spare-took-over")] == [True]
    resumed = told(site, "disturbed", "resumed")[0]
    assert resumed["exact"]
    assert resumed["step"] > 0
    results = [(site.home.folder(name) / "result").read_text() for name in ("disturbed", "undisturbed")]
    assert results[0] == results[1]
