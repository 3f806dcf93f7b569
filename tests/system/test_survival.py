"""What must survive the supervisor's own end, in every way it can come."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from runner.core.job import Outcome, State, seconds_between
from runner.storage import records
from runner.supervisor import process, traces
from tests.system.conftest import COUNTER, Site, assert_events_in_order
from tests.waiting import wait_for


def let_go_on(site: Site, file: str = "go") -> None:
    """Let the counter that is held until there is this file count on."""
    (site.home.folder("count") / file).touch()


def kill_daemon(site: Site) -> None:
    daemon = site.daemons[-1]
    daemon.kill()
    daemon.wait()


def test_workers_train_on_and_are_adopted(site: Site) -> None:
    site.start()
    site.submit("count", "400", "0.01", "--hold-at", "50", "alone", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker")
    kill_daemon(site)
    seen = site.count("count")
    let_go_on(site, "alone")
    wait_for(lambda: site.count("count") >= seen + 30, "progress without a supervisor")
    site.start()
    wait_for(lambda: "adopted" in site.kinds("count"), "the adoption")
    assert process.is_alive(worker)
    let_go_on(site)
    job = site.wait("count", State.SUCCEEDED)
    assert job.attempt == 1
    assert job.durable_step == 400
    assert_events_in_order(site.events("count"))


@pytest.mark.parametrize("left", ["torn", "none"])
def test_a_shim_that_no_file_names_is_adopted(site: Site, left: str) -> None:
    """The disk refused its file, or the job has removed it."""
    site.start()
    site.submit("count", "100000", "0.01")
    wait_for(lambda: site.count("count") >= 20, "progress")
    shim = site.identity("count", "shim")
    kill_daemon(site)
    told = site.home.job("count").attempt(1).shim
    told.write_text("{")
    if left == "none":
        told.unlink()
    site.start()
    wait_for(lambda: "adopted" in site.kinds("count"), "the adoption")
    assert traces.find_shim(site.home.job("count").lock) == shim
    site.ask("stop", "count")
    job = site.wait("count", State.CANCELLED)
    assert (job.attempt, job.current.exit_code, job.current.outcome) == (1, 75, Outcome.STOPPED)
    assert job.durable_step == site.count("count")


@pytest.mark.parametrize(
    ("options", "state", "outcome"),
    [([], State.SUCCEEDED, Outcome.SUCCEEDED), (["--fail-at", "30", "78"], State.FAILED, Outcome.FAILED)],
)
def test_what_ended_meanwhile_is_recorded_truly(
    site: Site, options: list[str], state: State, outcome: Outcome
) -> None:
    site.start()
    site.submit("count", "60", "0.01", "--hold-at", "20", "go", *options)
    wait_for(lambda: site.count("count") >= 10, "progress")
    kill_daemon(site)
    let_go_on(site)
    wait_for(site.home.job("count").attempt(1).outcome.exists, "the end, seen by the shim alone")
    assert site.job("count").state is State.RUNNING
    site.start()
    job = site.wait("count", state)
    assert [a.outcome for a in job.attempts] == [outcome]
    assert_events_in_order(site.events("count"))


def test_a_killed_shim_takes_its_worker_down_and_the_job_goes_on(site: Site) -> None:
    site.start()
    site.submit("count", "200", "0.01", "--hold-at", "50", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker", 1)
    os.kill(site.identity("count", "shim", 1).pid, signal.SIGKILL)
    wait_for(lambda: (job := site.job("count")) and job.attempt == 2, "another attempt")
    let_go_on(site)
    job = site.wait("count", State.SUCCEEDED)
    assert not process.is_alive(worker)
    assert [a.outcome for a in job.attempts] == [Outcome.ABANDONED, Outcome.SUCCEEDED]
    assert site.trace("count")[1][2] >= 20


def test_supervisor_and_shim_killed_together(site: Site) -> None:
    site.start()
    site.submit("count", "200", "0.01", "--hold-at", "50", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    shim = site.identity("count", "shim", 1)
    kill_daemon(site)
    os.kill(shim.pid, signal.SIGKILL)
    wait_for(lambda: site.living("count") == [], "the worker to die with its shim")
    let_go_on(site)
    site.start()
    job = site.wait("count", State.SUCCEEDED)
    assert [a.outcome for a in job.attempts] == [Outcome.ABANDONED, Outcome.SUCCEEDED]


def test_what_a_worker_had_started_ends_with_it_though_supervisor_and_shim_are_killed(site: Site) -> None:
    """The worker dies with its shim; its children do not: they would run beside the next attempt's."""
    site.start()
    counter = shlex.join([sys.executable, str(COUNTER), "100", "0.01", "--hold-at", "50", "go"])
    site.submit("count", command=["/bin/sh", "-c", f"sleep 600 & exec {counter}"])
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker", 1)
    shim = site.identity("count", "shim", 1)
    kill_daemon(site)
    os.kill(shim.pid, signal.SIGKILL)
    wait_for(lambda: not process.is_alive(worker), "the worker to die with its shim")
    assert len(site.living("count")) == 1
    let_go_on(site)
    site.start()
    job = site.wait("count", State.SUCCEEDED)
    assert [a.outcome for a in job.attempts] == [Outcome.ABANDONED, Outcome.SUCCEEDED]
    assert site.living("count") == []


