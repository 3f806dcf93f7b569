"""What each medium promises, without a daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import MirrorError
from runner.mirror.account import put_bytes
from runner.mirror.medium import BadCopyError, Check, Medium, open_medium
from tests.mirror.servers import Place, S3Server, SftpServer, free_port

LARGE = os.urandom(9_000_000)


def put(medium: Medium, name: str, data: bytes, tmp_path: Path, *, evict: bool = False) -> list[bytes]:
    """Put a file; return what came back."""
    path = tmp_path / "local"
    path.write_bytes(data)
    back: list[bytes] = []

    def check(pieces: Iterator[bytes | memoryview]) -> None:
        back.extend(bytes(piece) for piece in pieces)

    with path.open("rb") as file:
        if evict:
            path.unlink()
        medium.put(name, file.fileno(), check)
    return back


def test_a_medium_gives_back_what_it_takes(place: Place, tmp_path: Path) -> None:
    medium = open_medium(place.url, "job")
    assert medium.sizes("best") == {}
    for name, data in {"best/large": LARGE, "best/empty": b"", "identity.json": b"{}"}.items():
        assert b"".join(put(medium, name, data, tmp_path, evict=True)) == data
        assert b"".join(bytes(piece) for piece in medium.read(name)) == data
    assert medium.sizes("best") == {"large": len(LARGE), "empty": 0}
    assert place.files("job") == {"best/large": LARGE, "best/empty": b"", "identity.json": b"{}"}
    assert b"".join(put(medium, "best/large", b"another", tmp_path)) == b"another"
    assert medium.sizes("best") == {"large": 7, "empty": 0}
    for _ in range(2):
        medium.remove("best/empty")
    assert medium.sizes("best") == {"large": 7}
    with pytest.raises(FileNotFoundError):
        list(medium.read("best/empty"))
    medium.close()


def test_what_does_not_come_back_as_it_was_is_not_published(place: Place, tmp_path: Path) -> None:
    medium = open_medium(place.url, "job")
    (tmp_path / "local").write_bytes(b"data")

    def check(pieces: Iterator[bytes | memoryview]) -> None:
        list(pieces)
        raise BadCopyError("it is not")

    with (tmp_path / "local").open("rb") as file, pytest.raises(BadCopyError):
        medium.put("best/b", file.fileno(), check)
    assert place.files("job") == {}
    assert not list(place.root.rglob("*.tmp"))


def test_what_was_half_written_is_swept(place: Place, tmp_path: Path) -> None:
    medium = open_medium(place.url, "job")
    put(medium, "best/b", b"data", tmp_path)
    if place.kind != "s3":
        place.write("job/best/.b.0123.tmp", b"da")
    assert medium.sizes("best") == {"b": 4}
    medium.sweep("best")
    assert not list(place.root.rglob("*.tmp"))
    assert medium.sizes("best") == {"b": 4}


class Swept:
    """A medium that another home's process sweeps while something is put there, for so many times."""

    def __init__(self, medium: Medium, times: int) -> None:
        self.medium, self.times = medium, times

    def put(self, name: str, fd: int, check: Check) -> None:
        def meanwhile(pieces: Iterator[bytes | memoryview]) -> None:
            check(pieces)
            if self.times:
                self.times -= 1
                self.medium.sweep("")

        self.medium.put(name, fd, meanwhile)


def test_a_small_file_is_published_though_another_home_sweeps(place: Place) -> None:
    medium = open_medium(place.url, "job")
    put_bytes(Swept(medium, 2), "identity.json", b"{}")  # type: ignore[arg-type]
    assert place.files("job") == {"identity.json": b"{}"}
    if place.kind != "s3":  # where nothing half-written is ever seen
        with pytest.raises(FileNotFoundError):
            put_bytes(Swept(medium, 100), "identity.json", b"[]")  # type: ignore[arg-type]
    assert place.files("job") == {"identity.json": b"{}"}
    assert not list(place.root.rglob("*.tmp"))
    medium.close()


def test_a_place_that_is_not_there_is_no_empty_one(place: Place) -> None:
    url = "s3://no-such-bucket/a" if place.kind == "s3" else f"{place.url}/missing"
    with pytest.raises(MirrorError, match=r"there is no such (folder|bucket)"):
        open_medium(url, "job")


def test_a_host_that_nobody_knows_is_refused(sftp: SftpServer) -> None:
    known = Path("~/.ssh/known_hosts").expanduser()
    known.write_text("")
    with pytest.raises(MirrorError, match="connect to it once with ssh"):
        open_medium(sftp.url, "job")


def test_a_host_that_is_another_is_refused(sftp: SftpServer) -> None:
    known = Path("~/.ssh/known_hosts").expanduser()
    other = " ".join((sftp.dir / "user.pub").read_text().split()[:2])
    known.write_text(f"[127.0.0.1]:{sftp.port} {other}\n")
    with pytest.raises(MirrorError, match=r"^sftp://medium"):
        open_medium(sftp.url, "job")


def test_nothing_secret_is_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MirrorError, match=r"^s3://bucket-\w+: ") as caught:
        open_medium(s3.url, "job")
    assert "the secret" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(MirrorError, match="redentials"):
        open_medium(s3.url, "job")
