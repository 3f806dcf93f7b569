"""Spares: a worker that has imported already takes over from one that dies, and nothing else changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from runner.core.job import State
from runner.storage import lock
from runner.supervisor import process, traces
from runner.supervisor.spare import HEAD_START_S
from tests.system.conftest import Site, assert_events_in_order
from tests.system.spares import COUNTS, FITS, FOR_EVER, WAIT_S, spare_of, submit, waits
from tests.waiting import wait_for

UNTIL_ENOUGH = (
    COUNTS
    + """
import time
while not os.path.exists("enough"):
    time.sleep(0.01)
"""
)
LEAVES_ONE = (
    """
import os, subprocess
if os.environ["RUNNER_ATTEMPT"] == "1":
    stray = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open("stray", "w") as out:
        out.write(str(stray.pid))
"""
    + COUNTS
)

SAVES_NOTHING = COUNTS.replace('exec(compile(open("counter.py")', "import time; time.sleep(1000)  #")
#: Once the script has it, it can be imported no more: it says why at length, or what is no word of a spare's.
CHANGES_ITS_MIND = """
import os
if os.path.exists("told"):
    if os.environ["HOW"] == "long":
        raise ImportError("x" * 100_000)
    environ = dict(line.split(b"=", 1) for line in open("/proc/self/environ", "rb").read().split(b"\\0")[:-1])
    os.write(int(environ[b"RUNNER_SPARE"]), b"[" * 60_000)
"""
IMPORTS_IT = "import changes_its_mind\nopen('told', 'w').close()\n" + COUNTS
#: A package whose import takes a spare until it is let go on.
HESITATES = """
import os, time
if b"RUNNER_SPARE=" in open("/proc/self/environ", "rb").read():
    with open("hesitates", "w") as out:
        out.write(str(os.getpid()))
    print("it hesitates", flush=True)
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    print("it goes on", flush=True)
"""

#: One that is not ready has had so long, and is waited for as long again.
GROWN_S = HEAD_START_S + 6.0

LIMIT_BYTES = 1 << 30 | 1 << 29
#: Takes as much memory as a file says.
GROWS = (
    """
import os, threading, time
def grow():
    global held
    while not os.path.exists("grow"):
        time.sleep(0.01)
    held = b"x" * int(open("grow").read())
threading.Thread(target=grow, daemon=True).start()
"""
    + COUNTS
)


def starts(site: Site, name: str) -> list[list[str]]:
    """Return pid, attempt and where NumPy is from, for each start of the script."""
    return [line.split() for line in (site.home.folder(name) / "starts").read_text().splitlines()]


def started_again(site: Site, name: str) -> list[str]:
    os.kill(site.identity(name, "worker").pid, signal.SIGKILL)
    wait_for(lambda: len(site.trace(name)) == 2, f"{name} to be started again")
    assert site.trace(name)[1][2] > 0, "it counts on"
    return starts(site, name)[1]


def shim_of(worker: process.Identity) -> int:
    return int(Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_spare_takes_over_and_is_renewed(site: Site) -> None:
    site.start()
    submit(site, "count")
    first = waits(site, "count")
    shim = shim_of(first)
    pid, attempt, _ = started_again(site, "count")
    assert (pid, attempt) == (str(first.pid), "2")
    assert site.identity("count", "worker", 2) == first
    assert site.identity("count", "shim", 2).pid == shim
    assert Path("/proc", pid, "fd", "1").readlink() == site.home.job("count").attempt(2).log
    assert Path("/proc", pid, "oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()
    threads = [int(thread.name) for thread in Path("/proc", pid, "task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, t) for t in threads} == {os.getpriority(os.PRIO_PROCESS, 0)}
    wait_for(lambda: spare_of(site, "count") not in {None, first}, "another one", WAIT_S)
    wait_for(lambda: site.kinds("count").count("spare-ready") == 2, "that to be recorded")
    assert site.kinds("count").count("spare-took-over") == 1
    site.ask("cancel", "count")
    site.wait("count", State.CANCELLED)
    wait_for(lambda: site.living("count") == [], "all to be gone")
    assert_events_in_order(site.events("count"))


def test_one_that_is_held_up_for_a_moment_is_waited_for(site: Site) -> None:
    site.start()
    submit(site, "count")
    spare = waits(site, "count")
    shim = shim_of(spare)
    os.kill(spare.pid, signal.SIGSTOP)
    os.kill(site.identity("count", "worker").pid, signal.SIGKILL)
    wait_for(lambda: site.identity("count", "shim", 2).pid == shim, "it to be handed over")
    handed_s = time.monotonic()
    wait_for(lambda: time.monotonic() > handed_s + 1.5, "a moment to pass")
    os.kill(spare.pid, signal.SIGCONT)
    wait_for(lambda: len(starts(site, "count")) == 2, "count to be started again")
    assert starts(site, "count")[1][:2] == [str(spare.pid), "2"]


def test_a_killed_shim_costs_no_spare(site: Site) -> None:
    """All that is left of its attempt is killed; the spare, which has the job's marks too, is not of it."""
    site.start()
    submit(site, "count", script=LEAVES_ONE)
    spare = waits(site, "count")
    stray = int((site.home.folder("count") / "stray").read_text())
    os.kill(site.identity("count", "shim").pid, signal.SIGKILL)
    wait_for(lambda: len(starts(site, "count")) == 2, "count to be started again")
    pid, attempt, _ = starts(site, "count")[1]
    assert (pid, attempt) == (str(spare.pid), "2")
    found = process.identify(stray)
    assert found is None or not process.is_alive(found)
    assert "spare-dropped" not in site.kinds("count")