def test_sigterm_drains(site: Site) -> None:
    daemon = site.start("--on-term", "drain")
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    daemon.terminate()
    assert daemon.wait(timeout=30) == 0
    job = site.job("count")
    assert job.state is State.QUEUED
    assert job.current.outcome is Outcome.PREEMPTED
    assert job.durable_step == site.count("count"), "it checkpointed on its way out"
    assert job.charged == 0
    assert site.living("count") == []
    let_go_on(site)
    site.start()
    assert site.wait("count", State.SUCCEEDED).attempt == 2


def test_sigterm_can_leave_workers_training(site: Site) -> None:
    daemon = site.start("--on-term", "leave")
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker")
    daemon.terminate()
    assert daemon.wait(timeout=30) == 0
    assert process.is_alive(worker)
    site.start()
    wait_for(lambda: "adopted" in site.kinds("count"), "the adoption")
    assert process.is_alive(worker)
    let_go_on(site)
    job = site.wait("count", State.SUCCEEDED)
    assert job.attempt == 1


def test_sighup_starts_the_daemon_anew_under_the_same_pid(site: Site) -> None:
    daemon = site.start()
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker")
    daemon.send_signal(signal.SIGHUP)
    wait_for(lambda: "adopted" in site.kinds("count"), "the adoption")
    assert daemon.poll() is None
    assert process.is_alive(worker)
    let_go_on(site)
    assert site.wait("count", State.SUCCEEDED).attempt == 1


def test_the_wall_counts_what_ran_neither_the_clock_nor_the_supervisors_absence(site: Site) -> None:
    """One attempt ends while no supervisor is there, another is adopted beyond its limit; a clock was set."""
    once = "test -e done || { touch done; while test ! -e go; do sleep 0.02; done; exit 3; }"
    site.submit("late", command=["sh", "-c", once], toml='[limits]\nwall = "1h"\n')
    site.submit("long", "100000", "0.01", toml='[limits]\nwall = "10s"\n')
    site.start()
    shims = [site.identity(name, "shim") for name in ("late", "long")]
    wait_for((site.home.folder("late") / "done").exists, "both to run")
    kill_daemon(site)
    (site.home.folder("late") / "go").touch()
    wait_for(site.home.job("late").attempt(1).outcome.exists, "the end, seen by the shim alone")
    for name in ("late", "long"):
        job = site.job(name)
        earlier = datetime.fromisoformat(job.current.started_at) - timedelta(days=1)
        attempt = dataclasses.replace(job.current, started_at=earlier.isoformat(timespec="milliseconds"))
        records.save_job(site.home.job(name).record, job.with_attempt(attempt))
    wait_for(lambda: process.age_s(shims[1]) > 10.2, "the limit to be passed")
    site.start()
    late = site.wait("late", State.SUCCEEDED)
    assert [attempt.outcome for attempt in late.attempts] == [Outcome.FAILED, Outcome.SUCCEEDED]
    assert late.attempts[0].ran_s < 30
    assert late.ledger.useful_s + late.ledger.lost_s < 60, "no day of training"
    assert "limits.wall" in site.wait("long", State.FAILED).reason
    dates = {event["event"]: event["time"] for event in site.events("long")}
    assert seconds_between(dates["adopted"], dates["wall-over"]) < 5, "it had had its time before"


