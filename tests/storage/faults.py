"""Fails or kills a small process at every one of its system calls, with strace.

The process is `victim.py` beside this file: it does one thing on disk between two marks, and exits with 0
when it believes that all went well, with 3 when it was told of an error.
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VICTIM = Path(__file__).with_name("victim.py")
#: Calls that touch no file: to fail or to die there is to do so at the next one that does.
_INERT = {"brk", "mmap", "munmap", "mprotect", "getrandom", "getpid", "rt_sigaction", "futex", "getcwd"}
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")


@dataclass(frozen=True)
class Point:
    """The `when`-th call of `name` in the victim's life, which lies between the marks."""

    name: str
    when: int
    text: str


def command(scenario: str, folder: Path) -> list[str]:
    return _python("-B", "-X", f"pycache_prefix={_bytecode()}", scenario=scenario, folder=folder)


def _python(*options: str, scenario: str, folder: Path) -> list[str]:
    return [sys.executable, "-I", "-S", *options, str(VICTIM), str(ROOT), scenario, str(folder)]


@functools.cache
def _bytecode() -> Path:
    """Return where the victim finds its bytecode: nobody adds to it, so the calls before the marks stay."""
    own = Path(tempfile.mkdtemp(prefix="runner-bytecode-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    (folder := own / "folder").mkdir()
    learning = _python("-X", f"pycache_prefix={own}", scenario="write", folder=folder)
    subprocess.run(learning, timeout=60, check=True)
    return own


def strace(*options: str) -> list[str]:
    program = shutil.which("strace")
    if program is None:
        pytest.fail("these tests need strace: apt-get install strace")
    return [program, "-f", "-qq", *options]


def run(scenario: str, folder: Path) -> int:
    """Run the victim undisturbed; return its exit code."""
    return subprocess.run(command(scenario, folder), timeout=60, check=False).returncode


def trace(scenario: str, folder: Path) -> list[Point]:
    """Run the victim undisturbed; return its calls between the marks, in order."""
    log = folder.with_name("trace")
    done = subprocess.run(
        [*strace("-o", str(log)), *command(scenario, folder)], timeout=60, check=False, capture_output=True
    )
    assert done.returncode in {0, 3}, done.stderr.decode()
    return points(log)


def points(log: Path) -> list[Point]:
    """Return the calls between the marks out of strace's log."""
    seen: Counter[str] = Counter()
    found: list[Point] = []
    inside = False
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, text = match[1], match[2]
        seen[name] += 1
        if '"mark: begin"' in text:
            inside = True
        elif '"mark: end"' in text:
            return found
        elif inside and name not in _INERT:
            found.append(Point(name, seen[name], text))
    pytest.fail("strace saw no marks; is tracing (ptrace) allowed here?")


def disturb(scenario: str, folder: Path, point: Point, fault: str) -> int:
    """Run the victim with `fault` (such as error=EIO or signal=SIGKILL) injected; return its exit code.

    `{when}` in the fault stands for the point's number.
    """
    log = folder.with_name("trace")
    inject = f"inject={point.name}:{fault.format(when=point.when)}"
    quick = ["--seccomp-bpf"] if fault.startswith("error=") else []  # it would inject no signals
    done = subprocess.run(
        [
            *strace(*quick, "-o", str(log), "-e", f"trace={point.name}", "-e", inject),
            *command(scenario, folder),
        ],
        timeout=60,
        check=False,
        capture_output=True,
    )
    killed = done.returncode in {-9, 137}
    assert killed or "INJECTED" in log.read_text(errors="replace"), f"nothing was injected at {point}"
    return -9 if killed else done.returncode
