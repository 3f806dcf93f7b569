"""Disks with no room, no inodes, read-only, gone: saving fails, says so, and recovers; a script goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.core.spec import CadenceUnit, CheckpointSpec, Every
from runner.storage import checkpoint, disk
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training.report import Facts, MetricsLog
from runner.training.saver import Saver
from tests.training.harness import Job


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB and 40 files, with a job's state folder on it."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=40", "tmpfs", str(path)], check=True)
    (path / "state").mkdir()
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(b"x" * 4096)


def snapshot(step: int, size: int = 400_000) -> Snapshot:
    return Snapshot(step, 0, {}, {"a": np.full(size, step % 251, np.uint8)})


class Bench:
    def __init__(self, root: Path, keep: int = 3) -> None:
        self.paths = JobPaths(root / "state")
        self.facts: list[dict[str, Any]] = []
        spec = CheckpointSpec(Every(CadenceUnit.STEPS, 1), keep=keep)
        self.saver = Saver(self.paths, spec, self.facts.append)

    def save(self, step: int, size: int = 400_000) -> dict[str, Any]:
        """Have it saved as in a training; return what is told in the end."""
        self.saver.submit(snapshot(step, size), 0.0)
        assert self.saver.flush(30)
        return self.facts[-1]

    def steps(self) -> list[int]:
        found = self.paths.list_checkpoints()
        for step, path in found:
            assert checkpoint.read(path).arrays["a"][0] == step % 251
        return [step for step, _ in found]


def test_older_ones_go_for_a_newer_one_but_never_the_last_good_one(small: Path) -> None:
    bench = Bench(small, keep=9)
    for step in range(1, 5):
        assert bench.save(step)["event"] == "checkpoint"
    bench.paths.pin(1).parent.mkdir(exist_ok=True)
    bench.paths.pin(1).touch()
    assert bench.save(5)["event"] == "checkpoint"
    assert [fact["steps"] for fact in bench.facts if fact["event"] == "pruned"] == [[2]]
    assert bench.steps() == [1, 3, 4, 5]
    # One that has room only without 3 and 4; then one that has none at all.
    assert bench.save(6, 1_000_000)["event"] == "checkpoint"
    assert bench.steps() == [1, 5, 6]
    failed = bench.save(7, 1_700_000)
    assert failed["event"] == "save-failed"
    assert "bytes are needed" in failed["reason"]
    assert failed["retry_s"] == 1.0
    assert bench.steps() == [1, 5, 6], "none goes in vain"
    bench.saver.close()


def test_what_fits_only_without_its_older_copies_costs_none_of_them(small: Path) -> None:
    """With nothing that may go, nothing goes, and the old one stays whole."""
    bench = Bench(small)
    assert bench.save(1, 1_100_000)["event"] == "checkpoint"
    failed = bench.save(2, 1_100_000)
    assert failed["event"] == "save-failed"
    assert "pruned" not in [fact["event"] for fact in bench.facts]
    assert bench.steps() == [1]
    assert list(bench.paths.checkpoints.iterdir()) == [bench.paths.checkpoint(1)], "and no temporary file"
    bench.saver.close()


def test_a_file_system_without_inodes_is_told_and_saving_recovers(small: Path) -> None:
    bench = Bench(small)
    assert bench.save(1)["event"] == "checkpoint"
    hoard = [small / f"file-{number}" for number in range(100)]
    made = []
    for path in hoard:
        try:
            path.touch()
        except OSError:
            break
        made.append(path)
    failed = bench.save(2)
    assert failed["event"] == "save-failed"
    assert "no inodes left" in failed["reason"]
    for path in made:
        path.unlink()
    assert bench.save(3)["event"] == "checkpoint"
    assert bench.steps() == [1, 3]
    bench.saver.close()


def test_a_disk_that_turns_read_only_is_told_and_saving_recovers(small: Path) -> None:
    bench = Bench(small)
    assert bench.save(1)["event"] == "checkpoint"
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    failed = bench.save(2)
    assert failed["event"] == "save-failed"
    assert "read-only" in failed["reason"]
    assert "read-only" in str(disk.trouble(small))
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    assert disk.trouble(small) is None
    assert bench.save(3)["event"] == "checkpoint"
    assert bench.steps() == [1, 3]
    bench.saver.close()


def test_a_state_folder_that_is_gone_is_not_made_anew_elsewhere(small: Path) -> None:
    """As when its disk was unmounted: what is written below the mount point would be on the wrong disk."""
    bench = Bench(small)
    assert bench.save(1)["event"] == "checkpoint"
    (small / "state").rename(small / "elsewhere")
    failed = bench.save(2)
    assert failed["event"] == "save-failed"
    assert "is its disk mounted?" in failed["reason"]
    assert not (small / "state").exists()
    (small / "elsewhere").rename(small / "state")
    assert bench.save(3)["event"] == "checkpoint"
    assert bench.steps() == [1, 3]
    bench.saver.close()


def test_lines_that_find_no_room_follow_in_order_and_whole(small: Path) -> None:
    facts, log = Facts(small / "facts.jsonl"), MetricsLog(small / "metrics.jsonl")
    facts("first")
    log.note({"epoch": 0})
    fill(small / "ballast")
    words = "x" * 5000  # more than what is left of the page that each file has
    facts("second", words=words)
    with pytest.raises(OSError, match="No space"):
        log.note({"epoch": 1, "words": words})
    facts("third")
    torn = (small / "facts.jsonl").read_text()
    assert torn.count("\n") == 1, "a part of the second is there"
    size = log.size()
    (small / "ballast").unlink()
    facts("fourth")
    log.note({"epoch": 2})
    told = [json.loads(line) for line in (small / "facts.jsonl").read_text().splitlines()]
    assert [fact["event"] for fact in told] == ["first", "second", "third", "fourth"]
    assert told[1]["words"] == words
    epochs = [json.loads(line)["epoch"] for line in (small / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2]
    log.cut(size)
    assert log.size() == size == (small / "metrics.jsonl").stat().st_size
    assert (small / "metrics.jsonl").read_text().endswith('"}\n'), "what waited was counted"


def test_lines_that_waited_in_a_process_that_was_killed_are_in_its_snapshot(small: Path) -> None:
    path = small / "metrics.jsonl"
    fill(small / "ballast")
    first = MetricsLog(path)
    for epoch in range(3):
        with pytest.raises(OSError, match="No space"):
            first.note({"epoch": epoch})
    state = json.loads(json.dumps(first.state()))
    assert path.read_bytes() == b""
    with pytest.raises(OSError, match="No space"):
        first.note({"epoch": 3})
    # Killed now. The next process goes on from the snapshot, on a disk that is still full for a while.
    following = MetricsLog(path)
    following.restore(state)
    assert following.state() == state
    (small / "ballast").unlink()
    following.note({"epoch": 3})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    following.restore(state)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 2]
    following.restore({})
    assert path.read_bytes() == b""


def test_lines_are_written_anew_where_somebody_removed_the_file(tmp_path: Path) -> None:
    facts = Facts(tmp_path / "facts.jsonl")
    facts("first")
    (tmp_path / "facts.jsonl").unlink()
    facts("second")
    assert json.loads((tmp_path / "facts.jsonl").read_text()) == {"event": "second"}


def test_output_is_as_ever_where_there_is_room(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from runner.training import steady
if sys.argv[2]:
    steady.steady_output()
print("Grüße", end="")
sys.stdout.write(" and\\r\\nmore\\n")
sys.stdout.buffer.write(b"\\xff\\n")
sys.stdout.flush()
sys.stderr.write("said\\n")
assert sys.stdout.fileno() == 1 and not sys.stdout.isatty() and sys.stdout.writable()
print(sys.stdout.name, type(sys.stdout), sys.stdout.mode, sys.stdout.encoding, sys.stdout is sys.__stdout__)
"""
    root = str(Path(__file__).parents[2])
    for unbuffered in ("1", ""):
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8"}
        logs = []
        for steady in ("", "steady"):
            with (tmp_path / "log").open("wb") as log:
                command = [sys.executable, "-c", code, root, steady]
                subprocess.run(command, stdout=log, stderr=log, env=env, check=True)
            logs.append((tmp_path / "log").read_bytes())
        assert logs[0] == logs[1]
        assert "Grüße and\r\nmore\n".encode() in logs[1]