@pytest.mark.parametrize("left", ["whole", "torn", "none"])
def test_a_reboot_is_not_the_jobs_fault(site: Site, left: str) -> None:
    """The state that a power cut leaves: an active record and perhaps a shim of another boot, no outcome."""
    site.start()
    site.submit("count", "100", "0.01", "--hold-at", "50", "go", toml="[restart]\nbudget = 0\n")
    wait_for(lambda: site.count("count") >= 20, "progress")
    shim = site.identity("count", "shim", 1)
    kill_daemon(site)
    os.kill(shim.pid, signal.SIGKILL)
    wait_for(lambda: site.living("count") == [], "the worker to die with its shim")
    path = site.home.job("count").attempt(1).shim
    before = "00000000-0000-0000-0000-000000000000"
    if left == "whole":
        path.write_text(path.read_text().replace(shim.boot, before))
    else:
        job = site.job("count")
        record = job.with_attempt(dataclasses.replace(job.current, boot=before))
        records.save_job(site.home.job("count").record, dataclasses.replace(record, checkpoint=None))
        site.home.job("count").attempt(1).facts.write_text("")
        path.write_text("")
    if left == "none":
        path.unlink()
    let_go_on(site)
    site.start()
    job = site.wait("count", State.SUCCEEDED)
    assert job.attempts[0].outcome is Outcome.ABANDONED
    assert job.attempts[0].reason == "the machine went down"


def test_random_kills_of_both(site: Site) -> None:
    """The supervisor dies at random moments, workers too: no double run, no lost job, true outcomes."""
    seed = random.randrange(1 << 32)
    (site.home.root / f"seed-{seed}").touch()
    chance = random.Random(seed)
    site.start()
    for name in ("a", "b"):
        site.submit(name, "500", "0.01")
    wait_for(lambda: site.count("a") and site.count("b"), "both to begin")
    for _ in range(12):
        time.sleep(chance.uniform(0.0, 0.3))  # the random moment itself, not a wait for anything
        kill_daemon(site)
        for name in ("a", "b"):
            if chance.random() < 0.4 and (pids := site.living(name)):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(chance.choice(pids), signal.SIGKILL)
        site.start()
    for name in ("a", "b"):
        job = site.wait(name, State.SUCCEEDED, timeout_s=60)
        assert job.durable_step == 500
        assert_events_in_order(site.events(name))
        counts = [count for _, _, count in site.trace(name)]
        assert counts == sorted(counts)
        attempts = [attempt for attempt, _, _ in site.trace(name)]
        assert attempts == sorted(set(attempts)), "two processes ran the same attempt"
        assert site.living(name) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_stops_nothing_and_loses_nothing(small_disk: Path) -> None:
    site = Site(small_disk / "home")
    site.log = small_disk.parent / "daemon.log"
    ballast = small_disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as out:
            site.start()
            site.submit("count", "120", "0.01", "--hold-at", "30", "more", "--hold-at", "80", "go")
            wait_for(lambda: site.count("count") >= 10, "progress")
            daemon = site.daemons[-1]
            daemon.send_signal(signal.SIGSTOP)
            wait_for(lambda: process.is_stopped(daemon.pid), "the daemon to stop")
            seen = site.count("count")
            let_go_on(site, "more")
            # It saves one after the other: the fact of the first is written, and nobody has read it.
            wait_for(lambda: site.count("count") >= seen + 20, "a fact that is to be recorded")

            def noticed() -> bool:
                """Keep the disk full: a page that somebody gives back is enough for a record."""
                with contextlib.suppress(OSError):
                    while True:
                        out.write(b"x" * 4096)
                daemon.send_signal(signal.SIGCONT)
                return "trying again" in site.log.read_text()

            wait_for(noticed, "the daemon to notice")
        assert daemon.poll() is None
        ballast.unlink()
        let_go_on(site)
        job = site.wait("count", State.SUCCEEDED, timeout_s=60)
        assert job.durable_step == 120
        assert_events_in_order(site.events("count"))
    finally:
        site.close()


def test_submissions_are_seen_without_inotify(site: Site) -> None:
    """Where no inotify instance is to be had, the daemon polls."""
    import ctypes

    libc = ctypes.CDLL(None)
    held: list[int] = []

    def polls() -> bool:
        """Start a daemon while no instance is left; others' processes may give some back meanwhile."""
        while (fd := libc.inotify_init1(os.O_CLOEXEC)) >= 0:
            held.append(fd)
        daemon = site.start()
        wait_for(lambda: "STATUS" in site.log.read_text(), "the daemon to be up")
        if "polling" not in site.log.read_text():
            daemon.kill()
            daemon.wait()
            site.log.write_text("")
        return "polling" in site.log.read_text()

    try:
        wait_for(polls, "a daemon without inotify", 60)
        site.submit("count", "5")
        site.wait("count", State.SUCCEEDED)
    finally:
        for fd in held:
            os.close(fd)
    assert "polling" in site.log.read_text()


def test_the_daemon_is_small_and_quiet(site: Site) -> None:
    daemon = site.start()
    site.submit("count", "5")
    site.wait("count", State.SUCCEEDED)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    resident_kib = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    assert resident_kib < 45 * 1024
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    for forbidden in ("tensorflow", "h5py", "numpy"):
        assert forbidden not in maps
