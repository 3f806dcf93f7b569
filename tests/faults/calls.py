"""The parts of the campaign that strike at system calls: kills, errors, short writes and reads."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import disks, play, scenes, tracer
from tests.faults.play import Dead, Hook, Shorter, Stage
from tests.faults.scenes import Scene
from tests.faults.table import Rules, Table
from tests.faults.tracer import Point

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
#: Calls that only read: of the errors, EIO is theirs; of the others they get every so manieth.
READING = tracer.READS | {"lseek", "getdents64"}
THINNED = 8
#: What part of a write or a read is done, and what becomes of the later ones.
SHORTER = ((0.0, "whole"), (0.5, "whole"), (0.999, "part"), (0.5, "part"), (0.5, "error"))
#: What every commit consists of, by one of the names that it may have.
ESSENTIAL = [
    {"openat"}, {"write"}, {"pwrite64"}, {"preadv", "preadv2"}, {"pread64"}, {"fsync"}, {"close"},
    {"rename", "renameat", "renameat2"}, {"unlink", "unlinkat"}, {"mkdir", "mkdirat"}, {"getdents64"},
    {"fstat", "newfstatat", "stat", "statx"},
]  # fmt: skip


@contextlib.contextmanager
def ground(work: Path) -> Iterator[Path]:
    """Return a folder to play in: a file system in memory where that can be had, with direct I/O."""
    with contextlib.ExitStack() as mounts:
        folder = work
        with contextlib.suppress(disks.NoDiskError):
            memory = mounts.enter_context(disks.in_memory(work / "memory"))
            folder = mounts.enter_context(disks.made(memory, disks.KINDS["ext4"])).mounted
        yield folder


def on_stages(chosen: list[Scene], work: Path) -> Iterator[tuple[Stage, list[Point]]]:
    """Yield each scene on its stage, with the calls that it makes."""
    with ground(work) as folder:
        (kept := work / "kept").mkdir()
        for scene in chosen:
            stage = Stage(scene, folder, kept)
            yield stage, stage.calls()


def kills(rules: Rules, table: Table, work: Path) -> None:
    """SIGKILL before every call."""
    for stage, points in on_stages(scenes.ALL, work):
        for point in rules.some(points, 14 if stage.scene in scenes.SMALL else 6):
            run, ending = stage.play(play.kill(point))
            reached = int(run.ended == "killed")
            table.hits("kills", ending.acted)
            problems = stage.judge(run)
            if not reached and point.name in tracer.FILE:
                problems.append("the call was not reached")
            table.add_run("kills", stage.scene.name, run, problems, str(point), reached)
    essential(table, "kills", rules)


def errors(rules: Rules, table: Table, work: Path) -> None:
    """Every call that concerns a file fails: once, from then on, and with the whole disk from then on."""
    ways: dict[str, Callable[[Point, int], Hook]] = {"once": play.once, "sticky": play.sticky, "dead": Dead}
    for stage, points in on_stages(scenes.ALL + scenes.RETRIED, work):
        points = [point for point in points if point.name in tracer.FILE]
        for way, make in ways.items():
            for code in ERRORS:
                fitting = points if code == errno.EIO else thinned(points)
                for point in rules.some(fitting, 2 if stage.scene in scenes.SMALL else 1):
                    run, ending = stage.play(make(point, code))
                    problems = stage.judge(run)
                    if not ending.acted:
                        problems.append("the call was not reached")
                    if stage.scene.retries and way == "once" and not run.returned:
                        problems.append("one failure alone, and the second try failed as well")
                    table.hits("errors", ending.acted)
                    where = f"{errno.errorcode[code]} at {point}, {way}"
                    reached = int(bool(ending.acted))
                    table.add_run("errors", f"{stage.scene.name}, {way}", run, problems, where, reached)
    essential(table, "errors", rules)


def thinned(points: list[Point]) -> list[Point]:
    """Leave out most of the calls that only read."""
    return [point for point in points if point.name not in READING or point.when % THINNED == 1]


def shorts(rules: Rules, table: Table, work: Path) -> None:
    """Every write and every read does less than asked, honestly: once, always, or before an error."""
    happened = 0
    for stage, points in on_stages(scenes.ALL, work):
        points = [point for point in points if point.name in tracer.WRITES | tracer.READS]
        for point in rules.some(points, 3):
            ways = SHORTER if point in thinned([point]) else SHORTER[1:2]
            for part, then in ways if not rules.short else rules.chance.sample(ways, min(2, len(ways))):
                hook = Shorter(point, part, then, errno.ENOSPC if point.name in tracer.WRITES else errno.EIO)
                run, ending = stage.play(hook)
                problems = stage.judge(run)
                if then != "error" and not run.returned:
                    problems.append("the rest was not written or read")
                happened += ending.short
                table.hits("shorts", ending.acted)
                what = "short writes" if point.name in tracer.WRITES else "short reads"
                where = f"{part} of {point}, then {then}"
                table.add_run(
                    "shorts", f"{stage.scene.name}, {what}", run, problems, where, bool(ending.acted)
                )
    table.require(happened > 0, "shorts: no write was short")
    table.notes.append(f"shorts: {happened} writes wrote less than they were asked to")


def essential(table: Table, part: str, rules: Rules) -> None:
    """Make sure that every kind of call was struck."""
    hit: Counter[str] = table.hit.get(part, Counter())
    missing = ["/".join(sorted(names)) for names in ESSENTIAL if not any(hit[name] for name in names)]
    table.require(not missing or rules.short, f"{part}: no call of {', '.join(missing)} was struck")
