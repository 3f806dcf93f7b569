"""What a job cannot do: outlive its attempt, fill the disk, show its secrets, write another's state."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.cli import staging
from runner.core.job import Job, Outcome, State
from runner.core.spec import CheckpointSpec, IsolationSpec, JobSpec
from runner.errors import BadJobError
from runner.storage.layout import Home
from runner.supervisor import allotment, cgroups, confining, landlock, launch
from runner.supervisor.attemptgroup import Group
from tests.system.conftest import Site
from tests.waiting import wait_for

MIB = 1 << 20
ONCE = "[restart]\nbudget = 0\n"


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cgroup that the daemons of the test may divide."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    root = found[0] / f"runner-test-{os.getpid()}" if found else None
    try:
        assert root is not None
        root.mkdir()
    except (AssertionError, OSError):
        pytest.skip("needs a cgroup v2 tree that may be written (root)")
    monkeypatch.setenv(cgroups.VARIABLE, str(root))
    yield root
    for path in root.iterdir():
        if path.is_dir():
            Group({"path": str(path)}).kill()
    left = Group({"path": str(root)})
    wait_for(left.remove, "the test's cgroup to be empty")


@pytest.fixture(params=["subreaper", "cgroup"])
def how(request: pytest.FixtureRequest) -> str:
    if request.param == "cgroup":
        request.getfixturevalue("group")
    return str(request.param)


#: A daemon as in the books: a session of its own, forked twice, another name, nothing of its environment.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", ["innocent", "-c", "echo $$ > daemon.new; mv daemon.new daemon; sleep 600"], {})
    os._exit(0)
while not os.path.exists("daemon"):
    time.sleep(0.01)
AFTER
"""


def daemon_job(after: str) -> list[str]:
    return [sys.executable, "-c", DAEMON.replace("AFTER", after)]


def names(group: Path) -> set[str]:
    """What groups there are below, without the digests of their homes."""
    return {path.name.partition("-")[0] for path in group.iterdir() if path.is_dir()}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_job_that_became_a_daemon_ends_with_its_attempt(site: Site, how: str) -> None:
    site.start()
    site.submit("ghost", command=daemon_job(""))
    site.wait("ghost", State.SUCCEEDED)
    assert is_gone(int((site.home.folder("ghost") / "daemon").read_text()))
    outcome = json.loads(site.home.job("ghost").attempt(1).outcome.read_text())
    assert outcome["strays_killed"] > 0
    assert ("cgroup of its own" in site.log.read_text()) == (how == "cgroup")


def test_what_a_killed_shim_leaves_ends_with_its_group(site: Site, group: Path) -> None:
    site.start()
    site.submit("ghost", command=daemon_job("time.sleep(600)"), toml=ONCE)
    daemon = site.home.folder("ghost") / "daemon"
    wait_for(daemon.exists, "the job's daemon")
    assert names(group) == {"daemon", "ghost.0001"}
    os.kill(site.identity("ghost", "shim").pid, signal.SIGKILL)
    job = site.wait("ghost", State.FAILED)
    assert job.current is not None
    assert job.current.outcome is Outcome.ABANDONED
    assert is_gone(int(daemon.read_text()))
    assert names(group) == {"daemon"}


def test_groups_that_a_dead_daemon_left_are_swept_at_boot_and_the_living_are_not(
    site: Site, group: Path
) -> None:
    first = site.start()
    site.submit("lives", "5000", "0.01")
    wait_for(lambda: site.count("lives") > 0, "the counter")
    first.kill()
    first.wait()
    living = next(path for path in group.iterdir() if path.name.startswith("lives.0001-"))
    orphan = group / living.name.replace("lives.0001", "dead.0003")
    foreign = group / "dead.0003-00000000"
    for path in (orphan, foreign):
        path.mkdir()
    stray = subprocess.Popen(["sleep", "600"])
    (orphan / "cgroup.procs").write_text(str(stray.pid))
    site.start()
    assert stray.wait(60) == -signal.SIGKILL
    wait_for(lambda: "adopted" in site.kinds("lives"), "the daemon to be up")
    assert living.exists()
    assert foreign.exists()  # another home's
    assert len(site.trace("lives")) == 1


@pytest.fixture
def limited(group: Path) -> Path:
    if "memory" not in (group / "cgroup.controllers").read_text().split():
        pytest.skip("needs the memory controller of cgroup v2 here")
    return group


