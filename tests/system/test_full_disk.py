"""A disk that is full for a while: training goes on, and nothing is missing afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.cli import facts
from runner.core.job import State
from runner.supervisor import process
from tests.system.conftest import Site, assert_events_in_order
from tests.waiting import wait_for

#: Trains ten epochs and prints much; waits in the seventh for leave to go on, and is slow then.
SCRIPT = """
import hashlib, os, time
import keras, numpy as np

out = os.environ["OUT"]


class Pace(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        until = time.monotonic() + (6 if self.epoch > 6 else 0.01)
        while time.monotonic() < until and not os.path.exists(f"{out}/enough"):
            time.sleep(0.01)

    def on_epoch_end(self, epoch, logs=None):
        print("." * 5000)
        open(f"{out}/epoch-{epoch}", "w").close()
        while epoch == 6 and not os.path.exists(f"{out}/go"):
            time.sleep(0.01)


keras.utils.set_random_seed(3)
x, y = np.random.rand(160, 64), np.random.rand(160, 1)
layers = [keras.layers.Dense(256, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((64,)), *layers])
model.compile("adam", "mse")
history = model.fit(x, y, batch_size=16, epochs=10, verbose=1, callbacks=[Pace()], validation_data=(x, y))
arrays = [np.asarray(one).tobytes() for one in (*model.variables, *model.optimizer.variables)]
with open(f"{out}/result", "w") as file:
    file.write(hashlib.sha256(b"".join(arrays)).hexdigest() + repr(history.history))
print("the last line")
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def submit(site: Site, name: str, out: Path) -> None:
    staged = site.home.jobs / f".{name}.tmp"
    staged.mkdir()
    (staged / "train.py").write_text(SCRIPT)
    toml = f"[env]\nOUT = {json.dumps(str(out))}\n[seed]\nvalue = 5\n"
    # With one alone, none goes to make room for the next.
    toml += '[checkpoint]\nevery = "4 steps"\nkeep = 1\n'
    (staged / "job.toml").write_text(toml)
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder(name))


def metrics(site: Site, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in site.home.job(name).metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def memories(pid: int) -> list[str]:
    """What memory files a process holds."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            found.append(str(path.readlink()))
    return [target for target in found if "memfd:runner-snapshots" in target]


def fill(path: Path) -> None:
    """Fill the disk, also where somebody has given something back since."""
    with path.open("ab", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"x" * 4096)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """The result and the metrics of an undisturbed training."""
    root = tmp_path_factory.mktemp("plain")
    (root / "go").touch()
    (root / "enough").touch()
    site = Site(root / "home")
    try:
        site.start()
        submit(site, "plain", root)
        site.wait("plain", State.SUCCEEDED, timeout_s=90)
        return (root / "result").read_text(), metrics(site, "plain")
    finally:
        site.close()


@contextlib.contextmanager
def training_on_a_full_disk(small_disk: Path, full: Path) -> Iterator[Site]:
    """A job that has a checkpoint, and has trained on since the disk is full."""
    full.mkdir()
    site = Site(small_disk / "home")
    site.log = full / "daemon.log"
    try:
        site.start()
        submit(site, "full", full)
        wait_for(lambda: "checkpoint" in site.kinds("full"), "the first checkpoint")

        def goes_on() -> bool:
            fill(small_disk / "ballast")
            return (full / "epoch-6").exists()

        wait_for(goes_on, "the training to go on")
        yield site
    finally:
        site.close()


def test_a_training_outlasts_a_full_disk_and_nothing_is_missing(
    small_disk: Path, tmp_path: Path, plain: tuple[str, list[dict[str, Any]]]
) -> None:
    full = tmp_path / "full"
    with training_on_a_full_disk(small_disk, full) as site:
        assert "are needed" in facts.gather(site.home, "full")["disk"]
        (small_disk / "ballast").unlink()
        # The script stands still: what follows is the retry, by the clock, not by a step.
        wait_for(lambda: "save-failed" in site.kinds("full"), "what was not written then to follow")
        assert facts.gather(site.home, "full")["disk"] is None
        (full / "go").touch()

        def recovered() -> bool:
            kinds = site.kinds("full")
            return "checkpoint" in kinds[len(kinds) - kinds[::-1].index("save-failed") :]

        wait_for(recovered, "saving to recover")
        (full / "enough").touch()
        job = site.wait("full", State.SUCCEEDED, timeout_s=90)
        assert job.attempt == 1
        assert (full / "result").read_text() == plain[0]
        assert metrics(site, "full") == plain[1]
        assert_events_in_order(site.events("full"))
        log = site.home.job("full").attempt(1).log.read_text(errors="replace")
        assert "bytes of output are missing here" in log
        assert log.endswith("the last line\n")


def test_a_worker_that_dies_on_a_full_disk_is_resumed_from_memory(
    small_disk: Path, tmp_path: Path, plain: tuple[str, list[dict[str, Any]]]
) -> None:
    full = tmp_path / "full"
    with training_on_a_full_disk(small_disk, full) as site:
        saved = site.home.job("full").list_checkpoints()[-1][0]
        keeper = site.identity("full", "keeper")
        os.kill(site.identity("full", "worker").pid, signal.SIGKILL)
        wait_for(lambda: not process.is_alive(keeper), "the keeper to have tried")
        assert len(memories(site.daemons[-1].pid)) == 1
        (small_disk / "ballast").unlink()
        (full / "go").touch()
        (full / "enough").touch()
        job = site.wait("full", State.SUCCEEDED, timeout_s=90)
        assert job.attempt == 2
        (resumed,) = [event for event in site.events("full") if event["event"] == "resumed"]
        assert resumed["path"] is None
        assert resumed["exact"]
        assert resumed["step"] > saved
        assert job.attempts[1].start_step == resumed["step"]
        wait_for(lambda: not memories(site.daemons[-1].pid), "the daemon to let go of the memory")
        assert (full / "result").read_text() == plain[0]
        assert metrics(site, "full") == plain[1]
        assert_events_in_order(site.events("full"))