def test_output_of_other_errors_is_the_scripts_own(tmp_path: Path) -> None:
    from runner.training import steady

    with (tmp_path / "log").open("w") as log:
        stream = steady._steady(log)
        assert isinstance(stream, io.TextIOWrapper)
        stream.write("before\n")
        stream.flush()
        os.close(log.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            stream.write("x" * 100_000)
        os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)  # so that log may be closed


CRASHES = """
import os, time
import keras, numpy as np


class Many(keras.layers.Layer):
    def build(self, shape):
        for number in range(600):
            self.add_weight(shape=(2,), trainable=False, name=f"w{number}")

    def call(self, x):
        return x


def fail(batch, logs):
    if batch == 3:
        raise RuntimeError("the end of it")


x, y = np.random.rand(640, 4), np.random.rand(640, 1)
model = keras.Sequential([keras.Input((4,)), Many(), keras.layers.Dense(1)])
model.compile("adam", "mse")
failing = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[failing])
"""


def test_a_script_that_fails_while_a_checkpoint_is_written_ends(tmp_path: Path) -> None:
    """The writer is inside HDF5 then, whose lock the interpreter wants as it takes itself apart."""
    job = Job(tmp_path, "train.py", text=CRASHES)
    ended = job.start(every=("steps", 2)).wait(timeout_s=120)
    assert ended.code == 1, ended.errors
    assert "RuntimeError: the end of it" in ended.errors
    saved = [fact["step"] for fact in job.facts_of("checkpoint")]
    assert saved
    for step in saved:
        assert checkpoint.verify(job.paths.checkpoint(step)).step == step
    assert not job.facts_of("save-failed")
