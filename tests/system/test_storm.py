"""The product's own promise, end to end: a storm of kills over one job changes nothing about its result.

This is the short form; `make storm` runs it with 20 and 5 kills. The seed of the storm is printed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from runner.core.job import Outcome, State
from runner.storage import records
from tests.system.conftest import Site, assert_events_in_order
from tests.waiting import wait_for

KILLS = int(os.environ.get("STORM_KILLS", "3"))
BOTH = int(os.environ.get("STORM_BOTH", "1"))
#: So many that it does not end before the last strike.
EPOCHS = 50 if "STORM_KILLS" in os.environ else 15
#: One strike in four comes at any moment from the process's start on, the others while it trains.
EARLY_SHARE = 0.25
EARLY_S, TRAINING_S = 4.0, 1.0
SCRIPT = Path(__file__).with_name("storm") / "train.py"


def submit(site: Site, name: str) -> None:
    staged = site.home.jobs / f".{name}.tmp"
    staged.mkdir()
    shutil.copy(SCRIPT, staged / "train.py")
    (staged / "job.toml").write_text(
        f'args = ["{EPOCHS}", "0.006"]\n[seed]\nvalue = 7\n'
        '[restart]\nbudget = 1000\nfatal_exit_codes = [1]\nbackoff = "10ms..20ms"\n'
        '[checkpoint]\nevery = "1s"\n[env]\nCUDA_VISIBLE_DEVICES = ""\n'
    )
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder(name))


def kill_worker(site: Site, name: str) -> None:
    os.kill(site.identity(name, "worker").pid, signal.SIGKILL)


def kill_both(site: Site, name: str) -> None:
    daemon = site.daemons[-1]
    daemon.kill()
    kill_worker(site, name)
    daemon.wait()
    site.start()


def trains(site: Site, number: int) -> bool:
    try:
        progress = records.load_json(site.home.job("stormy").progress)
    except FileNotFoundError:
        return False
    return progress["attempt"] == number and progress["phase"] == "train" and progress["step"] > 0


def has_begun(site: Site, number: int) -> bool:
    job = site.job("stormy")
    return job is not None and job.attempt == number and bool(site.living("stormy"))


@pytest.mark.timeout(600)
def test_a_storm_of_kills_changes_nothing(site: Site) -> None:
    seed = random.randrange(1 << 32)
    sys.stderr.write(f"storm seed {seed}\n")
    chance = random.Random(seed)
    site.start()
    submit(site, "undisturbed")
    submit(site, "stormy")
    strikes = [kill_worker] * KILLS + [kill_both] * BOTH
    for number, strike in enumerate(strikes, 1):
        wait_for(lambda number=number: has_begun(site, number), f"attempt {number}")
        early = chance.random() < EARLY_SHARE
        if not early:
            wait_for(lambda number=number: trains(site, number), f"attempt {number} to train", 200)
        # The random moment itself, not a wait for anything:
        time.sleep(chance.uniform(0.0, EARLY_S if early else TRAINING_S))
        assert site.job("stormy").state is State.RUNNING, "the job ended before the storm was over"
        strike(site, "stormy")
        wait_for(lambda number=number: site.job("stormy").attempt == number + 1, f"attempt {number + 1}")
    stormy = site.wait("stormy", State.SUCCEEDED, timeout_s=200)
    undisturbed = site.wait("undisturbed", State.SUCCEEDED, timeout_s=200)
    assert undisturbed.attempt == 1
    assert stormy.attempt == len(strikes) + 1
    assert {a.outcome for a in stormy.attempts[:-1]} == {Outcome.CRASHED}

    def final(name: str) -> dict[str, object]:
        return json.loads((site.home.folder(name) / "final.json").read_text())

    assert final("stormy") == final("undisturbed")
    metrics = [site.home.job(name).metrics.read_text().splitlines() for name in ("stormy", "undisturbed")]
    epochs = [[json.loads(line)["epoch"] for line in lines] for lines in metrics]
    assert epochs[0] == epochs[1]
    assert_events_in_order(site.events("stormy"))
    assert site.living("stormy") == []
    assert site.living("undisturbed") == []
