"""From the installation through upgrades, power cuts and reboots to the removal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.core.job import Outcome, State
from runner.storage import eventlog
from runner.storage.layout import Home
from tests.systemd.conftest import CHECKOUT, HOME, PYTHON, UNIT, USER, Lab, Service
from tests.waiting import wait_for

DIGITS = CHECKOUT / "jobs" / "digits"


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Iterator[Lab]:
    """A lab whose disk may be ruined; it has what the shared one installed."""
    other = Lab(tmp_path_factory.mktemp("own"))
    for source, target in ((lab.opt, other.opt), (lab.etc, other.etc)):
        subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
    shutil.copystat(lab.home.root, other.home.root)
    other.boot()
    try:
        yield other
    finally:
        other.halt()


def test_boot_again_after_a_power_cut_and_after_a_shutdown(own: Lab) -> None:
    service = Service(own)
    service.ctl("start")
    for name in ("first", "second"):
        service.submit(name, cpus=0.6 * float(service.lab.run("nproc").stdout))
    service.wait_beats("first")
    service.wait("second", State.QUEUED)

    own.cut_power()
    beats = service.beats("first")
    own.boot()
    service.ctl("start")
    service.wait_beats("first")
    job = service.wait("first", State.RUNNING)
    assert (job.attempt, job.attempts[0].outcome) == (2, Outcome.ABANDONED)
    assert beats - 10 <= service.starts("first")[-1][2] <= beats  # it saved every ten steps
    assert service.job("second").state is State.QUEUED  # type: ignore[union-attr]

    own.halt()
    job = service.wait("first", State.QUEUED)
    assert job.attempts[-1].outcome is Outcome.PREEMPTED
    saved = int((service.home.folder("first") / "count").read_text())
    own.boot()
    service.ctl("start")
    service.wait_beats("first")
    assert service.starts("first")[-1][::2] == [3, saved]


def test_an_upgrade_disturbs_no_worker_and_a_broken_one_nothing(service: Service, lab: Lab) -> None:
    service.submit("upgraded")
    pid, daemon = service.worker("upgraded"), service.pid
    old = _current(lab)
    said = lab.install()
    assert "went on undisturbed" in said
    service.wait_beats("upgraded")
    assert [start[1] for start in service.starts("upgraded")] == [pid]
    assert service.pid == daemon
    new = _current(lab)
    assert new > old
    # The release that the shim runs from stays until nothing does.
    assert lab.ask("test", "-d", old).returncode == 0

    service.clear()
    with pytest.raises(AssertionError, match="what was installed before is untouched"):
        lab.install(PIP_CONSTRAINT="/nowhere")
    assert (_current(lab), service.pid) == (new, daemon)
    assert lab.run("ls", str(Path(new).parent)).stdout.split() == [Path(new).name]


def _current(lab: Lab) -> str:
    return lab.run("readlink", "/opt/training-runner/current").stdout.strip()


def test_members_of_the_group_submit_and_others_do_not(service: Service, lab: Lab) -> None:
    lab.ask("useradd", "--groups", USER, "alice")
    lab.ask("useradd", "mallory")
    folder = lab.jobs / "hers"
    folder.mkdir()
    (folder / "job.toml").write_text(f"command = {json.dumps(['sh', '-c', 'id -un > who; cat data'])}\n")
    (folder / "data").write_text("data\n")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o640)
        shutil.chown(path, int(lab.run("id", "-u", "alice").stdout))
    words = ("env", f"RUNNER_HOME={HOME}", "setpriv", "--init-groups")

    def runner(user: str, *verb: str) -> int:
        done = lab.ask(*words, "--regid", user, "--reuid", user, "runner", *verb)
        sys.stdout.write(f"{user}: {verb}: {done.returncode} {done.stdout}{done.stderr}\n")
        return done.returncode

    assert runner("alice", "submit", "/srv/jobs/hers") == 0
    service.wait("hers", State.SUCCEEDED)
    assert (service.home.folder("hers") / "who").read_text() == f"{USER}\n"
    assert runner("alice", "status", "hers") == 0
    assert runner("mallory", "submit", "/srv/jobs/hers", "--name", "his") != 0
    assert runner("mallory", "status", "hers") != 0
    assert runner("alice", "rm", "hers") == 0
    wait_for(lambda: not service.home.folder("hers").exists(), "the job to be removed")
    # Root may, too, and the job is the service's all the same.
    assert lab.ask("runner", "submit", "--home", HOME, "/srv/jobs/hers").returncode == 0
    service.wait("hers", State.SUCCEEDED)


def test_a_keras_job_checkpoints_within_its_grace(service: Service, lab: Lab) -> None:
    shutil.copytree(DIGITS, lab.jobs / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    lab.run("runner", "submit", "--home", HOME, "/srv/jobs/digits")
    wait_for(lambda: _step(service.home, "digits") > 0, "the first steps", 200)
    service.ctl("stop")
    assert service.processes() == []
    job = service.job("digits")
    assert job is not None
    assert job.current is not None
    assert (job.state, job.current.outcome, job.current.exit_code) == (State.QUEUED, Outcome.PREEMPTED, 75)
    assert job.durable_step >= _step(service.home, "digits")
    service.ctl("start")
    resumed = wait_for(lambda: _resumed(service.home, "digits"), "the job to resume", 200)
    assert (resumed["step"], resumed["exact"]) == (job.durable_step, True)


def _resumed(home: Home, name: str) -> dict[str, Any] | None:
    events = eventlog.read(home.job(name).events)
    return next((e for e in events if isinstance(e, dict) and e["event"] == "resumed"), None)


def _step(home: Home, name: str) -> int:
    try:
        return int(json.loads(home.job(name).progress.read_text()).get("step") or 0)
    except FileNotFoundError:
        return 0


def test_removal_leaves_the_jobs(own: Lab) -> None:
    service = Service(own)
    service.ctl("start")
    service.submit("left")
    service.worker("left")
    said = own.install("uninstall")
    assert f"left in {HOME}" in said
    assert service.processes() == []
    assert own.ask("systemctl", "cat", UNIT).returncode != 0
    assert own.ask("test", "-e", PYTHON).returncode != 0
    assert service.job("left").state is State.QUEUED  # type: ignore[union-attr]