@pytest.mark.usefixtures("limited")
def test_a_job_over_its_memory_is_killed_by_the_kernel_and_its_peak_is_told(site: Site) -> None:
    site.start()
    eat = "x = [bytearray(4 << 20) for _ in range(100)]"
    limits = '[limits]\nmemory = "64MiB"\n'
    site.submit("eater", command=["sh", "-c", f"{sys.executable} -c '{eat}'; exit 3"], toml=limits + ONCE)
    site.submit("beside", "300", "0.01")
    job = site.wait("eater", State.FAILED)
    assert job.current is not None
    assert job.current.outcome is Outcome.OUT_OF_MEMORY
    outcome = json.loads(site.home.job("eater").attempt(1).outcome.read_text())
    assert 60 * MIB <= outcome["memory_peak_bytes"] <= 64 * MIB
    told = next(event for event in site.events("eater") if event["event"] == "out-of-memory")
    assert "limits.memory = 64 MiB" in told["reason"]
    assert "peak was 6" in told["reason"]
    assert site.wait("beside", State.SUCCEEDED).attempt == 1


def test_a_fork_bomb_is_stopped_by_its_limit(site: Site, limited: Path) -> None:
    site.start()
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 1; cat /sys/fs/cgroup/$1/pids.current > most; exit 0"
    command = ["sh", "-c", bomb, "sh", f"{limited.name}/bomb.0001-{cgroups.mark_of(site.home)}"]
    site.submit("bomb", command=command, toml="[limits]\npids = 50\n" + ONCE)
    site.submit("beside", "100", "0.01")
    assert site.wait("bomb", State.SUCCEEDED, State.FAILED).attempt == 1
    assert site.wait("beside", State.SUCCEEDED).attempt == 1
    assert site.living("bomb") == []


# --- the log ------------------------------------------------------------------------------------------------

CHATTER = """
import sys
print("the beginning")
line = "x" * 99 + "\\n"
for _ in range(40):
    sys.stdout.write(line * 10486)
    sys.stdout.flush()
print("the end", flush=True)
"""


