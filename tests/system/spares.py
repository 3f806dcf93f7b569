"""What the tests of spares have in common."""

from __future__ import annotations

import contextlib
import shutil
import sys

from runner.storage import records
from runner.supervisor import process
from tests.system.conftest import COUNTER, Site
from tests.waiting import wait_for

#: The counter as a script that imports a package, and says at once that it trains.
COUNTS = """
import os, sys
import numpy
from runner.training import worker
with open("starts", "a") as out:
    out.write(f"{os.getpid()} {os.environ['RUNNER_ATTEMPT']} {numpy.__file__}\\n")
worker.current().phase("train")
exec(compile(open("counter.py").read(), "counter.py", "exec"))
"""
#: Chance from everywhere, unseeded: packages draw from it too, as they are imported. It waits to be let end.
FITS = """
import gc, hashlib, os, random, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import keras
print("level", os.environ["TF_CPP_MIN_LOG_LEVEL"], sys.argv, len(sys.path), flush=True)
print("collections since a full one:", gc.get_count()[2], flush=True)


class Wait(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        while int(self.model.optimizer.iterations) == 30 and not os.path.exists("enough"):
            time.sleep(0.01)


draws = [random.random(), np.random.rand(), np.random.default_rng().random()]
x = np.random.default_rng().random((64, 8), "float32")
y = np.random.default_rng().integers(0, 3, 64)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.3), keras.layers.Dense(3)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
history = model.fit(x, y, batch_size=8, epochs=6, verbose=0, callbacks=[Wait()]).history
draws += [random.random(), np.random.rand(), np.random.default_rng().random()]
weights = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
with open("result", "w") as out:
    out.write(f"{draws} {history} {weights}")
"""
WAIT_S = 240.0
FOR_EVER = 1_000_000


def submit(
    site: Site,
    name: str,
    target: int = FOR_EVER,
    toml: str = "",
    script: str = COUNTS,
    spare: str = "warm",
    restart: str = "",
) -> None:
    """Put a job in place whose script runs under the bootstrap, and wants a spare."""
    staged = site.home.jobs / f".{name}.tmp"
    staged.mkdir()
    (staged / "train.py").write_text(script)
    (staged / "own.py").write_text("value = 1\n")
    (staged / "python").symlink_to(sys.executable)
    shutil.copy(COUNTER, staged)
    restart = f'[restart]\nspare = "{spare}"\n{restart}'
    settings = f'args = ["{target}"]\n{toml}{restart}[resources]\ncpus = 0\n[seed]\nvalue = 7\n'
    (staged / "job.toml").write_text(settings)
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder(name))


def spare_of(site: Site, name: str) -> process.Identity | None:
    """Return the worker of the job's spare, where that is ready."""
    with contextlib.suppress(OSError):
        about = records.load_json(site.home.job(name).spare.shim)
        return process.Identity.parse(about["worker"]) if about["ready"] else None
    return None


def waits(site: Site, name: str) -> process.Identity:
    return wait_for(lambda: spare_of(site, name), f"the spare of {name}", WAIT_S)
