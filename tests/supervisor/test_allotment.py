"""What there is for jobs, beneath the limits of a service, a container or a taskset."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.supervisor import allotment

#: As in proc(5): id, parent, device, root, mount point, options - type, source, options.
V2 = "31 23 0:28 {top} {point} rw,relatime shared:9 - cgroup2 cgroup rw,nsdelegate"
V1 = """35 31 0:32 {top} {point}/memory rw - cgroup cgroup rw,memory
36 31 0:33 {top} {point}/cpu rw - cgroup cgroup rw,cpu,cpuacct"""
DISK = "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


@pytest.mark.parametrize(
    ("mounts", "cgroup", "top", "expected"),
    [
        (V2, "0::/s.slice/x.service", "/", ["s.slice/x.service", "s.slice", ""]),
        (V2, "0::/", "/", [""]),
        (V2, "0::/docker/1f/job", "/docker/1f", ["job", ""]),  # a container that is shown its part
        (V2, "0::/../../elsewhere", "/", [""]),  # and one that is not
        (V1, "3:cpuacct,cpu:/a\n2:memory:/b\n0::/c", "/", ["cpu/a", "cpu"]),
        (V1, "2:memory:/b", "/", []),
    ],
)
def test_the_groups_that_a_process_is_in(
    tmp_path: Path, mounts: str, cgroup: str, top: str, expected: list[str]
) -> None:
    found = allotment.around("cpu", cgroup, DISK + mounts.format(top=top, point=tmp_path))
    assert found == [tmp_path / name for name in expected]


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        ({}, math.inf, math.inf),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, math.inf, math.inf),
        ({"cpu.max": "150000 100000\n", "memory.max": "1048576\n"}, 1.5, 1048576),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, math.inf, math.inf),
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5, math.inf),
        ({"memory.limit_in_bytes": "4096\n", "cpu.max": "junk"}, math.inf, 4096),
    ],
)
def test_the_limits_of_a_group(tmp_path: Path, files: dict[str, str], cpus: float, memory: float) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert allotment._quota(tmp_path) == cpus
    assert allotment._limit_bytes(tmp_path) == memory


def test_a_process_that_is_kept_to_one_processor_has_one() -> None:
    one = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{one}}}); from runner.supervisor.allotment import cpus"
    told = subprocess.run(
        [sys.executable, "-c", f"{program}; print(cpus())"], capture_output=True, check=True
    )
    assert told.stdout == b"1.0\n"
    assert 1 <= allotment.cpus() <= len(os.sched_getaffinity(0))
