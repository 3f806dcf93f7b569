"""One bad job, file or folder never stops the daemon, nor another job."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runner.core.job import Outcome, State
from runner.core.reports import LOG_BYTES
from runner.storage import records, requests
from runner.supervisor import process
from tests.system.conftest import Site
from tests.waiting import wait_for

FACTS = "$RUNNER_STATE/attempts/0001/facts.jsonl"


def assert_serves(site: Site) -> None:
    """The daemon still does what a daemon does."""
    site.submit("honest", "5")
    site.wait("honest", State.SUCCEEDED)
    assert site.daemons[-1].poll() is None


@pytest.mark.parametrize("make", [f"mkdir {FACTS}", f"mkfifo {FACTS}", f"ln -s /dev/zero {FACTS}"])
def test_facts_that_are_no_file(site: Site, make: str) -> None:
    site.start()
    site.submit("odd", command=["sh", "-c", f"{make}; exec sleep 60"])
    wait_for(lambda: os.path.lexists(site.home.job("odd").attempt(1).facts), "the trap")
    assert_serves(site)
    site.ask("cancel", "odd")
    site.wait("odd", State.CANCELLED)


def test_a_flood_of_facts_delays_nobody_and_is_cut_off(site: Site) -> None:
    site.start()
    fact = '{"event": "warning", "message": "' + "x" * 100 + '"}'
    site.submit("flood", command=["sh", "-c", f"yes '{fact}' | head -c 60000000 > {FACTS}; exec sleep 60"])
    facts = site.home.job("flood").attempt(1).facts
    wait_for(lambda: facts.exists() and facts.stat().st_size > 50_000_000, "the flood")
    assert_serves(site)
    site.ask("cancel", "flood")
    site.wait("flood", State.CANCELLED, timeout_s=180)


def test_a_flood_of_facts_does_not_fill_the_log_of_events(site: Site) -> None:
    saved = '{"event": "checkpoint", "path": "checkpoints/a", "step": 7, "epoch": 0}'
    flood = f"(yes '{{}}' | head -n 30000; echo '{saved}') > {FACTS}"
    site.submit(
        "flood", command=["sh", "-c", f"until [ -e go ]; do sleep 0.02; done; {flood}; exec sleep 60"]
    )
    daemon = site.start()
    site.wait("flood", State.RUNNING)
    daemon.kill()
    daemon.wait()
    paths = site.home.job("flood")
    job = records.load_job(paths.record)
    records.save_job(paths.record, replace(job, facts_logged=LOG_BYTES - 1000))
    (site.home.folder("flood") / "go").touch()
    site.start()
    wait_for(lambda: (job := site.job("flood")) and job.durable_step == 7, "the checkpoint")
    site.ask("cancel", "flood")
    site.wait("flood", State.CANCELLED)
    assert paths.events.stat().st_size < 10_000
    (dropped,) = [event["count"] for event in site.events("flood") if event["event"] == "facts-dropped"]
    assert dropped == 30_001


def test_a_script_that_asks_for_too_much_memory_is_told_as_out_of_memory(site: Site) -> None:
    folder = site.home.folder("greedy")
    folder.mkdir()
    (folder / "train.py").write_text("bytearray(1 << 60)\n")
    (folder / "job.toml").write_text("[restart]\nbudget = 0\n")
    (folder / ".submitted.json").write_text('{"version": 1, "source": null}')
    site.start()
    job = site.wait("greedy", State.FAILED)
    assert [(attempt.outcome, attempt.exit_code) for attempt in job.attempts] == [(Outcome.OUT_OF_MEMORY, 1)]
    assert "out-of-memory" in job.reason


def test_a_process_may_have_any_name(site: Site) -> None:
    rename = "import ctypes, os, time; ctypes.CDLL(None).prctl(15, b'gr\\xc3', 0, 0, 0);"
    rename += (
        " r, w = os.pipe(); os.fork() and (os.read(r, 1), os._exit(0)); os.write(w, b'x'); time.sleep(600)"
    )
    site.start()
    site.submit("named", command=[sys.executable, "-c", rename])
    assert site.wait("named", State.SUCCEEDED).attempt == 1
    # Its shim had to find what it left, by a file of the kernel's that has the name in it.
    outcome = records.load_json(site.home.job("named").attempt(1).outcome)
    assert outcome["strays_killed"] == 1
    assert_serves(site)


def test_entries_of_jobs_that_cannot_be_looked_at(site: Site) -> None:
    (site.home.jobs / "longlink").symlink_to("a" * 300)
    (site.home.jobs / "loop").symlink_to("loop")
    site.start()
    assert_serves(site)


def test_a_request_waits_for_its_job_to_be_taken_up(site: Site) -> None:
    site.start()
    wait_for(site.home.supervisor.exists, "the daemon to be up")
    folder = site.home.jobs / ".slow.tmp"
    folder.mkdir()
    (folder / "job.toml").write_text('command = ["sleep", "60"]\n')
    folder.rename(site.home.folder("slow"))
    path = requests.submit_request(site.home, "cancel", "slow")
    site.wait("slow", State.CANCELLED)
    wait_for(lambda: not path.exists(), "the request to be dealt with")


def test_a_request_that_is_none_is_kept_where_its_writer_sees_it(site: Site) -> None:
    site.start()
    path = site.home.requests / "0-junk.json"
    path.write_text("[]")
    wait_for((site.home.requests / ".refused" / path.name).exists, "the refusal")
    assert not path.exists()


def test_an_older_record_restored_does_not_take_old_ends_for_new_ones(site: Site) -> None:
    site.start()
    site.submit("count", "60", "0.02", "--hold-at", "30", "go")
    wait_for(lambda: site.count("count") >= 10, "progress")
    site.ask("pause", "count")
    site.wait("count", State.PAUSED)
    (site.home.folder("count") / "go").touch()
    old = site.home.job("count").record.read_bytes()
    site.ask("resume", "count")
    site.wait("count", State.SUCCEEDED)
    site.daemons[-1].kill()
    site.daemons[-1].wait()
    site.home.job("count").record.write_bytes(old)
    (site.home.folder("count") / "count").write_text("20")
    site.start()
    site.ask("resume", "count")
    assert site.wait("count", State.RUNNING, State.SUCCEEDED).attempt == 3, "attempt 2 has its end already"
    assert site.wait("count", State.SUCCEEDED).current.outcome is Outcome.SUCCEEDED


def test_the_wall_of_one_job_is_not_anothers(site: Site) -> None:
    site.start()
    for _ in range(2):
        site.submit("walled", command=["sleep", "6"], toml='[limits]\nwall = "11s"\n')
        site.wait("walled", State.SUCCEEDED)
        site.ask("rm", "walled")
        wait_for(lambda: not site.home.job("walled").dir.exists(), "the job to go")


@pytest.mark.parametrize("code", [9, 200])
def test_any_exit_code_can_be_fatal(site: Site, code: int) -> None:
    site.start()
    site.submit(
        "bad", "20", "0.01", "--fail-at", "5", str(code), toml="[restart]\nfatal_exit_codes = [9, 200]\n"
    )
    job = site.wait("bad", State.FAILED)
    assert (job.attempt, job.exit_code) == (1, code)


def limit_file_size(pid: int, size: int) -> None:
    """What a full disk looks like to one process: every write beyond `size` bytes fails (EFBIG)."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def start_telling(site: Site, *before: str) -> subprocess.Popen[str]:
    """Start a daemon whose log is a pipe: only files are full."""
    command = [*before, sys.executable, "-m", "runner.supervisor", "--home", str(site.home.root)]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    site.daemons.append(daemon)
    return daemon