def test_a_log_keeps_its_beginning_and_its_end_below_its_cap(site: Site) -> None:
    site.start()
    site.submit("chatter", command=[sys.executable, "-c", CHATTER], toml='[limits]\nlog = "4MiB"\n')
    log = site.home.job("chatter").attempt(1).log
    wait_for(log.exists, "the log")
    logs = [str(Path(sys.executable).with_name("runner")), "logs", "--home", str(site.home.root), "chatter"]
    follower = subprocess.Popen([*logs, "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    site.wait("chatter", State.SUCCEEDED)
    assert log.stat().st_blocks * 512 <= 4 * MIB
    assert log.stat().st_size > 39 * MIB  # nobody's position has changed
    followed, _ = follower.communicate(timeout=30)
    printed = subprocess.run(logs, check=True, capture_output=True).stdout
    for text in (followed, printed):
        assert b"\0" not in text
        assert text.startswith(b"the beginning\n")
        assert text.endswith(b"the end\n")
    assert printed.count(b"MiB of this log were dropped here (limits.log = 4 MiB)") == 1
    assert 2 * MIB < len(printed) <= 4 * MIB


def test_logs_of_many_attempts_take_a_few_caps_together(site: Site) -> None:
    attempts = site.home.job("many").attempts
    for number in range(1, 8):
        (attempts / f"{number:04d}").mkdir(parents=True)
        (attempts / f"{number:04d}" / "log").write_bytes(b"x" * MIB)
    launch.trim_logs(attempts, MIB)
    assert sorted(path.parent.name for path in attempts.glob("*/log")) == ["0004", "0005", "0006", "0007"]
    launch.trim_logs(attempts, None)
    assert len(list(attempts.glob("*/log"))) == 4


# --- secrets ------------------------------------------------------------------------------------------------

SECRET = "hunter2-e5a1"


WHOLE = f"[resources]\ncpus = {allotment.cpus()}\n"


def secret_job(folder: Path, mode: int) -> None:
    folder.mkdir()
    command = ["sh", "-c", 'printf "$TOKEN $PLAIN" > seen']
    (folder / "job.toml").write_text(
        f'command = {json.dumps(command)}\nenv_file = "secrets.env"\n[env]\nPLAIN = "from [env]"\n'
    )
    secrets = folder / "secrets.env"
    secrets.write_text(f"# of the test\nexport TOKEN='{SECRET}'\nPLAIN=from the file\n")
    secrets.chmod(mode)


def test_secrets_reach_the_worker_and_nothing_else(site: Site, tmp_path: Path) -> None:
    secret_job(tmp_path / "source", 0o600)
    staging.submit(site.home, tmp_path / "source", "secret")
    assert (site.home.folder("secret") / "secrets.env").stat().st_mode & 0o777 == 0o600
    site.start()
    site.wait("secret", State.SUCCEEDED)
    assert (site.home.folder("secret") / "seen").read_text() == f"{SECRET} from [env]"
    for path in [site.log, *site.home.state.rglob("*")]:
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_secrets_that_others_may_read_are_refused(site: Site, tmp_path: Path) -> None:
    secret_job(tmp_path / "source", 0o640)
    with pytest.raises(
        BadJobError, match=r"job.toml:2: env_file .*mode 640\); chmod 600 secrets.env"
    ) as told:
        staging.submit(site.home, tmp_path / "source", "secret")
    assert SECRET not in str(told.value)
    # And where they become so while the job waits, its attempt is not started.
    (tmp_path / "source" / "secrets.env").chmod(0o600)
    staging.submit(site.home, tmp_path / "source", "secret")
    site.submit("first", "100000", "0.01", toml=WHOLE)
    with (site.home.folder("secret") / "job.toml").open("a") as out:
        out.write(WHOLE)
    site.start()
    site.wait("secret", State.QUEUED)
    (site.home.folder("secret") / "secrets.env").chmod(0o604)
    site.ask("cancel", "first")
    job = site.wait("secret", State.FAILED)
    assert "others may use it (mode 604); chmod 600 secrets.env" in job.reason


# --- another's files ----------------------------------------------------------------------------------------

WRITER = """
import os, sys, tempfile
def may(path):
    try:
        open(path, "w").close()
        return True
    except PermissionError:
        return False
state, other, out = os.environ["RUNNER_STATE"], sys.argv[1], sys.argv[2]
os.makedirs("sub")
os.rename("sub", os.path.join(state, "moved"))  # across folders
tempfile.NamedTemporaryFile("w").write("x")
paths = ("mine", f"{state}/mine", f"{out}/result", f"{other}/notes", f"{other}/new")
told = [may(path) for path in paths]
open(f"{other}/notes").close()  # reading is free
print(*told, file=open("result", "w"))
"""


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that is not below /tmp or /var/tmp, where everybody may write."""
    folder = Path(tempfile.mkdtemp(prefix=".runner-test-", dir=Path.home()))
    yield folder
    shutil.rmtree(folder)


needs_landlock = pytest.mark.skipif(
    landlock.version(ctypes.CDLL(None)) < landlock.REFER_SINCE, reason="needs Landlock (Linux 5.19)"
)


@needs_landlock
@pytest.mark.parametrize("by", ["job.toml", "daemon", "both", None])
def test_an_isolated_job_writes_only_where_it_may(elsewhere: Path, by: str | None) -> None:
    site = Site(elsewhere / "home")
    other, out = site.home.job("victim").dir, elsewhere / "out"
    for folder in (other, out):
        folder.mkdir()
    (other / "notes").touch()
    toml = f'[isolation]\nwrite = ["{out}"]\n' if by in {"job.toml", "both"} else ""
    site.submit("writer", command=[sys.executable, "-c", WRITER, str(other), str(out)], toml=toml + ONCE)
    for name, folder in (("state", site.home.state), ("all", elsewhere)):
        site.submit(name, command=["true"], toml=f'[isolation]\nwrite = ["{folder}"]\n')
    try:
        site.start(*["--isolate"] * (by in {"daemon", "both"}))
        site.wait("writer", State.SUCCEEDED)
        for name in ("state", "all"):
            ended = site.wait(name, State.SUCCEEDED, State.FAILED)
            assert ("where other jobs have their files" in ended.reason) == (by in {"daemon", "both"})
    finally:
        site.close()
    told = (site.home.folder("writer") / "result").read_text().split()
    assert told == ["True"] * 2 + [str(by != "daemon")] + [str(by is None)] * 2


LAUNCHER = Path(landlock.__file__).parent
#: A shim's beginning.
KEEPER = """
import ctypes, json, os, sys
sys.path.insert(0, ".")
import shim
plan = json.loads(sys.argv[1])
keeper, _ = shim.birth.start_keeper(plan, plan["cwd"], ctypes.CDLL(None, use_errno=True))
os.waitpid(keeper, 0)
"""


@needs_landlock
@pytest.mark.parametrize("write", [None, []])
def test_a_keeper_writes_only_where_its_job_may(elsewhere: Path, write: list[str] | None) -> None:
    """It does what a worker asks, and has what [env] says."""
    own, victim = elsewhere / "own", elsewhere / "victim"
    own.mkdir()
    program = ["sh", "-c", "echo x > $0/result; echo x > $1; echo over > $0/over", str(own), str(victim)]
    plan = {"keeper": program, "write": write, "state": str(own), "cwd": str(own), "env": {}}
    subprocess.run([sys.executable, "-c", KEEPER, json.dumps(plan)], check=True, cwd=LAUNCHER)
    assert (own / "result").exists()
    assert (own / "over").exists()
    assert victim.exists() == (write is None)


@needs_landlock
def test_who_was_started_before_the_daemon_isolated_its_jobs_is_named(elsewhere: Path) -> None:
    site = Site(elsewhere / "home")
    site.submit("free", "100000", "0.01")
    try:
        first = site.start()
        wait_for(lambda: site.count("free") > 0, "the counter")
        first.kill()
        first.wait()
        site.start("--isolate")
        said = "free: attempt 1 was started without --isolate: until it ends it can write what its user can"
        wait_for(lambda: said in site.log.read_text(), "the daemon to say so")
    finally:
        site.close()


@needs_landlock
@pytest.mark.parametrize("link", ["state", "jobs"])
def test_a_home_that_leads_where_any_job_may_write_cannot_be_isolated(
    elsewhere: Path, tmp_path: Path, link: str
) -> None:
    (elsewhere / "home").mkdir()
    (tmp_path / link).mkdir()
    (elsewhere / "home" / link).symlink_to(tmp_path / link)
    site = Site(elsewhere / "home")
    try:
        assert site.start("--isolate").wait(timeout=30) == 2
        assert f"--isolate protects nothing in {site.home.root / link}" in site.log.read_text()
    finally:
        site.close()


@needs_landlock
def test_where_an_isolated_job_cannot_write_nor_have_its_mirror(elsewhere: Path, tmp_path: Path) -> None:
    """Neither where other jobs have their files, nor where a job could lead it there by a link."""
    home, own = Home(elsewhere / "home"), elsewhere / "own"
    (elsewhere / "state").mkdir()
    (elsewhere / "home").mkdir()
    home.state.symlink_to(elsewhere / "state")

    def refused(write: Path, mirror: Path) -> bool:
        url = f"file://{mirror}"
        spec = JobSpec(isolation=IsolationSpec((str(write),)), checkpoint=CheckpointSpec(mirror=url))
        try:
            confining.confined(home, Job("a", State.QUEUED, "", 0, spec))
        except OSError:
            return True
        return False

    assert not refused(own, elsewhere / "mirror")
    assert not refused(own, home.root / "mirror")
    assert refused(elsewhere / "state", elsewhere / "mirror")
    for mirror in (tmp_path, own / "sub", home.root, home.folder("a"), elsewhere / "state" / "other"):
        assert refused(own, mirror), mirror


@needs_landlock
def test_links_in_a_circle_where_a_job_may_write_end_no_daemon(elsewhere: Path, tmp_path: Path) -> None:
    site, circle = Site(elsewhere / "home"), tmp_path / "circle"
    circle.mkdir()
    turns = (
        f"import os\nos.rmdir({str(circle)!r})\nos.symlink('circle', {str(circle)!r})\nraise SystemExit(1)"
    )
    write = f'[isolation]\nwrite = ["{circle}"]\n'
    try:
        daemon = site.start("--isolate")
        site.submit("turns", command=[sys.executable, "-c", turns], toml=write + "[restart]\nbudget = 2\n")
        site.wait("turns", State.FAILED)
        assert circle.is_symlink()
        assert daemon.poll() is None
    finally:
        site.close()


@needs_landlock
def test_a_home_where_any_job_may_write_cannot_be_isolated(site: Site, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(site.home.root.parent))
    assert site.start("--isolate").wait(timeout=30) == 2
    assert "--isolate protects nothing in" in site.log.read_text()
    assert not site.home.supervisor.exists()
