"""A record that cannot be read: what runs of that job runs on, and has its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.core.job import State
from runner.storage import requests
from runner.supervisor import allotment, process
from tests.system.conftest import Site
from tests.system.test_isolation import group, how  # noqa: F401 - fixtures
from tests.system.test_many import Desk, put_folder
from tests.waiting import wait_for

WAITS = ["sh", "-c", "until [ -e done ]; do sleep 0.05; done"]


def wanting(share: float) -> str:
    return f"[resources]\ncpus = {allotment.cpus() * share}\n"


def end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.kill()
    daemon.wait()


def damage(record: Path) -> None:
    record.write_text("{")


def withhold(record: Path) -> None:
    """Have the disk refuse it."""
    record.rename(record.with_name("kept.json"))
    record.symlink_to(record)


def test_attempts_outlive_their_records_and_keep_their_place(site: Site) -> None:
    daemon = site.start()
    site.submit("dead", command=["true"], toml=wanting(1))
    site.wait("dead", State.SUCCEEDED)
    spoils = {"damaged": damage, "withheld": withhold}
    for name in spoils:
        site.submit(name, command=WAITS, toml=wanting(0.5))
    workers = [site.identity(name, "worker") for name in spoils]
    end(daemon)
    for name, spoil in {**spoils, "dead": damage}.items():
        spoil(site.home.job(name).record)
    site.submit("next", command=["true"], toml=wanting(1))
    site.start()
    wait_for(lambda: (job := site.job("next")) and "free slot" in job.reason, "its reason")
    assert all(map(process.is_alive, workers))
    asked = [sys.executable, "-m", "runner.cli", "rm", "damaged", "--home", str(site.home.root)]
    refused = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "its record cannot be read, and its attempt runs; end that first" in refused.stderr
    site.ask("rm", "damaged")  # as one that was on its way already
    text = site.log.read_text()
    assert "damaged: its record cannot be read, and its attempt runs: it is not removed" in text
    assert site.home.folder("damaged").exists()
    for name in spoils:
        assert f"{name}: its record cannot be read, and its attempt 1 runs: it keeps" in text
        (site.home.folder(name) / "done").touch()
    assert "dead: its record cannot be read, and its attempt" not in text
    record = site.home.job("withheld").record
    record.with_name("kept.json").replace(record)
    assert site.wait("next", State.SUCCEEDED).attempt == 1
    assert site.wait("withheld", State.SUCCEEDED).attempt == 1


@pytest.mark.usefixtures("group")
def test_no_group_is_swept_whose_job_has_no_record_that_can_be_read(site: Site) -> None:
    daemon = site.start()
    spoils = {"damaged": damage, "withheld": withhold}
    for name in spoils:
        site.submit(name, command=WAITS, toml=wanting(0))
    workers = [site.identity(name, "worker") for name in spoils]
    end(daemon)
    for name, spoil in spoils.items():
        spoil(site.home.job(name).record)
    site.submit("next", command=["true"], toml=wanting(0))
    site.start()
    site.wait("next", State.SUCCEEDED)
    assert all(map(process.is_alive, workers))


@pytest.mark.usefixtures("how")
def test_what_a_killed_shim_has_left_is_killed_before_its_place_is_given_away(site: Site) -> None:
    daemon = site.start()
    site.submit("damaged", command=["sh", "-c", "sleep 600 & wait"], toml=wanting(1))
    wait_for(lambda: len(site.living("damaged")) > 1, "what the worker starts")
    shim = site.identity("damaged", "shim")
    end(daemon)
    os.kill(shim.pid, signal.SIGKILL)
    wait_for(lambda: len(site.living("damaged")) == 1, "the end of the worker")
    damage(site.home.job("damaged").record)
    site.submit("next", command=["true"], toml=wanting(1))
    site.start()
    site.wait("next", State.SUCCEEDED)
    assert not site.living("damaged")
    assert "damaged: its record cannot be read, and its shim was killed: so is" in site.log.read_text()


def test_a_record_that_was_withheld_and_then_is_damaged_can_be_removed(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "home")
    put_folder(desk.home, "a")
    record = desk.home.job("a").record
    record.parent.mkdir()
    record.symlink_to(record)
    desk.book.load("a")
    assert (desk.book.refused, desk.book.postponed) == (set(), {"a"})
    record.unlink()
    damage(record)
    desk.book.load("a")
    assert (desk.book.refused, desk.book.postponed) == ({"a"}, set())
    requests.submit_request(desk.home, "rm", "a")
    desk.inbox.find()
    desk.finish()
    assert not desk.book.knows("a")
    put_folder(desk.home, "a")
    desk.inbox.find()
    desk.finish()
    assert desk.book.jobs["a"].state is State.QUEUED


@pytest.mark.parametrize("verb", ["cancel", "rm"])
def test_a_request_that_comes_again_does_nothing_to_another_job_without_a_record(
    tmp_path: Path, verb: str
) -> None:
    """A job that is not taken up yet is cancelled, or one whose record is damaged removed."""
    desk = Desk(tmp_path / "home")

    def put(mtime_s: int) -> None:
        put_folder(desk.home, "a")
        mark, record = desk.home.folder("a") / ".submitted.json", desk.home.job("a").record
        os.utime(mark, (mtime_s, mtime_s))
        if verb == "rm":
            record.parent.mkdir()
            damage(record)
            os.utime(record, (mtime_s, mtime_s))
            desk.book.load("a")

    put(1)
    request = requests.submit_request(desk.home, verb, "a")
    left = request.read_text()
    desk.inbox.find()
    desk.finish()
    assert not request.exists()
    assert [job.state for job in desk.book.jobs.values()] == [State.CANCELLED] * (verb == "cancel")
    desk.book.remove("a")
    assert not desk.book.knows("a")
    put(2)
    request.write_text(left)
    desk.inbox.find()
    desk.finish()
    assert not request.exists()
    assert desk.home.folder("a").exists()
    assert [job.state for job in desk.book.jobs.values()] == [State.QUEUED] * (verb == "cancel")
