"""The tracer does what it says: a campaign with a blunt instrument would prove nothing."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import tracer
from tests.faults.tracer import Act, Call, Fail, Kill, Leave, Short

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer knows x86-64 only")


def write_twice(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    sizes = [os.pwrite(fd, b"x" * 1000, 1000 * number) for number in range(2)]
    sizes.append(os.preadv(fd, [bytearray(1500)], 0))
    os.close(fd)
    return int(sizes != [1000, 1000, 1500])


def test_calls_are_seen_in_their_order_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    ending = tracer.run(lambda: write_twice(path), lambda _: None)
    assert ending.code == 0
    assert ending.short == 0
    of_files = [str(call).replace("preadv2", "preadv") for call in ending.calls if call.name in tracer.FILE]
    assert of_files == ["openat #1", "pwrite64 #1", "pwrite64 #2", "preadv #1", "close #1"]
    assert path.read_bytes() == b"x" * 2000


def test_strace_sees_the_same_calls(tmp_path: Path) -> None:
    program = "import os; fd = os.open('file', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x', 3); os.fsync(fd)"
    command = [sys.executable, "-I", "-S", "-B", "-c", program]

    def deed() -> int:
        os.chdir(tmp_path)
        os.execv(sys.executable, command)

    for _ in range(2):  # the first leaves the file
        ending = tracer.run(deed, lambda _: None)
    strace = shutil.which("strace")
    assert strace is not None
    null = subprocess.DEVNULL  # as the tracer has it: Python asks other things of other streams
    traced = [strace, "-o", str(tmp_path / "log"), *command]
    subprocess.run(traced, check=True, cwd=tmp_path, stdout=null, stderr=null)
    lines = (tmp_path / "log").read_text().splitlines()
    theirs = Counter(line.partition("(")[0] for line in lines)
    ours = Counter(call.name for call in ending.calls)
    for name in tracer.FILE:
        assert ours[name] == theirs[name], name


def test_a_call_is_failed_and_not_made(tmp_path: Path) -> None:
    path, told = tmp_path / "file", []

    def deed() -> int:
        try:
            return write_twice(path)
        except OSError as error:
            return 10 + (error.errno or 0)

    def hook(call: Call) -> Act:
        told.append(call)
        return Fail(errno.ENOSPC) if (call.name, call.when) == ("pwrite64", 2) else None

    ending = tracer.run(deed, hook)
    assert ending.code == 10 + errno.ENOSPC
    assert ending.acted == {"pwrite64": 1}
    assert path.read_bytes() == b"x" * 1000


def test_a_close_that_fails_has_closed() -> None:
    def deed() -> int:
        fd = os.open("/", os.O_RDONLY)
        try:
            os.close(fd)
        except OSError as error:
            return int(error.errno == errno.EIO and os.open("/", os.O_RDONLY) == fd)
        return 0

    ending = tracer.run(deed, lambda call: Fail(errno.EIO) if call.name == "close" else None)
    assert ending.code == 1


def test_a_short_write_is_told_and_really_is_one(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def deed() -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        return int([os.write(fd, b"y" * 100), os.writev(fd, [b"z" * 50, b"!"])] == [40, 1])

    def hook(call: Call) -> Act:
        if call.name == "write":
            return Short(40)
        return Short(1) if call.name == "writev" else None

    ending = tracer.run(deed, hook)
    assert ending.code == 1
    assert ending.short == 2
    assert path.read_bytes() == b"y" * 40 + b"z"


def test_a_short_read_gives_less_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))

    def deed() -> int:
        fd, room = os.open(path, os.O_RDONLY), bytearray(200)
        sizes = [os.preadv(fd, [room], 0) for _ in range(2)]
        return int(sizes == [7, 200] and room == bytes(range(200)))

    def hook(call: Call) -> Act:
        return Short(7) if call.name in tracer.READS and call.when == 1 else None

    assert tracer.run(deed, hook).code == 1


def test_a_killed_child_has_not_made_the_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    ending = tracer.run(
        lambda: write_twice(path), lambda call: Kill() if call.point == ("pwrite64", 2) else None
    )
    assert ending.code == -signal.SIGKILL
    assert path.read_bytes() == b"x" * 1000


def test_a_child_that_is_left_goes_on(tmp_path: Path) -> None:
    ending = tracer.run(lambda: write_twice(tmp_path / "file"), lambda _: Leave())
    assert ending.code == 0
    assert len(ending.calls) == 1
