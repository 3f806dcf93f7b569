"""What is seen of an attempt from outside, with real files and processes; time is an argument."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.core.events import Limit, Sight
from runner.core.hang import Ability
from runner.core.job import Job, State
from runner.core.spec import JobSpec, LimitsSpec
from runner.core.table import decide
from runner.storage.layout import Home
from runner.supervisor import process
from runner.supervisor.book import moment
from runner.supervisor.watch import Watch, starves

LIMIT_S = 10.0
FREEZER = Path("/sys/fs/cgroup/freezer")
DAY_S = 86400.0


def job(**fields: Any) -> Job:
    spec = JobSpec(limits=LimitsSpec(hang_s=LIMIT_S, startup_s=LIMIT_S))
    return Job("j", State.RUNNING, "2026-01-01T00:00:00+00:00", 1, **{"attempt": 2, "spec": spec, **fields})


class Seen:
    """A watch over a job's second attempt, and what writes its progress."""

    def __init__(self, root: Path) -> None:
        self.paths = Home(root).job("j")
        self.paths.dir.mkdir(parents=True)
        self.watch = Watch(self.paths, 2, 0.0)
        self.now, self.worker, self.job = 0.0, None, job()

    def write(self, **values: Any) -> None:
        staged = self.paths.dir / "staged"
        staged.write_text(
            json.dumps({"version": 1, "attempt": 2, "phase": "train", "heartbeat_s": 1.0, **values})
        )
        staged.rename(self.paths.progress)

    def pass_s(self, seconds: float) -> float:
        """Look twice a second for so long; return for how long the attempt has been idle then."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.watch.look(self.job, self.now, self.worker)
        return self.watch.pulse.idle_s


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path)


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sleeps(pid: int) -> bool:
    """Tell whether the process has got as far as to sleep: time in these tests is not the machine's."""
    return ") S " in Path(f"/proc/{pid}/stat").read_text()


def test_only_work_is_work(seen: Seen) -> None:
    seen.write(work=1, step=1)
    assert seen.pass_s(4) == 3.5
    seen.write(work=1, step=1, time="2026-01-01T00:00:09.000Z", saving={"save_s": 1.0})
    assert seen.pass_s(1) == 4.5, "written by a thread beside the training"
    seen.write(work=2, step=1, phase="validate")
    assert seen.pass_s(1) == 0.5
    assert seen.watch.pulse.pace["train"] == 5.0


def test_what_does_not_start_in_time_has_twice_as_long_the_next_time(seen: Seen) -> None:
    seen.job = job(spec=JobSpec())
    seen.write(work=1, phase="import", heartbeat_s=None)
    seen.pass_s(600.5)
    assert seen.watch.hangs(seen.job) is None
    seen.pass_s(1)
    hang = seen.watch.hangs(seen.job)
    assert hang is not None
    assert (
        hang.reason
        == "no progress for 601 s in import (limits.startup allows 600 s, the next attempt 1202 s)"
    )
    seen.job = decide(seen.job, hang, moment()).job
    seen.watch = Watch(seen.paths, 2, seen.now)
    seen.pass_s(1202.5)
    assert seen.watch.hangs(seen.job) is None
    seen.pass_s(1)
    assert "limits.startup allows 1202 s, the next attempt 24" in str(seen.watch.hangs(seen.job))


def test_a_touch_is_a_heartbeat_whatever_the_clock_says(seen: Seen) -> None:
    seen.write(work=1)
    seen.pass_s(1)
    for day in (0.0, DAY_S, -DAY_S, 3 * DAY_S):
        os.utime(seen.paths.progress, (time.time() + day, time.time() + day))
        assert seen.pass_s(1) > 0.5, "no work"
        assert seen.watch.pulse.silent_s == 0.5, "the first of two looks saw it"
    assert seen.pass_s(4) == seen.watch.pulse.silent_s + 4.0 == 8.5
    assert "nor does its Python run" not in str(seen.watch.hangs(seen.job))
    seen.pass_s(2)
    assert "nor does its Python run" in str(seen.watch.hangs(seen.job))


def test_what_an_earlier_attempt_left_is_nothing(seen: Seen) -> None:
    seen.write(attempt=1, work=5)
    seen.pass_s(1)
    seen.write(attempt=1, work=6, phase="validate")
    assert seen.pass_s(1) == 2.0
    assert (seen.watch.pulse.phase, seen.watch.pulse.beat, seen.watch.pulse.pace) == ("", None, {})


def test_progress_of_a_script_that_knows_no_more_than_steps(seen: Seen) -> None:
    seen.write(step=1, heartbeat_s=None)
    assert seen.pass_s(2) == 1.5
    seen.write(step=2, heartbeat_s=None)
    assert seen.pass_s(0.5) == 0.0
    seen.pass_s(11)
    line = "no progress for 11 s in train (limits.hang allows 10 s)"
    assert seen.watch.hangs(seen.job) == Limit(Sight.HUNG, line)


def test_who_has_no_disk_to_tell_on_has_as_long_again(seen: Seen) -> None:
    seen.write(work=1)
    seen.pass_s(9)
    shutil.rmtree(seen.paths.dir)
    for _ in range(3):
        seen.pass_s(11)
        assert seen.watch.hangs(seen.job) is None
    seen.paths.dir.mkdir()
    seen.write(work=1)
    seen.pass_s(11)
    assert seen.watch.hangs(seen.job) is not None


