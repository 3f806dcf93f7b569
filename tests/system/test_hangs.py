"""Hangs and what only looks like one, with real daemons, shims and workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import facts
from runner.core.job import Outcome, State
from runner.storage import records
from runner.supervisor import allotment, process
from tests.system.conftest import Site
from tests.waiting import wait_for

LIMIT_S = 3.0
FREEZER = Path("/sys/fs/cgroup/freezer")
#: Steps that take from 10 ms to 1 s, the time of its progress days apart; then one that never ends.
VARYING = """
import json, os, random, sys, time
state, attempt, chance = os.environ["RUNNER_STATE"], int(os.environ["RUNNER_ATTEMPT"]), random.Random(7)
def tell(step):
    fields = {"version": 1, "attempt": attempt, "pid": os.getpid(), "step": step, "phase": "train"}
    with open(state + "/.staged", "w") as out:
        json.dump({**fields, "time": str(chance.random())}, out)
    day = chance.choice([-86400, 0, 86400])
    os.utime(state + "/.staged", (time.time() + day, time.time() + day))
    os.rename(state + "/.staged", state + "/progress.json")
for step in range(25):
    time.sleep(0.01 * 100 ** chance.random())
    tell(step)
if attempt == 1:
    with open("stalled", "w") as out:
        print(time.monotonic(), file=out)
    time.sleep(600)
"""
#: What a hang looks like whose Python runs.
STUCK = """
import threading, time
def stuck():
    time.sleep(600)
threading.Thread(target=stuck).start()
stuck()
"""
#: ... and one inside a call that lets no other thread run.
SILENT = """
import ctypes
lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(mutex), lock(mutex)
"""

#: Steps; a short pause after some, a long one where asked for, and on until it is over.
PAUSING = """
import json, os, time
state, step, slept = os.environ["RUNNER_STATE"], 0, False
def tell():
    with open(state + "/.staged", "w") as out:
        json.dump({"version": 1, "attempt": 1, "pid": os.getpid(), "step": step, "phase": "train"}, out)
    os.rename(state + "/.staged", state + "/progress.json")
def note(name):
    with open(name + ".staged", "w") as out:
        out.write(f"{step:08d}")
    os.rename(name + ".staged", name)
while not os.path.exists("over"):
    step += 1
    tell()
    note("step")
    if step == 20:
        time.sleep(1.0)
        note("paused")
    if os.path.exists("long") and not slept:
        time.sleep(4.0)
        slept = True
    time.sleep(0.02)
"""
#: Leaves a child when it is asked to end; until then it trains.
LEAVES = """
import json, os, subprocess, time
state, step = os.environ["RUNNER_STATE"], 0
with open(".child", "w") as out:
    out.write(str(subprocess.Popen(["sleep", "1000"]).pid))
os.rename(".child", "child")
while not os.path.exists("enough"):
    step += 1
    with open(state + "/.staged", "w") as out:
        json.dump({"version": 1, "attempt": 1, "pid": os.getpid(), "step": step, "phase": "train"}, out)
    os.rename(state + "/.staged", state + "/progress.json")
    time.sleep(0.02)
