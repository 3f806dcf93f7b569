"""The Python API: loops that are not `fit`, killed and resumed in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runner
from tests.training.harness import Attempt, Job
from tests.training.nursery import Nursery

ROOT = Path(runner.__file__).parents[1]
#: Where each life of loops.py ends: in every loop, in validation, in the last step; and from which step on
#: it has to be resumed at least.
KILLS = {
    "plain:7": 3,
    "duel:8": 16,
    "epochs:3:validated": 35,
    "agent:7": 43,
    "orders:1:2": 54,
    "orders:2:2": 58,
}


def lines(job: Job) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in job.metrics()]


# --- outside the runner -----------------------------------------------------------------------------------


def test_outside_the_runner_nothing_happens() -> None:
    run = runner.attach()
    assert list(run.steps(3)) == [0, 1, 2]
    assert [(epoch, item) for epoch in run.epochs(2) for item in run.batches("ab")] == [
        (0, "a"), (0, "b"), (1, "a"), (1, "b"),
    ]  # fmt: skip
    assert run.step == 7
    run.report(3, loss=1.0)
    assert run.checkpoint() is None
    assert not run.should_stop
    data = [1, 2]
    assert run.track(data) is data
    run.state["seen"] = [1, {"a": None}, float("inf")]
    assert run.state["seen"] == [1, {"a": None}, float("inf")]


def test_a_script_outside_the_runner_leaves_nothing_behind(tmp_path: Path) -> None:
    script = """
import sys, runner
for step in runner.attach().steps(2):
    pass
assert not {"keras", "numpy"} & set(sys.modules)
"""
    for more in ({}, {"RUNNER_STATE": str(tmp_path / "none"), "RUNNER_ATTEMPT": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **more},
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (b"", b"", [])


@pytest.mark.parametrize("value", [object(), (1, 2), {1: 2}, {"a": {1}}, b"x", [object()]])
def test_state_takes_only_what_json_can_hold(value: object) -> None:
    state = runner.attach().state
    with pytest.raises(TypeError, match=r"run\.state\['best'\] = a .*expected what JSON holds"):
        state["best"] = value
    assert "best" not in state


def test_state_that_was_changed_inside_is_refused_when_saved() -> None:
    state = runner.attach().state
    state["list"] = []
    state["list"].append(object())
    with pytest.raises(TypeError, match="'list'"):
        state.snapshot()  # type: ignore[attr-defined]


@pytest.mark.parametrize("every", ["", "often", "-3s", "0 steps", "5 parsecs"])
def test_a_cadence_that_cannot_be_read(every: str) -> None:
    with pytest.raises(ValueError, match="every"):
        runner.attach(every=every)


# --- killed and resumed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Attempt]:
    job = Job(tmp_path_factory.mktemp("undisturbed"), "loops.py")
    return job, job.run_through()


def test_loops_of_every_shape_are_resumed_exactly(
    tmp_path: Path, nursery: Nursery, undisturbed: tuple[Job, Attempt]
) -> None:
    job = Job(tmp_path, "loops.py", nursery=nursery)
    done = job.run_through(kill=" ".join(KILLS))
    assert done.results == undisturbed[1].results
    assert lines(job) == lines(undisturbed[0])
    assert [line["step"] for line in lines(job) if line["fit"] == 0] == list(range(12))
    assert job.facts_of("best")
    resumed = job.facts_of("resumed")
    assert all(fact["exact"] for fact in resumed), resumed
    for fact, least in zip(resumed, KILLS.values(), strict=True):
        assert least <= fact["step"] <= least + 4, resumed
    assert {(fact["exact"], fact["reason"]) for fact in job.facts_of("classified")} == {
        (True, "for what is attached and tracked")
    }


def test_a_plain_script_gives_the_same(tmp_path: Path, undisturbed: tuple[Job, Attempt]) -> None:
    plain = Job(tmp_path, "loops.py").plain()
    assert plain.results == undisturbed[1].results, plain.errors


def test_control_what_is_not_tracked_is_not_resumed(
    tmp_path: Path, nursery: Nursery, undisturbed: tuple[Job, Attempt]
) -> None:
    done = Job(tmp_path, "loops.py", nursery=nursery).run_through("--untracked", kill="duel:8")
    assert done.results["plain"] == undisturbed[1].results["plain"]
    assert done.results["critic"] != undisturbed[1].results["critic"]


def test_models_that_the_first_step_builds_are_resumed_exactly(tmp_path: Path, nursery: Nursery) -> None:
    expected = Job(tmp_path / "undisturbed", "lazy.py", nursery=nursery).run_through().results
    job = Job(tmp_path / "killed", "lazy.py", nursery=nursery)
    assert job.run_through(kill="tape:2 on-batch:6").results == expected


def test_a_stop_is_obeyed_at_the_next_step(tmp_path: Path) -> None:
    job = Job(tmp_path, "lazy.py")
    first = job.start("--slow", "--compiled-chance", every=("steps", 10_000))
    first.until(lambda: any(fact["fit"] == 1 for fact in job.facts_of("fit-started")))
    first.until(lambda: len([f for f in job.facts_of("phase") if f["phase"] == "train"]) == 2)
    first.send(signal.SIGTERM)
    (job.folder / "asked").touch()
    assert first.wait().code == 75, first.errors
    step = job.facts_of("checkpoint")[-1]["step"]
    second = job.run("--compiled-chance")
    assert second.code == 0, second.errors
    (resumed,) = job.facts_of("resumed", 2)
    assert resumed["step"] == step
    assert not resumed["exact"], "a compiled function draws from a state that nobody can read"
    assert "tf.random.*" in resumed["reason"]


SMALL = """
import os, sys, keras, numpy as np, runner
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense({units})])
run = runner.attach(model, every="2 steps")
for step in run.steps(9):
    model.layers[0].kernel.assign_add(np.random.normal(size=(2, {units})))
    run.state["n"] = step
    if step == 4:
        assert run.checkpoint() is None or run.checkpoint().exists()
    if step == 5 and os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