def test_what_a_spare_ends_with_is_what_an_undisturbed_run_ends_with(site: Site) -> None:
    site.start()
    every = '[checkpoint]\nevery = "7 steps"\n'
    for name in ("disturbed", "undisturbed"):
        submit(site, name, toml=every, script=FITS)
    (site.home.folder("undisturbed") / "enough").touch()
    spare = waits(site, "disturbed")
    os.kill(site.identity("disturbed", "worker").pid, signal.SIGKILL)
    (site.home.folder("disturbed") / "enough").touch()
    jobs = {name: site.wait(name, State.SUCCEEDED, timeout_s=WAIT_S) for name in ("disturbed", "undisturbed")}
    assert [job.attempt for job in jobs.values()] == [2, 1]
    assert site.identity("disturbed", "worker", 2) == spare
    results = [(site.home.folder(name) / "result").read_text() for name in jobs]
    assert results[0] == results[1]
    logs = [site.home.job(name).attempt(job.attempt).log.read_text() for name, job in jobs.items()]
    told = [[line for line in log.splitlines() if line.startswith("level")] for log in logs]
    assert told[0] == told[1]
    (since,) = [line.split(":")[1] for line in logs[0].splitlines() if line.startswith("collections since")]
    assert int(since) <= 1, "else one of all that was imported is due while it is waited for"
    events = [event for event in site.events("disturbed") if event["event"].startswith("spare")]
    assert [event["event"] for event in events][:2] == ["spare-ready", "spare-took-over"]
    assert events[0]["left"] < 50 < events[0]["modules"], "all was imported but what training itself does"