os._exit(1)
"""


def submit_script(site: Site, name: str, text: str, toml: str) -> None:
    staged = site.home.jobs / f".{name}.tmp"
    staged.mkdir()
    (staged / "train.py").write_text(text)
    (staged / "job.toml").write_text(toml)
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(site.home.folder(name))


def test_steps_may_vary_and_what_follows_them_is_found_in_time(site: Site) -> None:
    site.start()
    toml = f'[limits]\nhang = "{LIMIT_S:g}s"\n[restart]\nbackoff = "50ms..100ms"\n'
    site.submit("varies", command=[sys.executable, "-c", VARYING], toml=toml)
    wait_for(lambda: "hung" in site.kinds("varies"), "the hang to be found")
    found_at = time.monotonic()
    took_s = found_at - float((site.home.folder("varies") / "stalled").read_text())
    assert LIMIT_S <= took_s < LIMIT_S + 3.0, "a second, and what a busy machine adds"
    job = site.wait("varies", State.SUCCEEDED)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.HUNG, Outcome.SUCCEEDED]
    assert 0.5 < job.pace["train"] < LIMIT_S


def test_what_was_learned_of_a_first_attempt_outlives_the_supervisor(site: Site) -> None:
    daemon = site.start()
    site.submit("pauses", command=[sys.executable, "-c", PAUSING])
    folder = site.home.folder("pauses")

    def pace_s() -> float:
        return site.job("pauses").pace.get("train", 0.0)

    def adopted() -> int:
        return site.kinds("pauses").count("adopted")

    wait_for((folder / "paused").exists, "a pause")
    wait_for(lambda: int((folder / "step").read_text()) >= 70, "it to be seen")
    assert pace_s() == 0.0, "nothing is written for a short one"
    daemon.send_signal(signal.SIGHUP)
    wait_for(adopted, "the daemon to start anew")
    assert pace_s() > 0.5, "it was when the supervisor left"
    (folder / "long").touch()
    wait_for(lambda: pace_s() > 3.0, "a long pause to be recorded while the attempt runs")
    daemon.kill()
    daemon.wait()
    site.start()
    wait_for(lambda: adopted() == 2, "the adoption")
    assert pace_s() > 3.0
    (folder / "over").touch()
    assert site.wait("pauses", State.SUCCEEDED).attempt == 1


def test_a_tree_that_is_stopped_with_its_daemon_does_not_hang(site: Site) -> None:
    daemon = site.start()
    site.submit("count", "100000", "0.02", toml='[limits]\nhang = "1s"\n')
    wait_for(lambda: site.count("count") >= 20, "progress")
    pids = [site.identity("count", who).pid for who in ("worker", "shim")] + [daemon.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: time.monotonic() > stopped + 4, "four limits to pass")
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    seen = site.count("count")
    wait_for(lambda: site.count("count") >= seen + 50, "it to count on")
    site.ask("stop", "count")
    job = site.wait("count", State.CANCELLED)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.STOPPED]
    assert "hung" not in site.kinds("count")


def test_evidence_is_kept_of_a_hang_whose_python_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNER_HOME", raising=False)
    site.start()
    toml = '[limits]\nstartup = "{}s"\ngrace = "1s"\n[restart]\nbudget = 0\n[resources]\ncpus = 0.1\n'
    submit_script(site, "stuck", STUCK, toml.format(7))
    submit_script(site, "silent", SILENT, toml.format(12))
    job = site.wait("stuck", State.FAILED, timeout_s=60)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.HUNG]
    hung = next(event for event in site.events("stuck") if event["event"] == "hung")
    assert "in import, though its Python runs (limits.startup allows 7 s)" in hung["reason"]
    attempt = site.home.job("stuck").attempt(1)
    stacks, evidence = attempt.stacks.read_text(), attempt.evidence.read_text()
    assert stacks.count("in stuck\n") == 2, "Python's stacks of both threads"
    assert "State:" in stacks
    assert "in the kernel" in stacks
    pid = json.loads(attempt.shim.read_text())["worker"]["pid"]
    for part in (
        "processes",
        f"open files of {pid}",
        "progress.json",
        f"memory of {pid}",
        f"command line of {pid}",
    ):
        assert f"--- {part}\n" in evidence
    assert f"1 -> {attempt.log}\n" in evidence
    assert '"phase": "import"' in evidence
    assert "Rss:" in evidence
    assert json.loads(attempt.outcome.read_text())["strays_killed"] == 0, "the witness is no stray"
    site.wait("silent", State.FAILED, timeout_s=60)
    hung = next(event for event in site.events("silent") if event["event"] == "hung")
    assert "in import, nor does its Python run" in hung["reason"]
    stacks = site.home.job("silent").attempt(1).stacks.read_text()
    assert 'train.py", line 4 in <module>' in stacks


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze a process: it then stands for one in uninterruptible sleep, as SIGKILL waits for the thaw."""
    group = FREEZER / f"test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made to freeze")
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        wait_for(lambda: process.is_frozen(pid), "the freeze")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group to be empty")
        group.rmdir()


def test_what_does_not_die_keeps_its_place_and_is_told(site: Site) -> None:
    site.start()
    whole = f"[resources]\ncpus = {allotment.cpus()}\n"
    site.submit("count", "100000", "0.01", toml=whole)
    wait_for(lambda: site.count("count") >= 10, "progress")
    site.submit("next", "5", toml=whole)
    worker = site.identity("count", "worker")
    kept = site.home.job("count").attempt(1).stuck
    with frozen(worker.pid):
        site.ask("cancel", "count")
        wait_for(lambda: "stuck" in site.kinds("count"), "it to be told")
        told = next(event["reason"] for event in site.events("count") if event["event"] == "stuck")
        assert f"killed, and not dead: pid {worker.pid} (python" in told
        assert "in state D (uninterruptible sleep) in " in told
        assert records.load_json(kept)["text"] == told
        assert facts.gather(site.home, "count")["stuck"] == told
        assert site.job("count").state is State.STOPPING
        assert site.job("next").state is State.QUEUED, "its place is taken"
        site.ask("pause", "next")
        site.wait("next", State.PAUSED)  # the daemon is not held up
        site.ask("resume", "next")
    site.wait("count", State.CANCELLED)
    site.wait("next", State.SUCCEEDED)
    assert not kept.exists()
    assert site.kinds("count").count("stuck") == 1