print("RESULT end", model.layers[0].kernel.numpy().tolist(), run.state)
"""


def attempt_of_command(job: Job, **more: str) -> Attempt:
    environ = job.environment({**job.prepare(entry=None), "PYTHONPATH": str(ROOT), **more})
    process = subprocess.Popen(
        [sys.executable, "small.py"],
        cwd=job.folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Attempt(job, process).wait()


def test_a_jobs_command_can_attach_itself(tmp_path: Path) -> None:
    text = SMALL.format(units=1)
    expected = attempt_of_command(Job(tmp_path / "undisturbed", "small.py", text=text))
    job = Job(tmp_path / "killed", "small.py", text=text)
    assert attempt_of_command(job, DIE="1").code == -signal.SIGKILL
    (job.folder / "small.py").write_text(SMALL.format(units=3))
    refused = attempt_of_command(job)
    assert refused.code == 78, "another model: never trained from scratch"
    assert "has shape [2, 3]; in the checkpoint [2, 1]" in refused.errors
    (job.folder / "small.py").write_text(text)
    done = attempt_of_command(job)
    assert (done.code, done.results) == (0, expected.results), done.errors
    (resumed,) = job.facts_of("resumed", 3)
    assert resumed["step"] == 5, "the checkpoint that the script asked for counts its step as completed"
    assert json.loads(job.paths.progress.read_text())["step"] == 9


OBJECTS = """
import dataclasses, os, keras, numpy as np, runner


@dataclasses.dataclass
class Record:
    step: int
    value: float


keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
run = runner.attach(model, every="2 steps")
records = run.track([])
for step in run.steps(9):
    model.layers[0].kernel.assign_add(np.random.normal(size=(2, 1)))
    records.append(Record(step, float(np.random.rand())))
    if step == 5 and os.environ.get("DIE"):
        run.checkpoint()
        os.kill(os.getpid(), 9)
print("RESULT end", [dataclasses.astuple(one) for one in records])
"""


def test_objects_of_the_scripts_own_classes_are_tracked(tmp_path: Path, nursery: Nursery) -> None:
    expected = Job(tmp_path / "undisturbed", "objects.py", text=OBJECTS, nursery=nursery).run().results
    job = Job(tmp_path / "killed", "objects.py", text=OBJECTS, nursery=nursery)
    assert job.run(env={"DIE": "1"}).code == -signal.SIGKILL
    done = job.run()
    assert (done.code, done.results) == (0, expected), done.errors
    assert [fact["exact"] for fact in job.facts_of("resumed")] == [True]


UNSHAPED = """
import tensorflow as tf, runner

v = tf.Variable([0.0], shape=tf.TensorShape([None]))
run = runner.attach()
run.track(v)
for step in run.steps(20):
    v.assign([float(step)])
print("RESULT v", float(v[0]))
"""


def test_a_loop_with_what_has_no_shape_trains_to_its_end(tmp_path: Path) -> None:
    job = Job(tmp_path, "train.py", text=UNSHAPED, keeper=True)
    done = job.start(every=("steps", 3)).wait()
    assert (done.code, done.results) == (0, {"v": "19.0"}), done.errors
    assert any("no more checkpoints in loop 0" in fact["message"] for fact in job.facts_of("warning"))
