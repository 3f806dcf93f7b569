"""A folder of another machine, over SFTP (fsspec, paramiko).

Keys, agents, known hosts and the host's entry in the configuration are those of `ssh`, out of ~/.ssh. A host
that is not known is refused: nobody is there to be asked. Files are renamed over each other by OpenSSH's own
extension.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

from runner.errors import MirrorError
from runner.mirror.medium import CONNECT_S, PIECE, SILENCE_S, Check, is_temporary

_KEEP_ALIVE_S = 15
#: Requests on their way while a file is read; each is for 32 KiB.
_AHEAD = 128
_FAILURES = (OSError, EOFError, paramiko.SSHException, ValueError)


class _Ssh(SFTPFileSystem):  # type: ignore[misc] # fsspec has no types
    """fsspec's, but it knows ~/.ssh, and gives up on a server that is silent."""

    cachable = False

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        for path in _known_hosts(self.ssh_kwargs.pop("known_hosts", None)):
            with contextlib.suppress(FileNotFoundError):
                self.client.load_system_host_keys(str(path))
        self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        self.client.connect(
            self.host,
            timeout=CONNECT_S,
            banner_timeout=CONNECT_S,
            auth_timeout=SILENCE_S,
            channel_timeout=SILENCE_S,
            **self.ssh_kwargs,
        )
        transport = self.client.get_transport()
        assert transport is not None
        transport.set_keepalive(_KEEP_ALIVE_S)
        self.ftp = self.client.open_sftp()
        self.ftp.get_channel().settimeout(SILENCE_S)


def _known_hosts(configured: str | None) -> list[Path]:
    own = [Path(name).expanduser() for name in configured.split()] if configured else []
    return [*(own or [Path("~/.ssh/known_hosts").expanduser()]), Path("/etc/ssh/ssh_known_hosts")]


def _options(url: SplitResult) -> dict[str, Any]:
    """Return how to connect: what the URL says, else what ~/.ssh/config says of the host."""
    path = Path("~/.ssh/config").expanduser()
    found: dict[str, Any] = {}
    if path.is_file():
        found = dict(paramiko.SSHConfig.from_path(str(path)).lookup(str(url.hostname)))
    options = {
        "host": found.get("hostname", url.hostname),
        "port": url.port or int(found.get("port", 22)),
        "username": unquote(url.username) if url.username else found.get("user"),
        "key_filename": [str(Path(key).expanduser()) for key in found.get("identityfile", ())] or None,
        "known_hosts": found.get("userknownhostsfile"),
    }
    return {name: value for name, value in options.items() if value is not None}


class Sftp:
    """A place on an SFTP server."""

    def __init__(self, url: SplitResult, name: str) -> None:
        self._where = f"sftp://{url.netloc}"
        root = unquote(url.path)
        with self._told(root):
            self._fs = _Ssh(**_options(url), skip_instance_cache=True)
            if not self._fs.isdir(root):
                raise NotADirectoryError("there is no such folder; make it")
        self._dir = f"{root.rstrip('/')}/{name}"

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the files in a folder with their sizes."""
        return {name: size for name, size in self._list(folder) if not is_temporary(name)}

    def _list(self, folder: str) -> list[tuple[str, int]]:
        path = f"{self._dir}/{folder}"
        with self._told(path), contextlib.suppress(FileNotFoundError):
            found = self._fs.ls(path, detail=True)
            return [(Path(one["name"]).name, int(one["size"])) for one in found if one["type"] == "file"]
        return []

    def read(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes."""
        yield from self._read(f"{self._dir}/{name}")

    def _read(self, path: str) -> Iterator[bytes]:
        with self._told(path), self._fs.ftp.open(path, "rb") as file:
            file.prefetch(max_concurrent_requests=_AHEAD)
            while piece := file.read(PIECE):
                yield piece

    def put(self, name: str, fd: int, check: Check) -> None:
        """Publish a file: under a temporary name, synced, read back, renamed."""
        path = f"{self._dir}/{name}"
        folder, _, file = path.rpartition("/")
        temporary = f"{folder}/.{file}.{os.urandom(4).hex()}.tmp"
        try:
            with self._told(path):
                self._fs.put_file(f"/proc/self/fd/{fd}", temporary)
                self._sync(temporary)
            check(self._read(temporary))
            with self._told(path):
                self._fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(*_FAILURES):
                self._fs.ftp.remove(temporary)
            raise

    def _sync(self, path: str) -> None:
        """Have the server make a file durable, where it can (OpenSSH's PROTOCOL, fsync@openssh.com)."""
        with self._fs.ftp.open(path, "r+") as file, contextlib.suppress(OSError):
            # paramiko has no call for it; for renaming it makes the same request.
            self._fs.ftp._request(paramiko.sftp.CMD_EXTENDED, "fsync@openssh.com", file.handle)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._told(f"{self._dir}/{name}"), contextlib.suppress(FileNotFoundError):
            self._fs.ftp.remove(f"{self._dir}/{name}")

    def sweep(self, folder: str) -> None:
        """Remove what was not finished."""
        for name, _ in self._list(folder):
            if is_temporary(name):
                self.remove(f"{folder}/{name}")

    def close(self) -> None:
        """Hang up."""
        self._fs.client.close()

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Make a MirrorError of what the server or the library says."""
        try:
            yield
        except FileNotFoundError:
            raise
        except _FAILURES as error:
            raise MirrorError(f"{self._where}{path}: {_words(error)}") from error


def _words(error: Exception) -> str:
    if isinstance(error, paramiko.SSHException) and "not found in known_hosts" in str(error):
        return f"{error}; connect to it once with ssh, as the user of the daemon"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