def test_what_an_attempt_leaves_that_does_not_die_is_told_and_no_hang(site: Site) -> None:
    site.start()
    toml = '[limits]\nhang = "2s"\n[restart]\nbudget = 0\n'
    site.submit("leaves", command=[sys.executable, "-c", LEAVES], toml=toml)
    child = site.home.folder("leaves") / "child"
    pid = int(wait_for(lambda: child.exists() and child.read_text(), "its child"))
    with frozen(pid):
        (site.home.folder("leaves") / "enough").touch()
        told = wait_for(lambda: [e["reason"] for e in site.events("leaves") if e["event"] == "stuck"], "it")
        assert f"killed, and not dead: pid {pid} (sleep) in state D" in told[0]
        assert site.job("leaves").state is State.RUNNING
    job = site.wait("leaves", State.FAILED)
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.FAILED]


def test_a_shim_that_is_stopped_is_told_and_goes_on_when_it_is_asked(site: Site) -> None:
    site.start()
    site.submit("count", "100000", "0.01")
    wait_for(lambda: site.count("count") >= 10, "progress")
    shim = site.identity("count", "shim")
    os.kill(shim.pid, signal.SIGSTOP)
    told = wait_for(lambda: [e["reason"] for e in site.events("count") if e["event"] == "stuck"], "it")
    assert told[0].startswith(f"its shim, pid {shim.pid}, is stopped: ")
    assert facts.gather(site.home, "count")["stuck"] == told[0]
    assert site.job("count").state is State.RUNNING
    site.ask("pause", "count")
    assert site.wait("count", State.PAUSED).current.outcome is Outcome.STOPPED
    site.ask("resume", "count")
    site.wait("count", State.RUNNING)
    os.kill(site.identity("count", "shim", 2).pid, signal.SIGSTOP)
    site.ask("cancel", "count")
    site.wait("count", State.CANCELLED)
    assert [e["attempt"] for e in site.events("count") if e["event"] == "stuck"].count(1) == 1


def test_what_a_job_says_of_being_stuck_is_cut_off(site: Site) -> None:
    site.start()
    says = 'echo \'{"text": "\'"$(yes x | head -c 200000 | tr -d "\\n")"\'"}\' > "$RUNNER_STATE/said"; '
    says += 'mv "$RUNNER_STATE/said" "$RUNNER_STATE/attempts/0001/stuck.json"; exec sleep 60'
    site.submit("says", command=["sh", "-c", says])
    told = wait_for(lambda: [e["reason"] for e in site.events("says") if e["event"] == "stuck"], "it")
    assert told == ["x" * 500]
    site.ask("cancel", "says")
    site.wait("says", State.CANCELLED)


def test_what_outlives_its_shim_and_does_not_die_is_waited_for(site: Site) -> None:
    site.start()
    site.submit("count", "60", "0.01", "--hold-at", "30", "go")
    wait_for(lambda: site.count("count") >= 10, "progress")
    worker = site.identity("count", "worker")
    with frozen(worker.pid):
        os.kill(site.identity("count", "shim").pid, signal.SIGKILL)
        wait_for(lambda: "stuck" in site.kinds("count"), "it to be told")
        told = next(event["reason"] for event in site.events("count") if event["event"] == "stuck")
        assert f"killed, and not dead: pid {worker.pid};" in told
        assert site.job("count").attempt == 1
    (site.home.folder("count") / "go").touch()
    assert site.wait("count", State.SUCCEEDED).attempt == 2


def test_the_next_attempt_waits_until_no_gpu_has_memory_of_the_last(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nvidia-smi that lists what a file says, and notes that it was asked."""
    listed, asked = tmp_path / "listed", tmp_path / "asked"
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncat {listed}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    site.start()
    site.submit("count", "200", "0.01", "--hold-at", "50", "go")
    wait_for(lambda: site.count("count") >= 10, "progress")
    worker = site.identity("count", "worker").pid
    listed.write_text(f"1\n{worker}\n")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: asked.exists() and asked.read_text().count("--query-compute-apps=pid") >= 3, "looks")
    assert not site.home.job("count").attempt(1).outcome.exists()
    assert site.job("count").attempt == 1
    listed.write_text("1\n")
    wait_for(lambda: site.job("count").attempt == 2, "the next attempt")
    worker = site.identity("count", "worker", 2).pid
    listed.write_text(f"1\n{worker}\n")
    asked.write_text("")
    os.kill(site.identity("count", "shim", 2).pid, signal.SIGKILL)  # then the supervisor looks itself
    wait_for(lambda: asked.read_text().count("--query-compute-apps=pid") >= 3, "looks")
    assert site.job("count").attempt == 2
    listed.write_text("1\n")
    (site.home.folder("count") / "go").touch()
    assert site.wait("count", State.SUCCEEDED).attempt == 3
    assert "warning" not in site.kinds("count")
    looks = asked.read_text()
    site.submit("well", "5")
    site.wait("well", State.SUCCEEDED)
    assert asked.read_text() == looks, "what ends well has let go of it"
