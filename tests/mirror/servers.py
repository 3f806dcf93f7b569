"""Real media, which can go away: a folder, an SFTP server (Debian's openssh-server), an S3 server (moto)."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.waiting import wait_for

#: So often the S3 server is started on another port.
STARTS = 5
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """A folder: what every medium can be asked in a test."""

    kind = "file"

    def __init__(self, root: Path, environ: pytest.MonkeyPatch) -> None:
        self.root = root / "medium"
        self.root.mkdir()
        self.environ = environ
        self.prepare(root)
        self.up()

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    def prepare(self, root: Path) -> None:
        """Do what is needed before the server can start."""

    def up(self) -> None:
        if not self.root.exists():
            self.root.with_name("away").rename(self.root)

    def down(self) -> None:
        self.root.rename(self.root.with_name("away"))

    def files(self, name: str) -> dict[str, bytes]:
        """Everything that the medium holds of a job, what is half-written left out."""
        folder = self.root / name
        found: dict[str, bytes] = {}
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.endswith(".tmp"):
                with contextlib.suppress(FileNotFoundError):  # it has just been removed
                    found[path.relative_to(folder).as_posix()] = path.read_bytes()
        return found

    def write(self, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()

    def close(self) -> None:
        """End what was started."""


class SftpServer(Place):
    """sshd as this user, with keys, port and configuration of its own."""

    kind = "sftp"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"sftp://medium{self.root}"

    def prepare(self, root: Path) -> None:
        self.dir = root / "sshd"
        self.dir.mkdir(mode=0o700)
        home = root / "user"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        self.port = free_port()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / name], check=True)
        host_key = " ".join((self.dir / "host.pub").read_text().split()[:2])
        (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        (home / ".ssh/config").write_text(
            f"Host medium\n HostName 127.0.0.1\n Port {self.port}\n IdentityFile {self.dir}/user\n"
        )
        (self.dir / "config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.dir}/host\nStrictModes no\n"
            f"AuthorizedKeysFile {self.dir}/user.pub\nPidFile none\nUsePAM no\n"
            "PasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        self.environ.setenv("HOME", str(home))

    def up(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own demand, where it may change its user
        log = (self.dir / "log").open("ab")
        argv = [SSHD, "-D", "-e", "-f", str(self.dir / "config")]
        self.process = subprocess.Popen(argv, stderr=log, start_new_session=True)
        wait_for(lambda: _listens(self.port), "sshd")

    def sessions(self) -> list[int]:
        """Pids of the processes that serve a connection."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                for task in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += [int(child) for child in task.read_text().split()]
        return found[1:]

    def halt(self) -> list[int]:
        """Let those that serve a connection stand still; return their pids."""
        pids = self.sessions()
        _kill(pids, signal.SIGSTOP)
        wait_for(lambda: all(map(_stands_still, pids)), "the sessions to stand still")
        return pids

    def go_on(self, pids: list[int]) -> None:
        """Let those that stand still go on."""
        _kill(pids, signal.SIGCONT)

    def down(self) -> None:
        if self.process is not None:
            _kill([*self.sessions(), self.process.pid], signal.SIGKILL)
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.down()


class S3Server(Place):
    """A bucket on moto's server, which holds it in memory: it is stopped where it is to be gone."""

    kind = "s3"
    process: subprocess.Popen[bytes] | None = None
    port = 0

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/some/folder"

    @classmethod
    def serve(cls) -> None:
        """Start the server, one for all tests of this process."""
        if cls.process is not None:
            return
        for _ in range(STARTS):
            port = free_port()
            process = _moto(port)
            if process is not None:
                cls.port, cls.process = port, process
                return
        raise AssertionError("the S3 server does not start")

    def prepare(self, root: Path) -> None:
        self.serve()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "the secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(root / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(root / "none"),
        }.items():
            self.environ.setenv(name, value)
        self.bucket = f"bucket-{os.urandom(4).hex()}"
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket=self.bucket)

    def up(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def down(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def files(self, name: str) -> dict[str, bytes]:
        prefix = f"some/folder/{name}/"
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", ())
        keys = [one["Key"] for one in found]
        bodies = {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix(prefix): body for key, body in bodies.items()}

    def write(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"some/folder/{path}", Body=data)

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"some/folder/{path}")

    def close(self) -> None:
        self.up()


def _moto(port: int) -> subprocess.Popen[bytes] | None:
    """Start an S3 server; None where it ended at once: somebody else has taken its port."""
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    wait_for(lambda: _listens(port) or process.poll() is not None, "the S3 server", 120)
    return process if process.poll() is None else None


def _kill(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)


def _stands_still(pid: int) -> bool:
    """Whether a process is stopped, or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


KINDS = {place.kind: place for place in (Place, SftpServer, S3Server)}


def opened(kind: str, root: Path, environ: pytest.MonkeyPatch) -> Iterator[Place]:
    if kind == "sftp" and SSHD is None:
        pytest.fail("these tests need Debian's package openssh-server")
    place = KINDS[kind](root, environ)
    try:
        yield place
    finally:
        place.close()
