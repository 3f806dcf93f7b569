"""A script sees nothing of the instrumentation: what it can look at is as it is without it."""

from __future__ import annotations

from pathlib import Path

from tests.training.harness import Job


def test_a_script_sees_nothing_of_it(tmp_path: Path) -> None:
    job = Job(tmp_path, "seen.py")
    plain, ours = job.plain(), job.run()
    assert (plain.code, ours.code) == (0, 0), plain.errors + ours.errors
    lines, others = (
        [line for line in one.output.splitlines() if line.startswith("SEEN ")] for one in (plain, ours)
    )
    assert len(lines) > 20
    assert others == lines
    assert len(job.facts_of("fit-finished")) == 6
