"""The verbs with a daemon on the home: what they ask takes effect, and they say what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from runner.cli import facts
from runner.supervisor import allotment
from tests.waiting import wait_for

FOREVER = ("1000000", "0.01")


def test_a_job_from_submit_to_its_end(served):
    answer = served("submit", str(served.folder("digits")))
    assert answer.out == "digits: submitted\n"
    assert served("wait", "digits").code == 0
    job = served.job("digits")
    assert (job["state"], job["step"], job["exit_code"], job["restarts"]) == ("succeeded", 30, 0, 0)
    assert job["checkpoint"]["step"] == 30
    parts = {"useful_s", "lost_s", "down_s", "checkpoint_s", "waiting_s", "ratio"}
    assert job["goodput"].keys() == parts
    assert job["started_at"] <= job["finished_at"]
    assert served("logs", "digits").out == "counted to 30\n"
    assert served("logs", "digits", "-n", "1", "--attempt", "1").out == "counted to 30\n"
    assert served("logs", "digits", "-n", "0").out == ""
    assert served("logs", "digits", "--attempt", "2").code == 5
    assert served("stop", "digits").complaint() == "digits: it has ended already (succeeded)"
    assert served("retry", "digits").code == 5
    assert served("rm", "digits").out == "digits: removed\n"
    assert served("status", "digits").code == 3
    assert not served.home.folder("digits").exists()


def test_status_of_a_running_job(served):
    served("submit", str(served.folder("digits", *FOREVER)))
    wait_for(lambda: served.step("digits") > 20, "some steps")
    served.pid("digits")
    job = served.job("digits")
    assert (job["name"], job["state"], job["attempt"]) == ("digits", "running", 1)
    os.kill(job["pid"], 0)
    text = served("status", "digits").out
    assert f"worker {job['pid']}" in text
    assert "no supervisor runs" not in text
    assert served("rm", "digits").complaint() == "digits: it is active; stop or cancel it first"
    assert served("submit", str(served.root / "digits")).code == 5


def test_pause_and_resume(served):
    served("submit", str(served.folder("digits", *FOREVER)))
    wait_for(lambda: served.step("digits") > 5, "some steps")
    answer = served("pause", "digits")
    assert answer.code == 0
    assert answer.out.startswith(("digits: stopping", "digits: paused"))
    paused = served.until("digits", "paused")
    assert paused["checkpoint"]["step"] >= 5
    assert served("resume", "digits").code == 0
    wait_for(lambda: served.step("digits") > paused["checkpoint"]["step"], "it to go on from there")
    assert served.job("digits")["attempt"] == 2


def test_stop_then_retry_continues(served):
    served("submit", str(served.folder("digits", *FOREVER)))
    wait_for(lambda: served.step("digits") > 5, "some steps")
    assert served("stop", "digits").code == 0
    stopped = served.until("digits", "cancelled")
    assert served("wait", "digits").code == 75, "the job's own code"
    assert served("retry", "digits").code == 0
    wait_for(lambda: served.step("digits") > stopped["checkpoint"]["step"], "it to go on from there")
    assert served("cancel", "digits").code == 0
    assert served.until("digits", "cancelled")["attempts"][-1]["signal"] == "SIGKILL"


def test_several_names_at_once(served):
    for name in ("one", "two"):
        served("submit", str(served.folder(name, *FOREVER)))
    for name in ("one", "two"):
        wait_for(lambda name=name: served.step(name) > 0, f"{name} to be able to stop")
    assert served("stop", "one", "two").code == 0
    assert served("wait", "one", "two", "--timeout", "120").code == 75
    assert served("rm", "one", "nope", "two").code == 3
    assert served("rm", "one", "two").out == "one: removed\ntwo: removed\n"
    assert served("ls", "--json").json == []


def test_wait_returns_the_jobs_own_code(served):
    served("submit", str(served.folder("odd", command=["sh", "-c", "exit 78"])))
    answer = served("wait", "odd")
    assert answer.code == 78
    assert answer.out.startswith("odd: failed: exit code 78 (bad configuration) is never retried")
    killed = served.folder("killed", command=["sh", "-c", "kill -9 $$"], toml="[restart]\nbudget = 0\n")
    served("submit", str(killed))
    assert served("wait", "killed").code == 128 + 9


def _waited_s(served, name):
    return facts.gather(served.home, name)["goodput"]["waiting_s"]


def test_what_waits_for_a_slot_and_why_it_was_restarted_is_told(served):
    all_of_it = f"[resources]\ncpus = {allotment.cpus()}\n"
    served("submit", str(served.folder("first", *FOREVER, toml=all_of_it)))
    wait_for(lambda: served.step("first") > 0, "the first to run")
    script = "case $RUNNER_ATTEMPT in 1) exit 3;; 2) kill -9 $$;; esac"
    toml = all_of_it + '[restart]\nbackoff = "100ms"\n'
    served("submit", str(served.folder("second", command=["sh", "-c", script], toml=toml)))
    served.until("second", "queued")
    waited = wait_for(lambda: _waited_s(served, "second"), "it to wait")
    wait_for(lambda: _waited_s(served, "second") > waited, "it to wait on")
    served("cancel", "first")
    done = served.until("second", "succeeded")
    assert done["restarts_by_cause"] == {"failed": 1, "crashed": 1}
    assert done["goodput"]["waiting_s"] > waited
    assert done["goodput"]["down_s"] >= 0.1, "the backoff"
    text = served("status", "second").out
    assert "3 (2 restarts: failed 1, crashed 1)" in text
    assert ", waiting " in text
    events = [json.loads(line) for line in served.home.job("second").events.read_text().splitlines()]
    told = [event for event in events if event["event"] == "running"]
    assert [event["restarts_by_cause"] for event in told] == [{}, {"failed": 1}, {"failed": 1, "crashed": 1}]
    assert all(event["waiting_s"] > waited for event in told)


def test_a_folder_dropped_in_by_hand_that_cannot_be_accepted(served):
    folder = served.home.folder("bad")
    staged = served.home.jobs / ".bad"
    staged.mkdir()
    (staged / "job.toml").write_text("[limits]\nhang = -1\n")
    staged.rename(folder)
    job = served.until("bad", "rejected")
    assert job["reason"].startswith("job.toml:2: limits.hang must be a duration")
    assert served("wait", "bad").code == 1
    assert "rejected" in served("ls").out
    (folder / "job.toml").write_text('command = ["true"]\n')
    assert served("retry", "bad").code == 0
    assert served("wait", "bad").code == 0


def test_a_folder_of_an_impossible_name(served):
    folder = served.home.jobs / os.fsdecode(b"caf\xe9 --help")
    folder.mkdir()
    job = wait_for(
        lambda: [job for job in served("ls", "--json").json if job["attempt"] == 0], "it to be seen"
    )
    name = job[0]["name"]
    served.until(name, "rejected")
    assert name == "caf%E9%20--help"
    assert "not a name for a job" in served("status", name).out
    assert served("rm", name).code == 0
    assert not folder.exists()


def test_a_retry_with_worse_settings_is_refused(served):
    served("submit", str(served.folder("odd", command=["sh", "-c", "exit 78"])))
    served("wait", "odd")
    (served.home.folder("odd") / "job.toml").write_text("x = 1\n")
    answer = served("retry", "odd")
    assert answer.code == 5
    assert "job.toml:1: unknown key x" in answer.complaint()


def test_logs_follow_across_attempts_to_the_end(served):
    script = (
        'echo "attempt $RUNNER_ATTEMPT"; until [ -e followed ]; do sleep 0.02; done;'
        ' [ "$RUNNER_ATTEMPT" = 3 ] || exit 1'
    )
    toml = '[restart]\nbackoff = "100ms"\n'
    served("submit", str(served.folder("flaky", command=["sh", "-c", script], toml=toml)))
    served.until("flaky", "running")
    follow = served.start("logs", "flaky", "-f")
    first = follow.stdout.readline()
    (served.home.folder("flaky") / "followed").touch()
    out, _ = follow.communicate(timeout=60)
    assert (first + out).decode() == "attempt 1\nattempt 2\nattempt 3\n"
    assert follow.returncode == 0


def test_a_log_of_any_bytes(served):
    served("submit", str(served.folder("raw", command=["printf", r"\377\000\033[31m"])))
    served("wait", "raw")
    done = subprocess.run(served.argv("logs", "raw"), capture_output=True)
    assert done.stdout == b"\xff\x00\x1b[31m"


def test_a_second_daemon_refuses(served):
    answer = served("supervise")
    assert answer.code == 5
    assert "a supervisor runs here already" in answer.complaint()


def test_wait_survives_a_restart_of_the_daemon(runner):
    runner.limits["wait._ALONE_S_MAX"] = 120.0  # a daemon may be slow to start
    go = runner.root / "go"
    daemon = runner.supervise()
    runner("submit", str(runner.folder("digits", "150", "0.01", "--hold-at", "100", str(go))))
    runner.until("digits", "running")
    waiting = runner.start("wait", "digits")
    daemon.kill()
    daemon.wait()
    runner.supervise()
    go.touch()
    assert waiting.wait(120) == 0


def test_the_daemons_process_is_only_the_supervisor(served):
    (daemon,) = served.started
    words = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().split(b"\0")
    assert words[:4] == [os.fsencode(sys.executable), b"-P", b"-m", b"runner.supervisor"]
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0


def test_those_who_watch_a_job_learn_that_it_was_removed(served):
    folder = served.folder("flaky", command=["false"], toml='[restart]\nbackoff = "10m"\nbudget = 9\n')
    run = served.start("run", str(folder))
    served.until("flaky", "backoff")
    logs = served.start("logs", "flaky", "-f")
    wait_for(lambda: b"logs" in _words(logs.pid), "logs to start")
    wait = served.start("wait", "flaky")
    wait_for(lambda: b"wait" in _words(wait.pid), "wait to start")
    assert served("rm", "flaky").out == "flaky: removed\n"
    assert [watcher.wait(20) for watcher in (run, logs, wait)] == [3, 3, 3]
    lines = (served.root / "stderr").read_text().splitlines()
    assert sum(line.startswith("runner: flaky: no such job in ") for line in lines) == 3


def _words(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_a_follower_of_a_job_that_never_ran_learns_that_it_was_removed(runner):
    runner("submit", str(runner.folder("digits")))
    logs = runner.start("logs", "digits", "-f")
    wait_for(lambda: b"logs" in _words(logs.pid), "logs to start")
    assert runner("rm", "digits").code == 0
    assert logs.wait(20) == 3


def test_all_are_asked_even_where_one_refuses(served):
    for name in ("one", "two", "three"):
        served("submit", str(served.folder(name, *(("1", "0.01") if name == "two" else FOREVER))))
    assert served("wait", "two").code == 0
    for name in ("one", "three"):
        served.until(name, "running")
    answer = served("stop", "one", "two", "three")
    assert answer.code == 5
    assert answer.complaint() == "two: it has ended already (succeeded)"
    for name in ("one", "three"):
        served.until(name, "cancelled")
    served("retry", "three")
    served.until("three", "running")
    answer = served("rm", "three", "one", "two")
    assert (answer.code, answer.out) == (5, "one: removed\ntwo: removed\n")
    assert "it is active" in answer.complaint()


def test_a_damaged_record_can_be_removed_under_a_daemon(served):
    served("submit", str(served.folder("digits")))
    served("wait", "digits")
    for started in served.started:
        started.terminate()
        started.wait(30)
    served.home.job("digits").record.write_text("{")
    served.home.supervisor.unlink(missing_ok=True)
    served.supervise()
    assert served("stop", "digits").code == 1
    assert served("rm", "digits").out == "digits: removed\n"
    assert list(served.home.submitted()) == []
