"""Nothing that only looks like a hang is one: jobs of uneven steps, stopped, under a clock that is set.

This is the short form; `make patience` goes on for an hour, and stops all for a minute at a time. The seed of
what is drawn is printed. At its end one job really hangs, in the long form also one whose limit is learned: a
supervisor that is merely blind fails too.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.cli import lab
from runner.core.hang import PATIENCE, limit_s
from runner.core.job import Outcome, State
from runner.supervisor import process
from tests.system.conftest import Site, assert_events_in_order
from tests.waiting import wait_for

MINUTES = float(os.environ.get("PATIENCE_MINUTES", "0.2"))
LONG = "PATIENCE_MINUTES" in os.environ
#: A step takes from a hundredth of this to all of it; twice as much is a hang.
STEP_S = 2.0 if LONG else 1.0
LIMIT_S = 2 * STEP_S
STOPPED_S = 60.0 if LONG else 3.0
#: What a busy machine, as beside other tests, adds to the second in which a hang is to be found.
BUSY_S = 0.0 if LONG else 2.0
#: A learned limit is no less, which is too long for the short form. A stop adds up to a second to a step at
#: each of its ends, as no look sees more: a hundred times such a pause is less than twice that.
LEARNED_S = PATIENCE["train"].floor_s
LEARNED_S_MAX = 2 * LEARNED_S
DAY_S = 86400
#: libfaketime has no time.sleep under a monotonic clock that it leaves alone.
SLEEP = """
import select
def sleep(seconds):
    select.select([], [], [], seconds)
"""
#: Reports a step after each of its pauses, until a file says that it is over, or that it is to hang.
UNEVEN = """
import json, os, random, sys, time
state, attempt = os.environ["RUNNER_STATE"], int(os.environ["RUNNER_ATTEMPT"])
step_s, chance, step = float(sys.argv[1]), random.Random(sys.argv[2]), 0
while not os.path.exists("over"):
    if os.path.exists("hang") and attempt == 1:
        with open("hung", "w") as out:
            out.write(str(time.monotonic()))
        sleep(3600)
    sleep(step_s / 100 * 100 ** chance.random())
    step += 1
    fields = {"version": 1, "attempt": attempt, "pid": os.getpid(), "step": step, "phase": "train"}
    with open(state + "/.staged", "w") as out:
        json.dump({**fields, "time": time.strftime("%FT%TZ", time.gmtime())}, out)
    os.rename(state + "/.staged", state + "/progress.json")
