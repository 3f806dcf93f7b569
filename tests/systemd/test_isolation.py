"""Under the real unit each attempt has a control group of its own: limits bite, and other jobs go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runner.core.job import Job, Outcome, State
from runner.storage import eventlog
from tests.systemd.conftest import PYTHON, UNIT, Service
from tests.waiting import wait_for

CGROUP = Path("/sys/fs/cgroup/system.slice", UNIT)
#: Once is enough.
ONCE = "[restart]\nbudget = 0\n"


def groups(service: Service) -> list[str]:
    """The groups below the unit's, the digests of the home cut off; none where one goes just now."""
    done = service.lab.ask("find", str(CGROUP), "-mindepth", "1", "-type", "d", "-printf", "%f\n")
    found = done.stdout.split() if done.returncode == 0 else []
    return sorted(name.rpartition("-")[0] or name for name in found)


def read(service: Service, group: str, name: str) -> str:
    """A file of an attempt's group; "" where it has none."""
    return service.lab.ask("sh", "-c", f"cat {CGROUP}/{group}-*/{name}").stdout.strip()


def needs_limits(service: Service) -> None:
    if "memory" not in service.lab.run("cat", f"{CGROUP}/cgroup.controllers").stdout:
        pytest.skip(
            "needs the memory controller of cgroup v2 (this machine has it in version 1, or not at all)"
        )


def run(service: Service, name: str, script: str, toml: str) -> Job:
    """Let a script of Python run as a job, to its end."""
    source = service.home.jobs / f".{name}.tmp"
    source.mkdir()
    (source / "job.toml").write_text(f"command = {json.dumps([PYTHON, '-c', script])}\n{toml}{ONCE}")
    (source / ".submitted.json").write_text('{"version": 1, "source": null}')
    for path in (source, *source.iterdir()):
        shutil.chown(path, service.home.state.stat().st_uid, service.home.state.stat().st_gid)
    source.rename(service.home.folder(name))
    return service.wait(name, State.SUCCEEDED, State.FAILED, timeout_s=60)


def test_each_attempt_has_its_group_and_it_goes_with_it(service: Service) -> None:
    service.submit("grouped")
    pid = service.worker("grouped")
    assert f"/system.slice/{UNIT}/grouped.0001-" in service.lab.run("cat", f"/proc/{pid}/cgroup").stdout
    assert f"/system.slice/{UNIT}/daemon" in service.lab.run("cat", f"/proc/{service.pid}/cgroup").stdout
    wait_for(lambda: "grouped.0001" in groups(service), "the group to be seen")
    service.clear()
    wait_for(lambda: groups(service) == ["daemon"], "the group to be removed")


def test_a_daemon_of_a_job_ends_with_it(service: Service) -> None:
    script = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.execve('/bin/sleep', ['innocent', '606'], {})\n    os._exit(0)\ntime.sleep(1)\n"
    )
    assert run(service, "ghost", script, "").state is State.SUCCEEDED
    assert not [line for line in service.processes() if "606" in line.split()[1:]]
    outcome = json.loads(service.home.job("ghost").attempt(1).outcome.read_text())
    assert outcome["strays_killed"] == 1


def test_a_job_over_its_memory_ends_alone(service: Service) -> None:
    needs_limits(service)
    service.submit("beside")
    pid = service.worker("beside")
    eat = "x = [bytearray(4 << 20) for _ in range(100)]"
    job = run(service, "eater", eat, '[limits]\nmemory = "64MiB"\n')
    assert job.current is not None
    assert job.current.outcome is Outcome.OUT_OF_MEMORY
    outcome = json.loads(service.home.job("eater").attempt(1).outcome.read_text())
    assert 60 << 20 <= outcome["memory_peak_bytes"] <= 64 << 20
    events = [event for event in eventlog.read(service.home.job("eater").events) if isinstance(event, dict)]
    told = next(event["reason"] for event in events if event["event"] == "out-of-memory")
    assert "limits.memory = 64 MiB" in told
    assert "its peak was 6" in told
    service.wait_beats("beside")
    assert [start[1] for start in service.starts("beside")] == [pid]


def test_a_fork_bomb_stops_at_its_limit_and_ends_with_its_job(service: Service) -> None:
    needs_limits(service)
    service.submit("beside")
    pid = service.worker("beside")
    bomb = (
        "import os, signal, sys, time\nmade = 0\n"
        "try:\n    while True:\n        if os.fork() == 0:\n            signal.pause()\n        made += 1\n"
        "except BlockingIOError:\n    sys.exit(0 if made == 39 else f'{made} were made')\n"
    )
    assert run(service, "bomb", bomb, "[limits]\npids = 40\n").state is State.SUCCEEDED
    outcome = json.loads(service.home.job("bomb").attempt(1).outcome.read_text())
    assert outcome["strays_killed"] == 39
    service.wait_beats("beside")
    assert [start[1] for start in service.starts("beside")] == [pid]


def test_limits_hold_again_when_the_next_daemon_has_come(service: Service) -> None:
    """systemd starts it in the unit's own group, where the kernel wants nobody while limits are handed on."""
    needs_limits(service)
    service.submit("survivor", toml='[limits]\nmemory = "512MiB"\n')
    pid, daemon = service.worker("survivor"), service.pid
    assert int(read(service, "survivor.0001", "memory.max")) == 512 << 20
    service.kill("KILL", daemon)
    wait_for(
        lambda: service.show("ActiveState") == "active" and service.pid not in {0, daemon}, "a new daemon", 60
    )
    wait_for(lambda: read(service, "survivor.0001", "memory.max") == str(512 << 20), "the limit", 60)
    service.wait_beats("survivor")
    assert [start[1] for start in service.starts("survivor")] == [pid]
