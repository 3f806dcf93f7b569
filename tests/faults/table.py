"""What the campaign has done and found, and how much of it to do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.scenes import Run
from tests.faults.tracer import Point

_FINDINGS_SHOWN = 20


@dataclass
class Row:
    """A line of the table."""

    runs: int = 0
    reached: int = 0  #: runs in which something was done to the child, or the file
    ends: Counter[str] = field(default_factory=Counter)
    failed: int = 0


@dataclass
class Table:
    """All lines, and what was wrong."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    hit: dict[str, Counter[str]] = field(default_factory=dict)  #: by part: calls by name
    notes: list[str] = field(default_factory=list)

    def add(
        self, part: str, what: str, *, end: str, problems: Sequence[str], where: str, **count: int
    ) -> None:
        """Count one run, and keep what was wrong with it."""
        row = self.rows.setdefault((part, what), Row())
        row.runs += 1
        row.reached += count.get("reached", 1)
        row.ends[end.partition(" ")[0]] += 1
        row.failed += bool(problems)
        self.findings += [f"{part}, {what}, {where}: {problem}" for problem in problems]

    def add_run(
        self, part: str, what: str, run: Run, problems: Sequence[str], where: str, reached: int
    ) -> None:
        """Count the run of a scene."""
        self.add(part, what, end=run.ended, problems=problems, where=where, reached=reached)

    def require(self, holds: object, otherwise: str) -> None:
        """Make it a finding that the campaign itself is not what it should be."""
        if not holds:
            self.findings.append(otherwise)

    def hits(self, part: str, calls: Mapping[str, int]) -> None:
        """Count what was done to calls of each name."""
        self.hit.setdefault(part, Counter()).update(calls)

    def merge(self, other: Table) -> None:
        """Take in another table."""
        self.rows |= other.rows
        self.findings += other.findings
        self.notes += other.notes
        for part, calls in other.hit.items():
            self.hits(part, calls)

    @property
    def runs(self) -> int:
        return sum(row.runs for row in self.rows.values())

    def __str__(self) -> str:
        lines = [
            f"{'part':10} {'what':54} {'runs':>6} {'hit':>6} {'ok':>6} {'told':>6} {'killed':>6} {'bad':>4}"
        ]
        for (part, what), row in self.rows.items():
            ends = [row.ends[end] for end in ("returned", "raised", "killed")]
            numbers = " ".join(f"{number:6}" for number in (row.runs, row.reached, *ends))
            lines.append(f"{part:10} {what:54.54} {numbers} {row.failed:4}")
        for part, calls in self.hit.items():
            told = ", ".join(f"{name} {count}" for name, count in calls.most_common())
            lines.append(f"{part}: calls hit: {told}")
        lines += self.notes
        lines += [f"WRONG: {one}" for one in self.findings[:_FINDINGS_SHOWN]]
        if len(self.findings) > _FINDINGS_SHOWN:
            lines.append(f"... and {len(self.findings) - _FINDINGS_SHOWN} more")
        return "\n".join(lines)


@dataclass
class Rules:
    """How much is done, and by which chance."""

    seed: int
    short: bool
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def count(self, long: int, short: int) -> int:
        return short if self.short else long

    def some(self, points: Sequence[Point], short: int) -> list[Point]:
        """Return all points; in the short form `short` of them, of as many names as that allows."""
        if not self.short or len(points) <= short:
            return list(points)
        shuffled = self.chance.sample(list(points), len(points))
        first = {point.name: point for point in shuffled}
        chosen = self.chance.sample(list(first.values()), min(short, len(first)))
        rest = [point for point in shuffled if point not in chosen]
        return chosen + rest[: short - len(chosen)]