"""
#: An ordinary training whose steps are as uneven. The autotuning of tf.data waits by the clock of the day: an
#: iterator's end waits with it for as long as that is set back, a hang with or without a supervisor.
TRAINING = """
import os, random, sys, time
import keras, numpy as np, tensorflow as tf
step_s, chance = float(sys.argv[1]), random.Random(5)
class Uneven(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        sleep(step_s / 100 * 100 ** chance.random())
        self.model.stop_training = os.path.exists("over")
        if self.model.stop_training:
            raise KeyboardInterrupt
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
data, options = tf.data.Dataset.from_tensor_slices((np.ones((64, 3)), np.ones((64, 1)))), tf.data.Options()
options.autotune.enabled = False
try:
    model.fit(data.batch(8).with_options(options), epochs=100_000, verbose=0, callbacks=[Uneven()])
except KeyboardInterrupt:
    pass
"""


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """What sets the clock of all that is started from now on to so many seconds from the true one.

    The monotonic clock, as when a real one is set, goes on.
    """
    preload = lab.faketime()
    if preload is None:
        pytest.skip("needs Debian's package libfaketime")
    said = tmp_path / "clock"

    def step(seconds: int) -> None:
        staged = tmp_path / "staged-clock"
        staged.write_text(f"{seconds:+d}s\n")
        staged.rename(said)

    step(0)
    for name, value in lab.clocked(said, preload).items():
        monkeypatch.setenv(name, value)
    return step


def submit(site: Site, name: str, seed: int, *, learns: bool = False) -> None:
    limit = "" if learns else f'[limits]\nhang = "{LIMIT_S:g}s"\n'
    toml = f'{limit}[restart]\nbackoff = "50ms..100ms"\n[resources]\ncpus = 0.1\n'
    site.submit(name, command=[sys.executable, "-c", SLEEP + UNEVEN, str(STEP_S), f"{seed}{name}"], toml=toml)


def submit_training(site: Site) -> None:
    staged = site.home.jobs / ".trains.tmp"
    staged.mkdir()
    (staged / "train.py").write_text(SLEEP + TRAINING)
    # Keras itself takes seconds to end, on a busy machine, and that counts: a limit of the user's own is one.
    (staged / "job.toml").write_text(
        f'args = ["{STEP_S}"]\n[limits]\nhang = "{LIMIT_S + 15:g}s"\n[resources]\ncpus = 0.1\n'
        '[env]\nCUDA_VISIBLE_DEVICES = ""\n'
    )
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder("trains"))


def stopped(pids: list[int], seconds: float) -> None:
    """Stop processes for so long."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    pass_time(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def pass_time(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, "the time to pass", seconds + 30)


def off_s(site: Site, name: str) -> float:
    """Return how far the clock is off by which the supervisor dates what it does with another job."""
    site.submit(name, command=[sys.executable, "-c", "pass"])
    site.wait(name, State.SUCCEEDED)
    dated = datetime.fromisoformat(site.events(name)[-1]["time"])
    return (dated - datetime.now(UTC)).total_seconds()


def allows_s(site: Site, name: str) -> float:
    """Return after how long without a step a job hangs: its own limit, or what its pauses have taught."""
    job = site.wait(name, State.STOPPING, State.QUEUED, State.BACKOFF, State.RUNNING)
    return limit_s("train", job.spec.limits, job.pace)


def members(site: Site, names: list[str]) -> list[int]:
    """Return the processes of these jobs, their shims first."""
    shims = [site.identity(name, "shim").pid for name in names]
    marks = [("RUNNER_STATE", str(site.home.job(name).dir)) for name in names]
    return shims + [pid for mark in marks for pid in process.carrying(mark)]


@pytest.mark.timeout(240 + 75 * MINUTES + LEARNED_S_MAX * LONG)
def test_patience(site: Site, clock: Callable[[int], None]) -> None:
    seed = int(os.environ.get("PATIENCE_SEED", random.randrange(10**6)))
    sys.stdout.write(f"seed {seed}\n")
    chance, names = random.Random(seed), ["one", "two", "three", "trains"]
    daemon = site.start()
    for name in names[:-1]:
        submit(site, name, seed, learns=LONG and name == "two")
    submit_training(site)
    for name in names:
        wait_for(site.home.job(name).progress.exists, f"{name} to get on", 120)
    deeds: dict[str, Callable[[], None]] = {
        "all stopped": lambda: stopped([daemon.pid, *members(site, names)], STOPPED_S),
        "supervisor stopped": lambda: stopped([daemon.pid], STOPPED_S),
        "jobs stopped": lambda: stopped(members(site, names), STOPPED_S),
        "a day later": lambda: clock(DAY_S),
        "a day earlier": lambda: clock(-DAY_S),
        "the true time": lambda: clock(0),
    }
    until, done = time.monotonic() + 60 * MINUTES, dict.fromkeys(deeds, 0)
    while time.monotonic() < until or not all(done.values()):
        for what in chance.sample(list(deeds), len(deeds)):
            deeds[what]()
            done[what] += 1
            pass_time(chance.uniform(0.2, 1.5 * STEP_S))
    sys.stdout.write(f"{done}\n")
    assert [name for name in names if "hung" in site.kinds(name)] == []
    for seconds in (DAY_S, -DAY_S):
        clock(seconds)
        assert off_s(site, f"off{seconds}".replace("-", "minus")) == pytest.approx(seconds, abs=120)
    hung = {"one": (LIMIT_S, LIMIT_S)} | ({"two": (LEARNED_S, LEARNED_S_MAX)} if LONG else {})
    for name, (least_s, most_s) in hung.items():
        (site.home.folder(name) / "hang").touch()
        wait_for(lambda name=name: "hung" in site.kinds(name), "a real hang to be found", most_s + 30)
        found_s = time.monotonic() - float((site.home.folder(name) / "hung").read_text())
        allowed_s = allows_s(site, name)
        sys.stdout.write(f"{name}: a limit of {allowed_s:g} s, found after {found_s:.2f} s\n")
        assert least_s <= allowed_s <= most_s
        assert allowed_s <= found_s < allowed_s + 1.0 + BUSY_S
    for name in names:
        (site.home.folder(name) / "over").touch()
    for name in names:
        job = site.wait(name, State.SUCCEEDED, timeout_s=60)
        wanted = [Outcome.HUNG, Outcome.SUCCEEDED] if name in hung else [Outcome.SUCCEEDED]
        assert [attempt.outcome for attempt in job.attempts] == wanted
        assert_events_in_order(site.events(name))
