"""The life of the service: what systemd, signals and crashes do to the daemon, and not to its workers."""

from __future__ import annotations

import contextlib
import re
import sys
import time

import pytest

from runner.core.job import Outcome, State
from runner.storage import requests
from tests.systemd.conftest import HOME, PYTHON, UNIT, USER, Lab, Service
from tests.waiting import wait_for

#: What `systemd-analyze security` may say at most. It stands at 2.0, of which the network is 1.2 (data sets,
#: distributed training) and the devices 0.4 (GPUs); a setting that is lost shows as more.
EXPOSURE_MAX = 2.0


def test_the_unit_is_clean(lab: Lab) -> None:
    done = lab.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}")
    assert done.stderr == ""
    assert done.stdout == ""


def test_exposure(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    text = lab.run("systemd-analyze", "--no-pager", "security", UNIT).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert found is not None
    with capsys.disabled():
        sys.stdout.write(f"\nsystemd-analyze security: exposure {found[1]} ")
    assert float(found[1]) <= EXPOSURE_MAX, text


def test_it_starts_as_its_own_user_and_is_enabled(lab: Lab, service: Service) -> None:
    assert service.show("ActiveState") == "active"  # Type=notify: it has said READY=1
    assert lab.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    owner = lab.run("ps", "-o", "user:20=,nlwp=", "-p", str(service.pid)).stdout.split()
    assert owner[0] == USER
    wait_for(lambda: "no jobs" in service.show("StatusText"), "the status line")
    assert service.home.state.stat().st_uid == service.home.jobs.stat().st_uid != 0


def test_who_stands_back_may_return(service: Service) -> None:
    """To a niceness of 0, which is 20 as RLIMIT_NICE counts: see `may_return`."""
    assert [service.show(name) for name in ("LimitNICE", "LimitNICESoft")] == ["20", "20"]


def test_a_killed_worker_resumes(service: Service) -> None:
    service.submit("killed")
    pid = service.worker("killed")
    service.kill("KILL", pid)
    wait_for(lambda: len(service.starts("killed")) == 2, "a second attempt")
    attempt, other, count = service.starts("killed")[-1]
    assert (attempt, other != pid) == (2, True)
    assert count > 0
    service.wait_beats("killed")


def test_workers_outlive_a_killed_daemon(service: Service) -> None:
    service.submit("survivor")
    pid, daemon = service.worker("survivor"), service.pid
    service.kill("KILL", daemon)
    service.wait_beats("survivor", 20)  # while no daemon runs, or the next one starts
    wait_for(
        lambda: service.show("ActiveState") == "active" and service.pid not in {0, daemon}, "a new daemon"
    )
    service.wait_beats("survivor", 50)  # it uses /tmp all the time
    assert [start[1] for start in service.starts("survivor")] == [pid]
    # It is re-adopted: what is asked of it now is done.
    requests.submit_request(service.home, "stop", "survivor")
    job = service.wait("survivor", State.CANCELLED)
    assert job.current is not None
    assert (job.attempt, job.current.outcome, job.current.exit_code) == (1, Outcome.STOPPED, 75)


@pytest.mark.parametrize("how", ["STOP", "loop"])
def test_the_watchdog_ends_a_hung_daemon(service: Service, how: str) -> None:
    """A daemon that is stopped, and one that lives but whose loop does not turn."""
    with service.settings("WatchdogSec=10s", *(["ExecStart=", HUNG] if how == "loop" else [])):
        service.submit(f"hung-{how.lower()}")
        pid, daemon = service.worker(f"hung-{how.lower()}"), service.pid
        pinged = service.show("WatchdogTimestampMonotonic")
        wait_for(lambda: service.show("WatchdogTimestampMonotonic") != pinged, "a ping")
        assert service.pid == daemon
        said = [service.journal().count(words) for words in ABORTED]
        service.kill("STOP" if how == "STOP" else "USR2", daemon)
        wait_for(lambda: service.pid not in {0, daemon}, "the watchdog to act")
        service.wait_beats(f"hung-{how.lower()}")
        assert [start[1] for start in service.starts(f"hung-{how.lower()}")] == [pid]
        assert [service.journal().count(words) for words in ABORTED] == [count + 1 for count in said]


#: What the journal says of a hung daemon; the second of these begins its stacks.
ABORTED = "Watchdog timeout", "Fatal Python error: Aborted"
#: The daemon, whose loop can be made to hang by SIGUSR2.
HUNG = (
    f"ExecStart={PYTHON} -P -c 'import signal, sys, time; from runner.supervisor.__main__ import main; "
    'signal.signal(signal.SIGUSR2, lambda *_: time.sleep(1e6)); sys.exit(main(["--home", "' + HOME + "\"]))'"
)


def test_a_reload_starts_the_daemon_anew_in_place(service: Service) -> None:
    service.submit("reloaded")
    pid, daemon = service.worker("reloaded"), service.pid
    before = service.journal().count("supervising ")
    service.ctl("reload")
    wait_for(lambda: service.journal().count("supervising ") == before + 1, "the new daemon to be ready")
    assert service.pid == daemon
    service.wait_beats("reloaded")
    assert [start[1] for start in service.starts("reloaded")] == [pid]


def test_a_stop_in_the_midst_of_a_reload_is_not_lost(service: Service) -> None:
    service.submit("both")
    service.worker("both")
    before = _stamp(service)
    service.kill("HUP", service.pid)
    # It is about to execute itself, or has: nothing in it handles a signal now.
    wait_for(lambda: _stamp(service) != before, "the old daemon to end")
    service.ctl("stop")
    assert service.processes() == []
    job = service.job("both")
    assert job is not None
    assert (job.state, job.current and job.current.outcome) == (State.QUEUED, Outcome.PREEMPTED)


def _stamp(service: Service) -> tuple[int, int] | None:
    """Tell one daemon's file from the next one's; None between the two."""
    with contextlib.suppress(FileNotFoundError):
        found = service.home.supervisor.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def test_a_stop_lets_workers_save_and_leaves_nothing_behind(service: Service) -> None:
    service.submit("drained")
    service.worker("drained")
    service.ctl("stop")
    assert service.show("Result") == "success"
    assert service.processes() == []
    job = service.job("drained")
    assert job is not None
    assert job.current is not None
    assert (job.state, job.current.outcome, job.current.exit_code) == (State.QUEUED, Outcome.PREEMPTED, 75)
    saved = int((service.home.folder("drained") / "count").read_text())
    assert saved == service.beats("drained")
    service.ctl("start")
    wait_for(lambda: len(service.starts("drained")) == 2, "the job to go on")
    assert service.starts("drained")[1][2] == saved


def test_a_grace_beyond_the_units_limit_is_waited_for(service: Service) -> None:
    with service.settings("TimeoutStopSec=8s"):  # which holds until the daemon has taken the signal in
        service.submit("slow", toml='[limits]\ngrace = "40s"\n[env]\nSTOP_TAKES_S = "12"\n')
        service.worker("slow")
        asked = time.monotonic()
        service.ctl("stop")
        assert time.monotonic() - asked > 12
        assert service.show("Result") == "success"
        attempt = service.job("slow").attempts[0]  # type: ignore[union-attr]
        assert attempt.outcome is Outcome.PREEMPTED


def test_workers_of_a_daemon_that_does_not_answer_a_stop_are_stopped_too(service: Service) -> None:
    with service.settings("TimeoutStopSec=5s", "ExecStart=", HUNG):
        service.submit("orphaned")
        service.worker("orphaned")
        service.kill("USR2", service.pid)
        service.ctl("stop")
        assert service.show("Result") == "timeout"
        assert service.processes() == []
        assert int((service.home.folder("orphaned") / "count").read_text()) == service.beats("orphaned")
        assert "1 workers were asked to stop" in service.journal()
    wait_for(lambda: len(service.starts("orphaned")) == 2, "the next daemon to start it again")
    job = service.wait("orphaned", State.RUNNING)
    assert job.attempts[0].outcome is Outcome.PREEMPTED
