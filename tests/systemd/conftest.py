"""The shipped service, installed by its own installer into a private systemd (see `systemd-lab`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.core.job import ACTIVE, SETTLED, Job, State
from runner.storage import records, requests
from runner.storage.layout import Home
from tests.waiting import wait_for

#: Now and then unshare(1) fails by itself ("sigprocmask unblock failed").
BOOTS = 3
HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
UNIT = "training-runner.service"
USER = "training-runner"
PYTHON = "/opt/training-runner/current/bin/python"
HOME = "/var/lib/training-runner"
#: Where the lab shows the packages that this test suite itself runs with, and its interpreter where need be.
SITE, BASE = "/opt/site", "/opt/python"
#: What an installation leaves in /etc.
INSTALLED = "passwd group shadow gshadow systemd/system"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.systemd)


class Lab:
    """A private systemd; home, programs, /srv/jobs and what was installed in /etc last from boot to boot."""

    def __init__(self, disk: Path) -> None:
        self.home = Home(disk / "home")
        self.opt, self.etc, self.jobs = disk / "opt", disk / "etc", disk / "srv"
        binds = {self.home.root: HOME, self.opt: "/opt/training-runner", self.etc: "/srv/etc"}
        binds[self.jobs] = "/srv/jobs"
        for folder in binds:
            folder.mkdir()
        disk.chmod(0o755)
        self.python = os.path.realpath(sys.executable)
        if self.python.startswith(("/root/", "/home/")):  # which the service does not see
            binds[Path(sys.base_prefix)] = BASE
            self.python = self.python.replace(os.path.realpath(sys.base_prefix), BASE)
        binds[Path(sysconfig.get_path("purelib"))] = SITE
        self._binds = " ".join(f"{source}:{target}" for source, target in binds.items())
        self._shell: subprocess.Popen[str] | None = None
        self.pid = 0

    def boot(self) -> None:
        for _ in range(BOOTS):
            self._shell = subprocess.Popen(
                [HERE / "systemd-lab", "sh", "-c", "echo $LAB_PID; read _"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "LAB_BIND": self._binds},
            )
            assert self._shell.stdout is not None
            self.pid = int(self._shell.stdout.readline() or 0)
            if self.pid:
                break
            self._shell.wait()
        assert self.pid, "the lab did not boot"
        # In place of downloading two gigabytes: the dependencies are those of this suite.
        self.write(
            "/etc/systemd/system.conf.d/lab.conf", f"[Manager]\nDefaultEnvironment=PYTHONPATH={SITE}\n"
        )
        self.write("/etc/ld.so.conf.d/lab.conf", f"{BASE}/lib\n")
        self.run("cp", "-a", "/srv/etc/.", "/etc/")
        self.run("ldconfig")
        self.run("systemctl", "daemon-reexec")

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command inside; raise where it fails."""
        done = self.ask(*command, **options)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def ask(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command inside, and give back how it went."""
        inside = ["nsenter", "-t", str(self.pid), "-a", *command]
        options = {"env": {**os.environ, "PYTHONPATH": SITE}, **options}
        return subprocess.run(inside, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]

    def write(self, path: str, text: str) -> None:
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("tee", path, input=text)

    def install(self, verb: str = "install", **more: str) -> str:
        """Run the shipped installer; what it needs from a package index is at hand in SITE."""
        env = {**os.environ, "PYTHON": self.python, "PYTHONPATH": SITE, "PIP_NO_BUILD_ISOLATION": "0"}
        env |= {"PIP_NO_INDEX": "1", "PIP_ROOT_USER_ACTION": "ignore", **more}
        said = self.run(str(CHECKOUT / "systemd" / "install.sh"), verb, env=env).stdout
        self.run("sh", "-c", f"cd /etc && cp -a --parents {INSTALLED} /srv/etc")
        return said

    def halt(self) -> None:
        """Shut down in order."""
        if self._shell is not None:
            self._shell.communicate(timeout=120)
            self._shell = None

    def cut_power(self) -> None:
        """Everything in the lab ends at once, unasked."""
        os.kill(self.pid, signal.SIGKILL)
        self.halt()


class Service:
    """The installed service, and the jobs of its home."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.home = lab.home

    def show(self, name: str) -> str:
        return self.lab.run("systemctl", "show", "--value", "--property", name, UNIT).stdout.strip()

    def ctl(self, *verb: str) -> None:
        self.lab.run("systemctl", *verb, UNIT)

    @property
    def pid(self) -> int:
        return int(self.show("MainPID"))

    def kill(self, number: str, pid: int) -> None:
        self.lab.run("kill", "-s", number, str(pid))

    def journal(self) -> str:
        """All that was said so far."""
        self.lab.run("journalctl", "--sync")
        return self.lab.run("journalctl", "--no-pager", "--output", "cat", "--unit", UNIT).stdout

    def processes(self) -> list[str]:
        """Whatever the service's user runs: "pid command"."""
        return self.lab.ask("ps", "-u", USER, "-o", "pid=,args=").stdout.splitlines()

    def workers(self) -> list[str]:
        return [line for line in self.processes() if "runner.supervisor" not in line]

    @contextlib.contextmanager
    def settings(self, *lines: str) -> Iterator[None]:
        """Restart with changed settings, and back."""
        path = f"/etc/systemd/system/{UNIT}.d/test.conf"
        self.lab.write(path, "\n".join(["[Service]", *lines, ""]))
        self.lab.run("systemctl", "daemon-reload")
        self.ctl("restart")
        try:
            yield
        finally:
            self.lab.run("rm", path)
            self.lab.run("systemctl", "daemon-reload")
            self.ctl("restart")

    def submit(self, name: str, *, toml: str = "", cpus: float = 0.1) -> None:
        """Put a counting job in place in one step."""
        staged = self.home.jobs / f".{name}.tmp"
        staged.mkdir()
        shutil.copy(HERE / "steps.py", staged)
        command = json.dumps([PYTHON, "steps.py", "1000000"])
        (staged / "job.toml").write_text(f"command = {command}\n{toml}\n[resources]\ncpus = {cpus}\n")
        (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
        owner = self.home.state.stat()
        for path in (staged, *staged.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
        staged.rename(self.home.folder(name))

    def job(self, name: str) -> Job | None:
        with contextlib.suppress(FileNotFoundError):
            return records.load_job(self.home.job(name).record)
        return None

    def wait(self, name: str, *states: State, timeout_s: float = 90.0) -> Job:
        def reached() -> Job | None:
            job = self.job(name)
            return job if job and job.state in states else None

        return wait_for(reached, f"{name} to be {' or '.join(states)}", timeout_s)

    def beats(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.home.folder(name) / "beats").stat().st_size
        return 0

    def wait_beats(self, name: str, more: int = 30) -> None:
        """Wait until the worker has made that many more steps."""
        goal = self.beats(name) + more
        wait_for(lambda: self.beats(name) >= goal, f"{name} to make {more} more steps")

    def starts(self, name: str) -> list[list[int]]:
        """(attempt, pid, count) of each start."""
        text = (self.home.folder(name) / "starts").read_text()
        return [[int(field) for field in line.split()] for line in text.splitlines()]

    def worker(self, name: str) -> int:
        """The pid of the running worker."""
        self.wait_beats(name)
        return self.starts(name)[-1][1]

    def clear(self) -> None:
        """End all jobs."""
        for name in self.home.recorded():
            job = self.job(name)
            if job and job.state not in SETTLED:
                requests.submit_request(self.home, "cancel", name)
        for name in self.home.recorded():
            self.wait(name, *SETTLED)
        assert not any(job and job.state in ACTIVE for job in map(self.job, self.home.recorded()))


def _require() -> None:
    missing = [name for name in ("systemctl", "dbus-daemon", "nsenter", "ps") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or not Path("/lib/systemd/systemd").exists():
        pytest.fail(
            "these tests boot a private systemd: they need root and Debian's packages systemd, dbus, "
            f"util-linux and procps (missing here: {', '.join(missing) or 'root'}); "
            'deselect them with -m "not systemd"',
            pytrace=False,
        )


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    _require()
    lab = Lab(tmp_path_factory.mktemp("disk"))
    try:
        lab.boot()
        lab.install()
        yield lab
    finally:
        lab.halt()


@pytest.fixture
def service(lab: Lab) -> Iterator[Service]:
    """The running service, without jobs."""
    service = Service(lab)
    service.ctl("start")
    try:
        yield service
    finally:
        service.ctl("start")
        service.clear()
