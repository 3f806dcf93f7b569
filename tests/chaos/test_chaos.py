"""The short form of the chaos campaign: a part of it, drawn by chance; `make chaos` runs the whole."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.campaign import PARTS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer knows x86-64 only")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", PARTS)
def test_what_is_drawn_by_chance_finds_nothing(part: str) -> None:
    """In a process of its own, which nobody's threads disturb; it prints its seed."""
    command = [sys.executable, "-m", "tests.chaos", "--short", part]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert ": nothing was wrong" in done.stdout
