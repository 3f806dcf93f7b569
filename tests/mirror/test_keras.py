"""An ordinary Keras job goes on from its mirror in another home, and ends as if it had never been moved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from runner.core.job import State
from runner.storage import checkpoint, mirrored
from tests.mirror.conftest import Home
from tests.mirror.servers import Place
from tests.waiting import wait_for

SCRIPT = """
import os
import time
import keras
import numpy as np

x = np.random.random((160, 4)).astype("float32")
layers = [keras.layers.Dense(8), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((4,)), *layers])
model.compile("adam", "mse")


def wait(batch, logs):
    while model.optimizer.iterations == 45 and not os.path.exists("go"):
        time.sleep(0.02)


pause = keras.callbacks.LambdaCallback(on_train_batch_end=wait)
model.fit(x, x.sum(axis=1), epochs=10, batch_size=16, validation_split=0.1, callbacks=[pause], verbose=0)
"""


def submit(home: Home, url: str, *, wait: bool = False) -> None:
    """Submit the script; it trains to its end, or waits at step 45 for a file `go`."""
    staged = home.home.jobs / ".fit.tmp"
    staged.mkdir()
    (staged / "train.py").write_text(SCRIPT)
    if not wait:
        (staged / "go").touch()
    (staged / "job.toml").write_text(f'[checkpoint]\nevery = "10 steps"\nmirror = "{url}"\n')
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(home.home.folder("fit"))


def taken_aside(medium: Path, aside: Path) -> bool:
    """Copy what the medium holds now; False where it changed meanwhile."""
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(medium, aside, ignore=shutil.ignore_patterns("*.tmp"))
    except shutil.Error:
        return False
    return True


def test_a_moved_job_ends_as_if_it_had_stayed(
    homes: Callable[[str], Home], folder: Place, tmp_path: Path
) -> None:
    first = homes("first")
    first.start()
    submit(first, folder.url, wait=True)
    wait_for(lambda: any(map(mirrored.step_of, first.status("fit").files)), "a checkpoint on the mirror", 200)
    wait_for(lambda: taken_aside(folder.root, tmp_path / "aside"), "a copy of the mirror")
    (first.home.folder("fit") / "go").touch()
    first.wait("fit", State.SUCCEEDED, timeout_s=300)
    first.wait_mirrored("fit")
    first.close()
    shutil.rmtree(folder.root)
    (tmp_path / "aside").rename(folder.root)

    second = homes("second")
    bad = second.home.job("fit").checkpoint(1)  # all that is left there is damaged: the mirror is looked at
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"not a checkpoint")
    second.start()
    submit(second, folder.url)
    second.wait("fit", State.SUCCEEDED, timeout_s=300)
    restored, resumed = second.event("fit", "restored"), second.event("fit", "resumed")
    assert restored["attempt"] == 2
    assert 0 < restored["step"] < 90
    assert (resumed["step"], resumed["exact"]) == (restored["step"], True)
    assert second.job_of("fit").charged == 0
    ends = [checkpoint.read(home.home.job("fit").fit(0)) for home in (first, second)]
    assert ends[0].arrays.keys() == ends[1].arrays.keys()
    for key, array in ends[0].arrays.items():
        assert array.tobytes() == ends[1].arrays[key].tobytes(), key
    metrics = [(home.home.job("fit").metrics).read_text().count("\n") for home in (first, second)]
    assert metrics == [10, 10]
