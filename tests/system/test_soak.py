"""The tutorial's job, 150 epochs on the Pima data, killed at random moments: the result is as undisturbed.

This is the short form, unseeded and of fewer epochs; `make soak` kills 40 times, and has the script seeded
too. The seed of the moments is printed. Without the real data (PIMA_CSV), made ones of the same form are
taken.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runner.core.job import Outcome, State
from runner.storage import records
from tests.system.conftest import Site, assert_events_in_order
from tests.system.test_storm import kill_worker
from tests.waiting import wait_for

LONG = "SOAK_KILLS" in os.environ
KILLS = int(os.environ.get("SOAK_KILLS", "2"))
SEEDED = [False, True] if LONG else [False]
EPOCHS = 150 if LONG else 60
#: Half of the kills come at any moment of a start, the others while it trains.
STARTING_S, TRAINING_S = 3.5, 0.5
SCRIPT = Path(__file__).parents[2] / "jobs" / "pima" / "train.py"
SEED = "import keras\n\nkeras.utils.set_random_seed(7)\n"
FINAL = """
import hashlib
import random

import h5py

sums = [hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for v in model.variables]
sums += [hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for v in model.optimizer.variables]
for path in sorted(Path().glob("*.weights.h5")):
    with h5py.File(path) as file:
        found = []
        file.visititems(
            lambda name, item: found.append((name, item[()].tobytes() if hasattr(item, "dtype") else ""))
        )
    sums.append((path.name, hashlib.sha256(repr(sorted(found)).encode()).hexdigest()))
Path("final.txt").write_text(repr((sums, history.history, np.random.random(), random.random())))
"""


def submit(site: Site, name: str, seeded: bool) -> None:
    staged = site.home.jobs / f".{name}.tmp"
    staged.mkdir()
    script = SCRIPT.read_text()
    assert script.count("epochs=150,") == 1
    script = script.replace("epochs=150,", f"epochs={EPOCHS},")
    (staged / "train.py").write_text((SEED if seeded else "") + script + FINAL)
    if os.environ.get("PIMA_CSV"):
        shutil.copy(os.environ["PIMA_CSV"], staged / "pima-indians-diabetes.csv")
    else:
        rows = np.random.default_rng(1).random((768, 9)).round(2)
        rows[:, 8] = rows[:, :2].sum(axis=1) > 1
        np.savetxt(staged / "pima-indians-diabetes.csv", rows, delimiter=",", fmt="%g")
    (staged / "job.toml").write_text(
        '[seed]\nvalue = 7\n[restart]\nbudget = 1000\nbackoff = "10ms..20ms"\n'
        '[env]\nCUDA_VISIBLE_DEVICES = ""\nPIMA_CSV = ""\n'
    )
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder(name))


def trains(site: Site, name: str, number: int) -> bool:
    try:
        progress = records.load_json(site.home.job(name).progress)
    except FileNotFoundError:
        return False
    return progress["attempt"] == number and progress["phase"] in {"train", "validate", "callbacks"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seeded", SEEDED)
def test_the_pima_job_is_not_changed_by_kills(site: Site, seeded: bool) -> None:
    seed = random.randrange(1 << 32)
    sys.stderr.write(f"soak seed {seed}\n")
    chance = random.Random(seed)
    site.start()
    submit(site, "undisturbed", seeded)
    undisturbed = site.wait("undisturbed", State.SUCCEEDED, timeout_s=200)
    submit(site, "killed", seeded)
    for number in range(1, KILLS + 1):
        wait_for(
            lambda number=number: (
                (job := site.job("killed")) is not None and job.attempt == number and site.living("killed")
            ),
            f"attempt {number}",
        )
        starting = chance.random() < 0.5
        if not starting:
            wait_for(lambda number=number: trains(site, "killed", number), f"attempt {number} to train", 200)
        # The random moment itself, not a wait for anything:
        time.sleep(chance.uniform(0.0, STARTING_S if starting else TRAINING_S))
        assert site.job("killed").state is State.RUNNING, "the job ended before the last kill"
        kill_worker(site, "killed")
        wait_for(lambda number=number: site.job("killed").attempt == number + 1, f"attempt {number + 1}")
    killed = site.wait("killed", State.SUCCEEDED, timeout_s=200)
    assert undisturbed.attempt == 1
    assert [a.outcome for a in killed.attempts[:-1]] == [Outcome.CRASHED] * KILLS
    results = [(site.home.folder(name) / "final.txt").read_text() for name in ("undisturbed", "killed")]
    assert results[0] == results[1]
    metrics = [site.home.job(name).metrics.read_text().splitlines() for name in ("undisturbed", "killed")]
    assert len(metrics[0]) == len(metrics[1]) == EPOCHS
    assert_events_in_order(site.events("killed"))
    assert site.living("killed") == []
