"""Pieces of the shim that no whole attempt shows."""

from __future__ import annotations

import errno
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runner
from runner.core.events import Ended, StartFailed
from runner.core.restart import EXIT_RETRY
from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import ends, vacancy
from runner.supervisor.attemptgroup import Group
from runner.supervisor.ends import read_outcome, starved
from runner.supervisor.lineage import OomKills
from runner.supervisor.loop import Loop
from tests.waiting import wait_for

SHIM = Path(runner.__file__).parent / "supervisor" / "shim.py"


@pytest.fixture
def shim() -> dict[str, Any]:
    return runpy.run_path(str(SHIM))


def test_a_worker_that_its_group_does_not_take_is_told_of_once_and_taken_in_later(
    shim: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a spare's worker, which was there before the group."""
    attempt = shim["Attempt"](0, str(tmp_path), 1.0)
    attempt.group, attempt.worker = Group({"path": str(tmp_path / "group")}), os.getpid()
    for _ in range(2):
        attempt.take_in()
        assert attempt.deadlines.pop("take_in") > 0, "it is tried again"
    assert capsys.readouterr().err.count("the worker is in no control group, and has no limits yet") == 1
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "cgroup.procs").touch()  # as the kernel has it
    attempt.take_in()
    assert (tmp_path / "group" / "cgroup.procs").read_text() == str(os.getpid())
    assert not attempt.deadlines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_has_ended_by_itself_was_not_asked(
    shim: dict[str, Any], number: int, code: int, tmp_path: Path
) -> None:
    """The signal comes when the worker is a zombie that nobody has reaped yet."""
    attempt = shim["Attempt"](0, str(tmp_path), 1.0)
    attempt.worker = os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {code}"], os.environ)
    os.waitid(os.P_PID, attempt.worker, os.WEXITED | os.WNOWAIT)
    wake, signals = os.pipe()
    os.write(signals, bytes([number, signal.SIGCHLD]))
    attempt.turn(wake, 10.0)
    for fd in (wake, signals):
        os.close(fd)
    (tmp_path / "outcome.json").write_text(json.dumps(attempt.outcome(None, 1.0)))
    ended = read_outcome(AttemptPaths(tmp_path))
    assert isinstance(ended, Ended)
    assert (ended.exit_code, ended.asked) == (code, False)
    assert not attempt.killed


WAITS_FOR_A_GPU = """
import os, runpy, sys
loaded = runpy.run_path(sys.argv[1])
attempt = loaded["Attempt"](0, sys.argv[2], 1.0)
attempt.await_gpu.__globals__["GPU_S"] = 0.5
attempt.worker, attempt.status, attempt.members = 7, 9, {7}
attempt.await_gpu(os.pipe()[0])
loaded["jsonfile"].write_outcome(sys.argv[2], attempt.outcome(None, 1.0))
"""


@pytest.fixture
def occupied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi to which pid 7 has memory of a GPU for ever."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 7\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("occupied")
def test_gpu_memory_that_stays_is_told_with_the_end(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WAITS_FOR_A_GPU, SHIM, tmp_path], check=True)
    ended = ends.read_outcome(AttemptPaths(tmp_path))
    assert isinstance(ended, Ended)
    assert ended.warning == "GPU memory of the attempt is not free 0.5 s after its end"


@pytest.mark.usefixtures("occupied")
def test_gpu_memory_that_stays_after_a_killed_shim_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacancy, "GPU_S", 0.5)
    assert vacancy.had_gpus(AttemptPaths(tmp_path))
    loop, told = Loop(), list[str]()

    def then(warning: str) -> None:
        told.append(warning)
        loop.after(0.2 if warning else 0.0, loop.stop)  # so that who looked is reaped

    try:
        vacancy.await_vacated(Home(tmp_path), loop, [7], then)
        loop.run()
    finally:
        loop.close()
    assert told == ["GPU memory of the attempt is not free 0.5 s after its end"]


