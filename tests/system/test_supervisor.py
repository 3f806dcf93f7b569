"""The daemon with real workers: starts, ends, restarts, requests, limits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import pytest

from runner.core.job import Outcome, State
from runner.storage import requests
from runner.supervisor import allotment, process
from tests.system.conftest import Site, assert_events_in_order
from tests.waiting import wait_for

QUICK = '[restart]\nbackoff = "50ms..200ms"\n'


def test_a_job_runs_to_its_end(site: Site) -> None:
    site.start()
    site.submit("count", "20")
    job = site.wait("count", State.SUCCEEDED)
    assert job.attempt == 1
    assert job.exit_code == 0
    assert job.checkpoint is not None
    assert job.checkpoint.step == 20
    wait_for(lambda: "succeeded" in site.kinds("count"), "the event")
    assert site.kinds("count") == ["queued", "running", "checkpoint", "checkpoint", "ended", "succeeded"]
    assert (site.home.job("count").current / "log").read_text() == "counted to 20\n"
    assert_events_in_order(site.events("count"))


def test_killed_workers_are_restarted_at_once_and_resume(site: Site) -> None:
    site.start()
    holds = [word for kill in range(1, 6) for word in ("--hold-at", str(20 * kill + 5), f"go-{kill}")]
    site.submit("count", "200", "0.005", *holds)
    for kill in range(1, 6):
        wait_for(lambda kill=kill: site.count("count") >= 20 * kill, "progress")
        os.kill(site.identity("count", "worker", kill).pid, signal.SIGKILL)
        wait_for(lambda kill=kill: (job := site.job("count")) and job.attempt == kill + 1, "a new attempt")
        (site.home.folder("count") / f"go-{kill}").touch()
    job = site.wait("count", State.SUCCEEDED)
    assert [a.outcome for a in job.attempts] == [Outcome.CRASHED] * 5 + [Outcome.SUCCEEDED]
    assert job.restarts == 5
    assert job.charged == 0, "every attempt moved the durable step: the budget is untouched"
    assert "backoff" not in site.kinds("count")
    counts = [count for _, _, count in site.trace("count")]
    assert counts == sorted(counts)
    assert counts[1] >= 20
    assert_events_in_order(site.events("count"))
    assert site.living("count") == []


def test_a_job_that_never_gets_anywhere_fails_with_its_reason(site: Site) -> None:
    site.start()
    site.submit("bad", "20", "0.01", "--fail-at", "5", "3", toml=QUICK + "budget = 2\n")
    job = site.wait("bad", State.FAILED)
    assert job.attempt == 3
    assert job.exit_code == 3
    assert "restart.budget = 2" in job.reason
    assert site.kinds("bad").count("backoff") == 2


def test_a_script_that_cannot_start_is_told_from_one_that_fails_in_training(site: Site) -> None:
    site.start()
    folder = site.home.jobs / ".bad.tmp"
    folder.mkdir()
    (folder / "train.py").write_text("\nimport nothing_of_that_name\n")
    (folder / "job.toml").write_text(QUICK)
    (folder / ".submitted.json").write_text('{"version": 1, "source": null}')
    folder.rename(site.home.folder("bad"))
    job = site.wait("bad", State.FAILED)
    assert job.attempt == 2
    assert job.reason == (
        "it fails as it starts, 2 times the same: ModuleNotFoundError: No module named 'nothing_of_that_name'"
        " (train.py:2 in <module>); see the log"
    )
    assert site.kinds("bad").count("raised") == 2


@pytest.mark.parametrize(
    ("code", "word"), [(78, "configuration"), (125, "permanent"), (9, "fatal_exit_codes")]
)
def test_some_exit_codes_are_never_retried(site: Site, code: int, word: str) -> None:
    site.start()
    site.submit("bad", "20", "0.01", "--fail-at", "5", str(code), toml="[restart]\nfatal_exit_codes = [9]\n")
    job = site.wait("bad", State.FAILED)
    assert (job.attempt, job.exit_code) == (1, code)
    assert word in job.reason


def test_a_program_that_is_not_there_fails_with_its_name(site: Site) -> None:
    site.start()
    site.submit("missing", command=["no-such-program"])
    job = site.wait("missing", State.FAILED, State.REJECTED)
    assert "no-such-program" in job.reason
    assert job.attempt <= 1


def test_a_program_that_the_machine_refuses_for_a_moment_is_tried_again(site: Site) -> None:
    """As while it is being written (ETXTBSY; not on Linux 6.11 and 6.12)."""
    program = site.home.root / "program"
    shutil.copy("/bin/true", program)
    with program.open("r+b"):
        with contextlib.suppress(OSError):
            os.waitpid(os.posix_spawn(program, [program], {}), 0)
            pytest.skip("this kernel executes what is being written")
        site.start()
        site.submit("busy", command=[str(program)], toml=QUICK)
        wait_for(lambda: (job := site.job("busy")) and job.attempt >= 2, "a second attempt")
        job = site.wait("busy", State.BACKOFF)
        assert "Text file busy" in job.reason
    job = site.wait("busy", State.SUCCEEDED)
    assert job.charged == 0
    assert {a.outcome for a in job.attempts[:-1]} == {Outcome.PREEMPTED}


def test_pause_checkpoints_and_resume_continues(site: Site) -> None:
    site.start()
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    site.ask("pause", "count")
    job = site.wait("count", State.PAUSED)
    assert job.current is not None
    assert job.current.outcome is Outcome.STOPPED
    paused_at = site.count("count")
    assert job.durable_step == paused_at >= 20
    (site.home.folder("count") / "go").touch()
    site.ask("resume", "count")
    job = site.wait("count", State.SUCCEEDED)
    assert site.trace("count")[1][2] == paused_at
    assert job.charged == 0


def test_stop_then_retry_continues_from_the_checkpoint(site: Site) -> None:
    site.start()
    site.submit("count", "300", "0.01", "--hold-at", "100", "go")
    wait_for(lambda: site.count("count") >= 20, "progress")
    site.ask("stop", "count")
    job = site.wait("count", State.CANCELLED)
    stopped_at = job.durable_step
    assert stopped_at == site.count("count")
    (site.home.folder("count") / "go").touch()
    site.ask("retry", "count")
    site.wait("count", State.SUCCEEDED)
    assert site.trace("count")[1][2] == stopped_at


def test_cancel_kills_at_once(site: Site) -> None:
    site.start()
    site.submit("count", "100000", "0.01", "--ignore-term", toml='[limits]\ngrace = "1h"\n')
    wait_for(lambda: site.count("count") >= 10, "progress")
    site.ask("cancel", "count")
    job = site.wait("count", State.CANCELLED)
    assert job.current is not None
    assert job.current.signal == "SIGKILL"
    assert site.living("count") == []


def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace(site: Site) -> None:
    site.start()
    site.submit("deaf", "100000", "0.01", "--ignore-term", toml='[limits]\ngrace = "500ms"\n')
    wait_for(lambda: site.count("deaf") >= 10, "progress")
    site.ask("stop", "deaf")
    job = site.wait("deaf", State.CANCELLED)
    assert job.current is not None
    assert job.current.signal == "SIGKILL"
    assert job.durable_step >= 10, "the last checkpoint stands"


def test_rm_forgets_a_settled_job_and_refuses_an_active_one(site: Site) -> None:
    site.start()
    site.submit("count", "100000", "0.01")
    wait_for(lambda: site.count("count") >= 10, "progress")
    site.ask("rm", "count")
    wait_for(lambda: "refused" in site.kinds("count"), "the refusal")
    site.ask("cancel", "count")
    site.wait("count", State.CANCELLED)
    site.ask("rm", "count")
    wait_for(lambda: not site.home.job("count").dir.exists(), "the state to go")
    assert not site.home.folder("count").exists()


def test_nothing_of_a_tree_outlives_its_attempt(site: Site) -> None:
    site.start()
    site.submit("forks", "100000", "0.01", "--fork")
    wait_for(lambda: site.count("forks") >= 10, "progress")
    stray = process.identify(int((site.home.folder("forks") / "stray").read_text()))
    assert stray is not None
    assert process.is_alive(stray)
    os.kill(site.identity("forks", "worker", 1).pid, signal.SIGKILL)
    wait_for(lambda: (job := site.job("forks")) and job.attempt == 2, "a new attempt")
    assert not process.is_alive(stray), "the next attempt began before the tree was gone"


def test_a_hang_is_found_and_its_evidence_kept(site: Site) -> None:
    site.start()
    site.submit("stall", "40", "0.01", "--stall-at", "20", toml='[limits]\nhang = "2s"\ngrace = "1s"\n')
    job = site.wait("stall", State.SUCCEEDED, timeout_s=40)
    assert [a.outcome for a in job.attempts] == [Outcome.HUNG, Outcome.SUCCEEDED]
    assert "limits.hang" in next(e["reason"] for e in site.events("stall") if e["event"] == "hung")
    assert "State:" in site.home.job("stall").attempt(1).stacks.read_text()


def test_a_stopped_worker_is_not_a_hang(site: Site) -> None:
    site.start()
    site.submit("count", "100000", "0.01", toml='[limits]\nhang = "1s"\n')
    wait_for(lambda: site.count("count") >= 20, "progress")
    worker = site.identity("count", "worker")
    os.kill(worker.pid, signal.SIGSTOP)
    # Another job's life of several seconds bounds the wait, not this test's clock.
    site.submit("other", "35", "0.1")
    site.wait("other", State.SUCCEEDED)
    job = site.job("count")
    assert job is not None
    assert job.state is State.RUNNING
    assert "hung" not in site.kinds("count")
    os.kill(worker.pid, signal.SIGCONT)
    seen = site.count("count")
    wait_for(lambda: site.count("count") >= seen + 20, "it to count on")
    site.ask("stop", "count")
    job = site.wait("count", State.CANCELLED)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.STOPPED]


def test_wall_and_memory_limits_end_a_job_with_the_reason(site: Site) -> None:
    site.start()
    site.submit("long", "5000", "0.01", toml='[limits]\nwall = "1s"\n')
    eat = "import time; x = bytearray(300 << 20); time.sleep(600)"
    site.submit(
        "big",
        command=[sys.executable, "-c", eat],
        toml='[limits]\nmemory = "100MiB"\n[restart]\nbudget = 0\n',
    )
    assert "limits.wall" in site.wait("long", State.FAILED).reason
    job = site.wait("big", State.FAILED)
    assert job.current is not None
    assert job.current.outcome is Outcome.OUT_OF_MEMORY
    assert "out-of-memory" in job.reason


def test_jobs_wait_their_turn_by_priority(site: Site) -> None:
    cpus = allotment.cpus()
    whole = f"[resources]\ncpus = {cpus}\n"
    site.submit("first", "100000", "0.01", toml=whole)
    site.start()
    site.wait("first", State.RUNNING)
    site.submit("low", "5", "0.01", toml=whole)
    site.submit("high", "5", "0.01", toml="priority = 5\n" + whole)
    site.submit("never", "5", toml=f"[resources]\ncpus = {cpus + 1}\n")
    for name in ("low", "high", "never"):
        site.wait(name, State.QUEUED)
    site.ask("cancel", "first")
    for name in ("low", "high"):
        site.wait(name, State.SUCCEEDED)
    jobs = {name: site.job(name) for name in ("low", "high", "never")}
    assert jobs["high"].started_at < jobs["low"].started_at
    assert jobs["never"].state is State.QUEUED
    assert "this machine has" in jobs["never"].reason


def test_a_priority_that_is_changed_changes_the_turn(site: Site) -> None:
    whole = f"[resources]\ncpus = {allotment.cpus()}\n"
    site.submit("first", "100000", "0.01", toml=whole)
    site.start()
    site.wait("first", State.RUNNING)
    for name in ("low", "high"):
        site.submit(name, "5", "0.01", toml=whole)
        site.wait(name, State.QUEUED)
    site.ask("priority", "high", {"priority": 3})
    site.ask("priority", "low", {"priority": 1001})
    wait_for(lambda: site.job("high").spec.priority == 3, "the priority")
    site.ask("cancel", "first")
    for name in ("low", "high"):
        site.wait(name, State.SUCCEEDED)
    assert site.job("high").started_at < site.job("low").started_at
    refused = [event for event in site.events("low") if event["event"] == "refused"]
    assert [event["reason"] for event in refused] == [
        "priority must be a whole number from -1000 to 1000, not 1001"
    ]
    changed = [event for event in site.events("high") if event["event"] == "priority"]
    assert [(event["was"], event["priority"]) for event in changed] == [(0, 3)]


def test_a_job_starts_when_those_it_comes_after_have_succeeded(site: Site) -> None:
    site.submit("last", "5", "0.01", toml='after = ["first", "second"]\n')
    site.start()
    wait_for(lambda: (job := site.job("last")) and "first, which is not there" in job.reason, "what it lacks")
    site.submit("first", "5", "0.01")
    site.submit("second", "5", "0.01", command=["false"], toml="[restart]\nbudget = 0\n")
    site.wait("second", State.FAILED)
    wait_for(lambda: (job := site.job("last")) and "runner retry second" in job.reason, "what it lacks")
    toml = site.home.folder("second") / "job.toml"
    toml.write_text(toml.read_text().replace('"false"', '"true"'))
    site.ask("retry", "second")
    last = site.wait("last", State.SUCCEEDED)
    ended = [site.wait(name, State.SUCCEEDED).finished_at or "" for name in ("first", "second")]
    assert (last.started_at or "") >= max(ended)


def test_a_second_supervisor_refuses(site: Site) -> None:
    first = site.start()
    wait_for(site.home.supervisor.exists, "the first to be up")
    command = [sys.executable, "-m", "runner.supervisor", "--home", str(site.home.root)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 5
    assert f"pid {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.poll() is None


def test_junk_stops_nothing(site: Site) -> None:
    site.home.requests.mkdir(exist_ok=True)
    (site.home.requests / "0-junk.json").write_bytes(b"\xff\x00{")
    (site.home.requests / "1-list.json").write_text("[]")
    (site.home.requests / "2-big.json").write_bytes(b" " * 100_000)
    requests.submit_request(site.home, "stop", "nobody")
    broken = site.home.job("broken").record
    broken.parent.mkdir()
    broken.write_text('{"name": "broken"')
    (site.home.jobs / "--help").mkdir()
    (site.home.jobs / os.fsdecode(b"\xff\xfe")).mkdir()
    (site.home.jobs / "empty").mkdir()
    (site.home.jobs / "a-file").write_text("")
    daemon = site.start()
    site.submit("count", "5")
    requests.submit_request(site.home, "juggle", "count")
    site.wait("count", State.SUCCEEDED)
    for name in ("%2D-help", "%FF%FE", "empty"):
        assert site.wait(name, State.REJECTED).reason
    wait_for(lambda: not requests.pending(site.home), "the requests to be dealt with")
    assert broken.read_text() == '{"name": "broken"', "an unreadable record is never replaced"
    assert str(broken) in site.log.read_text()
    site.ask("rm", "broken")
    wait_for(lambda: not broken.parent.exists(), "the unreadable job to be removed on request")
    assert daemon.poll() is None


def test_a_folder_dropped_in_by_hand_is_taken_up_when_it_is_quiet(site: Site) -> None:
    site.start()
    wait_for(site.home.supervisor.exists, "the daemon to be up")
    folder = site.home.jobs / ".hand.tmp"
    folder.mkdir()
    (folder / "job.toml").write_text('command = ["true"]\n')
    folder.rename(site.home.folder("hand"))
    site.wait("hand", State.SUCCEEDED)


def test_a_job_whose_folder_vanishes_says_so(site: Site) -> None:
    site.start()
    site.submit("count", "5000", "0.01", toml=QUICK)
    wait_for(lambda: site.count("count") >= 10, "progress")
    worker = site.identity("count", "worker")
    site.home.folder("count").rename(site.home.root / "elsewhere")
    os.kill(worker.pid, signal.SIGKILL)
    job = site.wait("count", State.FAILED)
    assert "No such file" in job.reason


def test_what_the_dead_left_behind_is_swept_away(site: Site) -> None:
    site.submit("count", "5")
    site.home.create()
    old = {site.home.state / ".gone.1a2b.tmp", site.home.jobs / ".staged.1a2b.tmp"}
    young = site.home.jobs / ".being-copied.1a2b.tmp"
    half = site.home.job("count").dir / ".job.json.77-1a2b.tmp"
    for folder in (*old, young, half.parent):
        folder.mkdir(parents=True)
        (folder / "file").write_text("half")
    half.write_text("{")
    os.utime(site.home.jobs / ".staged.1a2b.tmp", (0, 0))
    site.start()
    site.wait("count", State.SUCCEEDED)
    wait_for(lambda: not any(path.exists() for path in old), "the sweep")
    assert not half.exists()
    assert (young / "file").exists(), "a submit may be at work on it"