@pytest.mark.parametrize("how", ["in time", "too late", "unwanted"])
def test_one_that_is_not_ready_yet_is_waited_for(site: Site, tmp_path: Path, how: str) -> None:
    """For as long again as it has had, and not where the job is to end."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "hesitates.py").write_text(HESITATES)
    site.start()
    told = site.home.job("count").attempt(2).shim  # that it was handed over
    go = told if how == "in time" else tmp_path / "never"
    env = f'[env]\nGO = "{go}"\nPYTHONPATH = "{packages}:{os.environ.get("PYTHONPATH", "")}"\n'
    submit(site, "count", toml=env, script="import hesitates\n" + COUNTS)
    folder = site.home.folder("count")
    spare = wait_for(lambda: (folder / "hesitates").exists() and (folder / "hesitates").read_text(), "it")
    shim = psutil.Process(int(spare)).parent()
    begun = process.identify(shim.pid)
    wait_for(lambda: process.age_s(begun) > GROWN_S, "it to be worth waiting for")
    os.kill(site.identity("count", "worker").pid, signal.SIGKILL)
    wait_for(lambda: site.identity("count", "shim", 2).pid == shim.pid, "it to be handed over")
    # Nobody waits for it but its job: it stands back no longer.
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, int(spare)) == shim.nice(), "it to be hurried")
    if how == "unwanted":
        site.ask("cancel", "count")
        site.wait("count", State.CANCELLED)
        told = site.home.job("count").attempt(2).log.read_text()
        assert "a new process is started" not in told
        assert not psutil.pid_exists(int(spare))
        return
    wait_for(lambda: len(site.trace("count")) == 2, "count to be started again")
    pid, attempt, _ = starts(site, "count")[1]
    assert attempt == "2"
    assert (pid == spare) == (how == "in time")
    if how == "in time":
        wait_for(lambda: "spare-took-over" in site.kinds("count"), "that to be recorded")
    told = site.home.job("count").attempt(2).log.read_text()
    assert "it hesitates" in told
    assert ("it goes on" in told) == (how == "in time")


def test_one_attempt_comes_of_it_where_the_supervisor_dies_meanwhile(site: Site) -> None:
    daemon = site.start()
    submit(site, "count")
    spare = waits(site, "count")
    os.kill(spare.pid, signal.SIGSTOP)  # so that its shim waits for its answer
    os.kill(site.identity("count", "worker").pid, signal.SIGKILL)
    wait_for(lambda: not site.home.job("count").spare.shim.exists(), "it to be handed over")
    daemon.kill()
    daemon.wait()
    assert lock.is_locked(site.home.job("count").lock), "no other supervisor starts it too"
    holder = traces.find_shim(site.home.job("count").lock)
    site.start()
    wait_for(lambda: len(site.trace("count")) == 2, "it to count again")
    shim = site.identity("count", "shim", 2)
    assert shim == holder
    wait_for(lambda: process.is_alive(site.identity("count", "worker", 2)), "its worker")
    waits(site, "count")  # another one, beside an attempt that is looked after
    assert [attempt for _, attempt, _ in starts(site, "count")] == ["1", "2"]
    assert site.kinds("count").count("running") == 2
    assert site.job("count").attempt == 2
    assert process.is_alive(shim)


def test_a_spare_that_is_of_no_use_costs_nothing(site: Site) -> None:
    """Killed, hung, with another interpreter, with a module that hides a package: as without one."""
    site.start()
    names = ("killed", "beheaded", "hung", "interpreter", "hidden")
    for name in names:
        submit(site, name, toml='python = "./python"\n' if name == "interpreter" else "")
    spares = {name: waits(site, name) for name in names}
    os.kill(spares["killed"].pid, signal.SIGKILL)
    os.kill(shim_of(spares["beheaded"]), signal.SIGKILL)
    os.kill(spares["hung"].pid, signal.SIGSTOP)
    other = site.home.folder("interpreter") / "python"
    other.unlink()
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    (site.home.folder("hidden") / "numpy.py").touch()
    again = {name: started_again(site, name) for name in names}
    for name in names:
        pid, attempt, _ = again[name]
        assert attempt == "2"
        assert "spare-took-over" not in site.kinds(name)
        assert (pid == str(spares[name].pid)) == (name == "hidden"), name
    assert again["hidden"][2] == str(site.home.folder("hidden") / "numpy.py")
    others = [spares[name] for name in names if name != "hidden"]
    wait_for(lambda: not any(map(process.is_alive, others)), "the others to be gone")


def test_a_folder_that_cannot_be_looked_at_costs_the_spare_alone(site: Site) -> None:
    site.start()
    submit(site, "count")
    wait_for(lambda: site.home.job("count").attempt(1).launch.exists(), "it to be started")
    (site.home.folder("count") / ".venv").symlink_to("a" * 300)
    wait_for(
        lambda: "count: there is no spare: [Errno 36]" in site.log.read_text(), "that to be told", WAIT_S
    )
    assert site.daemons[0].poll() is None
    assert site.job("count").state is State.RUNNING


def test_it_counts_as_memory_of_its_job_and_goes_first(site: Site) -> None:
    site.start()
    submit(site, "count", toml=f"[limits]\nmemory = {LIMIT_BYTES}\n", script=GROWS)
    spare, worker = waits(site, "count"), site.identity("count", "worker")
    alone, beside = (psutil.Process(one.pid).memory_info().rss for one in (worker, spare))
    staged = site.home.folder("count") / ".grow"
    staged.write_text(str(LIMIT_BYTES - alone - beside // 2))
    staged.rename(staged.with_name("grow"))
    wait_for(lambda: "spare-dropped" in site.kinds("count"), "it to be dropped")
    dropped = next(event for event in site.events("count") if event["event"] == "spare-dropped")
    assert dropped["reason"] == "both would be above limits.memory"
    wait_for(lambda: not process.is_alive(spare), "it to end")
    assert process.is_alive(worker)
    assert site.job("count").state is State.RUNNING


def test_a_job_that_waits_long_lets_its_spare_go(site: Site) -> None:
    """It is in backoff for a minute: it was started in vain."""
    site.start()
    submit(site, "sleeps", script=SAVES_NOTHING, restart='backoff = "60s..60s"\n')
    spare = waits(site, "sleeps")
    os.kill(site.identity("sleeps", "worker").pid, signal.SIGKILL)
    job = site.wait("sleeps", State.BACKOFF)
    assert process.is_alive(spare), "it may be wanted at once"
    wait_for(lambda: "spare-dropped" in site.kinds("sleeps"), "it to be dropped")
    wait_for(lambda: not process.is_alive(spare), "it to end")
    dropped = [event["reason"] for event in site.events("sleeps") if event["event"] == "spare-dropped"]
    assert dropped == ["its job has waited for 5 s"]
    assert site.job("sleeps").state is job.state


def test_none_outlives_its_job_or_its_supervisor(site: Site) -> None:
    daemon = site.start()
    names = ("stop", "cancel", "pause", "succeeded", "adopted")
    for name in names:
        ends = name == "succeeded"
        submit(site, name, target=1 if ends else FOR_EVER, script=UNTIL_ENOUGH if ends else COUNTS)
    spares = {name: waits(site, name) for name in names}
    for verb in names[:3]:
        site.ask(verb, verb)
    (site.home.folder("succeeded") / "enough").touch()
    for name in names[:4]:
        site.wait(name, State.CANCELLED, State.PAUSED, State.SUCCEEDED)
        wait_for(lambda name=name: site.living(name) == [], f"all of {name} to be gone")
    daemon.kill()
    daemon.wait()
    spare = spares["adopted"]
    wait_for(lambda: not process.is_alive(spare), "the spare to end with its supervisor")
    assert process.is_alive(site.identity("adopted", "worker"))
    site.start()
    # What the dead one has told of itself is removed by its shim, a moment after it.
    wait_for(lambda: waits(site, "adopted") != spares["adopted"], "another spare")
    assert len(starts(site, "adopted")) == 1


def test_a_daemon_that_ends_with_its_job_has_seen_the_spare_end(site: Site) -> None:
    submit(site, "count", target=1, script=UNTIL_ENOUGH)
    daemon = site.start("--only", "count")
    shim = psutil.Process(waits(site, "count").pid).parent()
    shim.suspend()
    (site.home.folder("count") / "enough").touch()
    site.wait("count", State.SUCCEEDED)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(0.5)
    shim.resume()
    assert daemon.wait(30) == 0
    assert site.living("count") == []


def test_whatever_it_says_the_daemon_lives(site: Site, tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "changes_its_mind.py").write_text(CHANGES_ITS_MIND)
    site.start()
    for how in ("long", "junk"):
        env = f'[env]\nPYTHONPATH = "{packages}:{os.environ.get("PYTHONPATH", "")}"\nHOW = "{how}"\n'
        submit(site, how, toml=env, script=IMPORTS_IT)
    reasons = {}
    for how in ("long", "junk"):
        wait_for(lambda how=how: "spare-dropped" in site.kinds(how), "it to be dropped", WAIT_S)
        reasons[how] = next(e["reason"] for e in site.events(how) if e["event"] == "spare-dropped")
    assert reasons["long"].startswith("changes_its_mind cannot be imported before the script runs: Import")
    assert len(reasons["long"]) == 500
    assert reasons["junk"] == "it has ended"
    assert site.daemons[0].poll() is None
