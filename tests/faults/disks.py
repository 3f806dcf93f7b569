"""File systems on loop devices that can be cut off, filled, or turned read-only while they are in use.

Needs root and loop devices: where they are missing what needs them fails and says so, for nothing would be
shown without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: <linux/fs.h>, and its flag that leaves the log unflushed.
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
_CLONE_NEWNS = 0x20000

#: By name: how it is made, its size in MiB, how it is mounted.
KINDS = {
    "ext4": ("mkfs.ext4 -q -F -m 0", 64, ""),
    "ext4 noauto_da_alloc": ("mkfs.ext4 -q -F -m 0", 64, "noauto_da_alloc"),
    "xfs": ("mkfs.xfs -q -f", 320, ""),
}
#: One of small blocks, to be filled; one that turns read-only at its first error.
TINY = ("mkfs.ext4 -q -F -m 0 -b 1024 -I 128 -N 128", 40, "")
STRICT = ("mkfs.ext4 -q -F -m 0", 64, "errors=remount-ro")

_libc = ctypes.CDLL(None, use_errno=True)


class NoDiskError(Exception):
    """This machine does not let us make a file system."""


@dataclass
class Disk:
    """A file system that can be cut off."""

    image: Path
    mounted: Path
    options: str

    def mount(self) -> None:
        """Mount it."""
        _run(["mount", "-o", f"loop{',' + self.options if self.options else ''}", self.image, self.mounted])

    def cut(self) -> None:
        """Take the power away."""
        with self._root() as fd:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))

    def boot(self) -> None:
        """Give the power back."""
        _run(["umount", self.mounted])
        self.mount()

    def sync(self) -> None:
        """Make all that is there durable."""
        with self._root() as fd:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")

    def turn_read_only(self) -> None:
        """Have the file system meet an error of its own (`STRICT` only): it is read-only at once."""
        device = self.mounted.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("made on purpose")

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        fd = os.open(self.mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


def leave_free(mounted: Path, size: int) -> Path:
    """Fill a file system up to about `size` bytes; return the file that does it."""
    ballast = mounted / "ballast"
    fd = os.open(mounted, os.O_RDONLY)
    _libc.syncfs(fd)  # what is not allocated yet counts as well
    os.close(fd)
    found = os.statvfs(mounted)
    taken = found.f_bavail * found.f_frsize - size
    fd = os.open(ballast, os.O_RDWR | os.O_CREAT)
    try:
        while taken > 0:
            try:
                os.posix_fallocate(fd, 0, taken)
                break
            except OSError:  # the file itself needs some blocks to say where its own are
                taken -= found.f_frsize
    finally:
        os.close(fd)
    return ballast


@contextlib.contextmanager
def made(folder: Path, kind: tuple[str, int, str]) -> Iterator[Disk]:
    """Make a file system in an image in `folder`, and mount it there; both are gone afterwards.

    Raises:
        NoDiskError: that cannot be done here.
    """
    mkfs, size_mib, options = kind
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    _run([*mkfs.split(), image])
    disk = Disk(image, mounted, options)
    try:
        disk.mount()
        yield disk
    finally:
        # One that is cut off cannot be asked whether it is mounted.
        if str(mounted).replace(" ", r"\040") in Path("/proc/mounts").read_text().split():
            _run(["umount", mounted])
        image.unlink()


def alone() -> None:
    """Mount from now on for this process and its children only: with them everything is unmounted.

    Raises:
        NoDiskError: this process may not mount.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise NoDiskError(f"to mount needs root: {os.strerror(ctypes.get_errno())}")
    _run(["mount", "--make-rprivate", "/"])


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Be `alone` for the time of the block: nobody copies these mounts, and keeps a disk that was cut off.

    Raises:
        NoDiskError: this process may not mount.
    """
    folder, before = Path.cwd(), os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        alone()
        yield
    finally:
        _libc.setns(before, _CLONE_NEWNS)
        os.close(before)
        os.chdir(folder)


@contextlib.contextmanager
def in_memory(folder: Path, options: str = "size=90%") -> Iterator[Path]:
    """Mount a file system in memory at `folder`.

    Raises:
        NoDiskError: that cannot be done here.
    """
    folder.mkdir(exist_ok=True)
    _run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder])
    try:
        yield folder
    finally:
        _run(["umount", folder])


def _run(command: list[object]) -> None:
    program = str(command[0])
    if shutil.which(program) is None:
        raise NoDiskError(f"{program} is missing: apt-get install e2fsprogs xfsprogs mount")
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoDiskError(f"this needs root and loop devices: {program}: {done.stderr.strip()}")