@pytest.mark.parametrize("limits", [LimitsSpec(), LimitsSpec(hang_s=LIMIT_S)], ids=["learned", "set"])
def test_silence_of_those_who_never_report(seen: Seen, limits: LimitsSpec) -> None:
    """A loop of the script's own, and a command without progress, hang only where limits.hang is set."""
    command = JobSpec(entry=None, command=("./x",), limits=replace(limits, startup_s=LIMIT_S))
    seen.job = job(spec=command)
    seen.pass_s(LIMIT_S + 1)
    assert (seen.watch.hangs(seen.job) is None) == (limits.hang_s is None)
    seen.job = job(spec=replace(JobSpec(), limits=limits))
    seen.write(work=1, phase="own")
    seen.pass_s(3600)
    assert (seen.watch.hangs(seen.job) is None) == (limits.hang_s is None)


@pytest.mark.parametrize("how", ["stopped", "traced"])
def test_who_is_stopped_or_traced_is_not_idle(seen: Seen, how: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with running("sleep", "60") as child:
        seen.worker = child.pid
        wait_for(lambda: sleeps(child.pid))
        seen.write(work=1)
        idle_s = seen.pass_s(3)
        os.kill(child.pid, signal.SIGSTOP) if how == "stopped" else libc.ptrace(16, child.pid, None, None)
        wait_for(lambda: process.is_stopped(child.pid))
        assert seen.pass_s(60) == idle_s
        assert seen.watch.hangs(seen.job) is None
        if how == "traced":
            os.waitpid(child.pid, os.WUNTRACED)
            libc.ptrace(17, child.pid, None, None)
        else:
            os.kill(child.pid, signal.SIGCONT)
        wait_for(lambda: sleeps(child.pid))
        assert seen.pass_s(9) == idle_s + 9
        assert seen.watch.hangs(seen.job) is not None


def test_who_reports_may_be_another_process_than_the_worker(seen: Seen) -> None:
    with running("sleep", "60") as worker, running("sleep", "60") as trainer:
        seen.worker = worker.pid
        seen.write(work=1, pid=trainer.pid)
        idle_s = seen.pass_s(3)
        os.kill(trainer.pid, signal.SIGSTOP)
        wait_for(lambda: process.is_stopped(trainer.pid))
        assert seen.pass_s(60) == idle_s


@pytest.mark.parametrize(
    ("ran_s", "waited_s", "turns", "ready", "starved"),
    [
        (0.05, 0.90, 10, True, True),  # preempted each time that it has one
        (0.05, 0.00, 10, True, True),  # the same, its last wait not over
        (0.00, 0.00, 0, True, True),  # one long wait
        (0.00, 0.00, 0, False, False),  # asleep
        (0.004, 0.90, 200, False, False),  # polls, on a busy machine
        (0.40, 0.55, 50, True, False),  # has its share
        (0.05, 0.15, 10, False, False),  # has little to do
    ],
)
def test_who_starves(ran_s: float, waited_s: float, turns: int, ready: bool, starved: bool) -> None:
    before = process.Processing(7.0, 3.0, 70, ready)
    after = process.Processing(7.0 + ran_s, 3.0 + waited_s, 70 + turns, ready)
    assert starves(before, after, 1.0) == starved


def test_who_gets_no_processor_is_not_idle(seen: Seen) -> None:
    """Two that never rest on one processor, one of them of the lowest priority; and one that polls."""
    if not process.processing(os.getpid()):
        pytest.skip("this kernel keeps no account")
    core = max(os.sched_getaffinity(0))
    busy = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    last = f"import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); {busy}"
    with running(sys.executable, "-c", busy) as other, running(sys.executable, "-c", last) as starved:
        for child in (other, starved):
            assert child.stdout is not None
            child.stdout.readline()
        assert ability_of(seen, starved.pid) is Ability.STARVED
        polls = "import time; print(flush=True)\nwhile True: time.sleep(0.0001)"
        with running(sys.executable, "-c", polls) as poller:
            assert poller.stdout is not None
            poller.stdout.readline()
            os.sched_setaffinity(poller.pid, {core})
            assert ability_of(seen, poller.pid) is Ability.RUNS


def ability_of(seen: Seen, pid: int) -> Ability:
    """Look at a process that has been idle for a third of its limit, over 1.5 seconds of real time."""
    watch = Watch(seen.paths, 2, time.monotonic())
    watch.pulse = replace(watch.pulse, idle_s=0.3 * LIMIT_S)
    watch._ability(seen.job, time.monotonic(), pid)
    began = time.monotonic()
    wait_for(lambda: time.monotonic() > began + 1.5)
    return watch._ability(seen.job, time.monotonic(), pid)


def test_who_is_frozen_is_not_idle(seen: Seen) -> None:
    group = FREEZER / f"test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made to freeze")
    with running("sleep", "60") as child:
        try:
            (group / "cgroup.procs").write_text(str(child.pid))
            assert not process.is_frozen(child.pid)
            (group / "freezer.state").write_text("FROZEN")
            wait_for(lambda: process.is_frozen(child.pid))
            seen.worker = child.pid
            seen.write(work=1)
            assert seen.pass_s(60) <= LIMIT_S / 2 + 0.5
        finally:
            (group / "freezer.state").write_text("THAWED")
    wait_for(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()