@pytest.mark.parametrize(
    ("told", "final"),
    [
        *(({"errno": number}, False) for number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ESTALE)),
        *(({"errno": number}, True) for number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, None)),
        ({}, True),  # as older shims wrote it
    ],
)
def test_what_the_machine_refused_for_a_moment_is_tried_again(
    told: dict[str, Any], final: bool, tmp_path: Path
) -> None:
    paths = AttemptPaths(tmp_path)
    paths.outcome.write_text(json.dumps({"version": 1, "error": "train.sh: no", "asked": None, **told}))
    reason = "cannot start: train.sh: no"
    assert read_outcome(paths) == (
        StartFailed(reason) if final else Ended(exit_code=EXIT_RETRY, reason=reason)
    )


#: Whatever is opened: nothing can be written to it.
ON_A_FULL_DISK = 'exec 3>"$2/lock"; ulimit -S -f 0; exec "$0" -I -S "$1" "$2"'


def test_there_is_no_worker_of_which_the_disk_takes_no_word(tmp_path: Path) -> None:
    """Where everybody else was killed then, the attempt would be taken for never started."""
    about = {"grace_s": 1.0, "env": {}, "argv": ["mkdir", "ran"], "cwd": str(tmp_path)}
    (tmp_path / "launch.json").write_text(json.dumps(about))
    shim = subprocess.Popen(["sh", "-c", ON_A_FULL_DISK, sys.executable, SHIM, tmp_path])
    try:
        wait_for(lambda: list(tmp_path.glob("outcome.json*")), "the end that cannot be written either")
        resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
        assert shim.wait(30) == 0
    finally:
        shim.kill()
    assert not (tmp_path / "ran").exists()
    reason = f"cannot start: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}"
    assert read_outcome(AttemptPaths(tmp_path)) == Ended(exit_code=EXIT_RETRY, reason=reason)


def vmstat(path: Path, kills: int) -> str:
    path.write_text(f"nr_free_pages 7\noom_kill {kills}\n")
    return str(path)


def test_only_what_the_kernel_kills_for_memory_of_late_counts(tmp_path: Path) -> None:
    path = tmp_path / "vmstat"
    kills = OomKills(vmstat(path, 3))
    kills.look(0.0)
    assert not kills.any_lately(), "what was before the attempt"
    vmstat(path, 4)
    assert kills.any_lately(), "at once"
    kills.look(1.0)
    kills.look(OomKills.LOOK_S)
    assert kills.any_lately(), "its end may take a while"
    kills.look(2 * OomKills.LOOK_S)
    assert not kills.any_lately(), "it was another's, who has ended long ago"


@pytest.mark.parametrize(
    ("program", "elsewhere", "told"),
    [
        ("kill -9 $$", True, True),
        ("sh -c 'kill -9 $$'; exit $?", True, True),  # 137, as a shell has it
        ("exit 1", True, False),
        ("kill -9 $$", False, False),
        ("sh -c 'kill -9 $$'; exit $?", False, False),
    ],
)
def test_a_worker_that_is_killed_while_the_kernel_kills_for_memory_has_run_out_of_it(
    shim: dict[str, Any], program: str, elsewhere: bool, told: bool, tmp_path: Path
) -> None:
    attempt = shim["Attempt"](0, str(tmp_path), 1.0)
    attempt.oom_kills = OomKills(vmstat(tmp_path / "vmstat", 3))
    attempt.worker = os.posix_spawn("/bin/sh", ["sh", "-c", program], os.environ)
    os.waitid(os.P_PID, attempt.worker, os.WEXITED | os.WNOWAIT)
    vmstat(tmp_path / "vmstat", 3 + elsewhere)
    attempt.reap()
    vmstat(tmp_path / "vmstat", 5)  # later, of another
    outcome = attempt.outcome(None, 1.0)
    assert outcome["kernel_oom"] is told
    paths = AttemptPaths(tmp_path)
    paths.outcome.write_text(json.dumps(outcome))
    peak = outcome["rusage"]["max_rss_bytes"] >> 20
    said = f"the kernel killed it for memory; its peak was {peak} MiB"
    assert starved(paths) == (said if told else None)