def wait_told(daemon: subprocess.Popen[str], *words: str) -> None:
    """Wait until all has been said, in whatever order."""
    untold = {*words}
    for line in daemon.stderr:
        untold -= {one for one in untold if one in line}
        if not untold:
            return
    raise AssertionError(f"it ended with {daemon.wait()} before it said {untold}")


def test_a_drain_outlasts_a_full_disk(site: Site) -> None:
    daemon = start_telling(site)
    site.submit("count", "100000", "0.01")
    wait_for(lambda: site.count("count") >= 10, "progress")
    limit_file_size(daemon.pid, 0)
    daemon.terminate()
    wait_told(daemon, "draining", "trying again")
    limit_file_size(daemon.pid, resource.RLIM_INFINITY)
    assert daemon.wait(timeout=30) == 0
    job = site.job("count")
    assert job.state is State.QUEUED
    assert job.current.outcome is Outcome.PREEMPTED


def test_a_daemon_starts_on_a_full_disk_and_adopts(site: Site) -> None:
    site.start()
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 10, "progress")
    site.daemons[-1].kill()
    site.daemons[-1].wait()
    daemon = start_telling(site, "prlimit", "--fsize=0:unlimited", "--")
    wait_told(daemon, "trying again")
    limit_file_size(daemon.pid, resource.RLIM_INFINITY)
    wait_for(lambda: site.job("count").durable_step == 100, "what it has saved meanwhile to be recorded")
    (site.home.folder("count") / "go").touch()
    job = site.wait("count", State.SUCCEEDED)
    assert job.attempt == 1, "the attempt was adopted"


def test_a_daemon_that_started_anew_reaps_its_shims(site: Site) -> None:
    daemon = site.start()
    site.submit("count", "60", "0.01", "--hold-at", "30", "go")
    wait_for(lambda: site.count("count") >= 10, "progress")
    daemon.send_signal(signal.SIGHUP)
    wait_for(lambda: "adopted" in site.kinds("count"), "the adoption")
    (site.home.folder("count") / "go").touch()
    site.wait("count", State.SUCCEEDED)
    assert_serves(site)

    def zombies() -> list[str]:
        pids = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        return [pid for pid in pids if process._stat(int(pid))[:1] == ["Z"]]

    wait_for(lambda: not zombies(), "every shim to be reaped")
