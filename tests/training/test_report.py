"""What the worker tells: progress.json."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from runner.training.report import Progress


def test_a_forked_child_that_trains_writes_its_progress_itself(tmp_path: Path) -> None:
    """It has no watcher, and that of its parent may have been in the middle of writing."""
    path = tmp_path / "progress.json"
    progress = Progress(path, 1)
    progress.set(step=1)
    held = threading.Event()
    done = threading.Event()

    def watch() -> None:
        with progress._lock:
            held.set()
            done.wait(30)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert held.wait(30)
    child = os.fork()
    if child == 0:
        progress.set(step=5)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    watcher.join()
    written = json.loads(path.read_text())
    assert (written["step"], written["pid"]) == (5, child)


def test_the_pace_is_that_of_the_steps_not_of_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress = Progress(path, 1)

    def pace() -> float | None:
        progress.write()
        found: float | None = json.loads(path.read_text())["steps_per_s"]
        return found

    assert pace() is None
    progress.set(step=1)
    assert pace() is None, "the first"
    first = progress._stepped_at
    progress.set(step=101)
    lasted_s = progress._stepped_at - first
    assert pace() == round(100 / lasted_s, 2)
    progress.set(phase="validate")
    assert pace() == 0.0


def test_what_has_nothing_new_is_touched_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress = Progress(path, 1)
    progress.set(step=1)
    progress.beat()
    before = path.stat()
    progress._beat_at = time.monotonic() + 60  # however long the machine takes
    progress.beat()
    assert path.stat() == before, "a second has not passed"
    progress._beat_at = time.monotonic()
    deadline = time.monotonic() + 10
    while path.stat() == before:
        assert time.monotonic() < deadline
        progress.beat()
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert after.st_mtime_ns - before.st_mtime_ns > 0.9e9


def test_only_what_the_training_sets_is_work(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    progress = Progress(path, 1)

    def told() -> tuple[int, float]:
        progress.write()
        found = json.loads(path.read_text())
        return found["work"], found["idle_s"]

    progress.set(step=1)
    work, idle_s = told()
    assert idle_s < 1.0
    progress._worked_at -= 60
    progress.show(saving={"save_s": 1.0})
    assert told() == (work, pytest.approx(idle_s + 60, abs=1.0))
    progress.phase("validate")
    assert told()[0] == work + 1
    assert told()[1] < 1.0
