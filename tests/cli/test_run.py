"""`runner run`: one job in the foreground, with a supervisor of its own or as a client of the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from runner.storage import records
from runner.supervisor import process
from tests.waiting import wait_for


def supervisors(runner, name):
    """Pids of the supervisors of this one job."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if (
            b"runner.supervisor" in words
            and os.fsencode(runner.home.root) in words
            and name.encode() in words
        ):
            found.append(int(entry.name))
    return found


def test_one_command_is_enough(runner):
    answer = runner("run", str(runner.folder("digits")))
    assert answer.code == 0, answer.err
    assert "attempt 1 starts" in answer.out
    assert "digits: succeeded after 30 steps and 0 restarts" in answer.out
    wait_for(lambda: not supervisors(runner, "digits"), "the supervisor to end")
    again = runner("run", str(runner.root / "digits"))
    assert again.code == 0
    assert "has succeeded already" in again.out


def test_a_failure_shows_the_end_of_the_log(runner):
    folder = runner.folder("odd", command=["sh", "-c", "echo no data; exit 78"])
    answer = runner("run", str(folder))
    assert answer.code == 78
    assert "  | no data\n" in answer.out
    assert answer.complaint().startswith("odd: failed: exit code 78")


def test_an_interrupt_holds_the_job_and_the_same_command_resumes_it(runner):
    go = runner.root / "go"
    folder = str(runner.folder("digits", "300", "0.01", "--hold-at", "100", str(go)))
    first = runner.start("run", folder)
    wait_for(lambda: runner.step("digits") > 20, "some steps")
    first.send_signal(signal.SIGINT)
    out = first.communicate(timeout=120)[0].decode()
    assert first.returncode == 130
    assert "to resume: runner run" in out
    held = runner.until("digits", "paused")
    wait_for(lambda: not supervisors(runner, "digits"), "the supervisor to end")
    go.touch()
    answer = runner("run", folder)
    assert answer.code == 0
    assert f"resumed from step {held['checkpoint']['step']} (epoch 1)" in answer.out
    assert "digits: succeeded after 300 steps" in answer.out


def test_a_dead_supervisor_is_replaced_and_the_worker_trains_on(runner):
    go = runner.root / "go"
    started = runner.start("run", str(runner.folder("digits", "300", "0.01", "--hold-at", "100", str(go))))
    wait_for(lambda: runner.step("digits") > 5, "some steps")
    worker = runner.pid("digits")
    (pid,) = supervisors(runner, "digits")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: runner.told("digits", "adopted"), "a new supervisor to take over")
    go.touch()
    out = started.communicate(timeout=120)[0].decode()
    assert started.returncode == 0, out
    assert "a new supervisor took over attempt 1" in out
    assert "0 restarts" in out
    assert process.identify(worker) is None


def test_killed_itself_it_leaves_nothing_running(runner):
    started = runner.start("run", str(runner.folder("digits", "100000", "0.01")))
    wait_for(lambda: runner.step("digits") > 5, "some steps")
    worker = process.identify(runner.pid("digits"))
    started.kill()
    wait_for(lambda: not supervisors(runner, "digits"), "the supervisor to end")
    assert worker is not None
    assert not process.is_alive(worker)
    assert runner.job("digits")["checkpoint"]["step"] > 0


def test_with_a_daemon_it_is_a_client(served):
    started = served.start("run", str(served.folder("digits", "200", "0.01")))
    wait_for(lambda: served.step("digits") > 5, "some steps")
    assert supervisors(served, "digits") == []
    assert records.load_json(served.home.supervisor)["only"] is None
    assert started.wait(120) == 0


def test_a_job_in_place(runner):
    staged = runner.folder("digits")
    staged.rename(runner.home.folder("digits"))
    answer = runner("run", str(runner.home.folder("digits")))
    assert answer.code == 0
    assert list(runner.home.submitted()) == ["digits"]


def test_other_content_under_a_known_name_is_refused(runner):
    folder = runner.folder("digits")
    assert runner("run", str(folder)).code == 0
    (folder / "counter.py").write_text("print('something else')\n")
    answer = runner("run", str(folder))
    assert answer.code == 5
    assert "from other content; choose another with --name" in answer.complaint()
    assert runner("run", str(folder), "--name", "next").code == 0


def test_a_failed_job_is_tried_again(runner):
    script = "test -e $RUNNER_HOME/ready || exit 78"
    folder = str(runner.folder("odd", command=["sh", "-c", script]))
    assert runner("run", folder).code == 78
    (runner.home.root / "ready").write_text("")
    assert runner("run", folder).code == 0


def test_bad_folders(runner, tmp_path):
    assert runner("run", "nowhere").code == 2
    (tmp_path / "empty").mkdir()
    answer = runner("run", str(tmp_path / "empty"))
    assert answer.code == 1
    assert answer.complaint() == (
        "empty: there is no train.py, and no job.toml that names an entry or a command"
    )
