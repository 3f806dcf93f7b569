"""The parts of the campaign that take away power and room, for real: on file systems of its own."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import disks, scenes, tracer
from tests.faults.disks import Disk
from tests.faults.play import Hook, Stage
from tests.faults.scenes import Scene
from tests.faults.table import Rules, Table
from tests.faults.tracer import Act, Call, Leave, Point

_PATIENCE_S = 60
CUTS_MIN = 300
#: Calls between which the disk is not the same, and what comes between them and their report.
CHANGING = tracer.WRITES | {
    *(
        "openat",
        "fsync",
        "fdatasync",
        "close",
        "rename",
        "renameat",
        "renameat2",
        "unlink",
        "unlinkat",
        "rmdir",
    ),
    *("mkdir", "mkdirat", "ftruncate", "link", "linkat", "symlink", "symlinkat", "fstat"),
}


def cut(stage: Stage, disk: Disk, point: Point | None) -> tuple[str, list[str], bool]:
    """Cut the power before the call at `point`, or right after the act has told how it went.

    Returns: how the act ended, what is wrong after the next boot, and whether there was a cut in its midst.
    """
    hook, reached = at(point, disk.cut) if point else (None, [])
    run, _ = stage.play(hook)
    if not reached:
        disk.cut()
    disk.boot()
    return run.ended, stage.judge(run), bool(reached)


def at(point: Point, strike: Callable[[], None]) -> tuple[Hook, list[Point]]:
    """Return a hook that strikes once, at a call, and a list that says whether it did."""
    reached: list[Point] = []

    def hook(call: Call) -> Act:
        if call.point != point:
            return None
        strike()
        reached.append(call.point)
        return Leave()

    return hook, reached


def cuts(rules: Rules, table: Table, work: Path) -> None:
    """Power cuts: at every call of a commit, right after "committed" was told, and at any moment."""
    total = 0
    with disks.in_memory(work / "memory") as folder:
        for kind, how in disks.KINDS.items():
            with disks.made(folder / kind, how) as disk:
                for scene in scenes.ALL:
                    stage = Stage(scene, disk.mounted, folder, disk.sync)
                    total += cut_calls(stage, disk, kind, rules, table)
                    total += cut_after(stage, disk, kind, rules, table)
                total += cut_anywhere(disk, kind, folder, rules, table)
    table.notes.append(f"cuts: {total} power cuts")
    table.require(rules.short or total >= CUTS_MIN, f"cuts: {total} are fewer than {CUTS_MIN}")


def cut_calls(stage: Stage, disk: Disk, kind: str, rules: Rules, table: Table) -> int:
    """Cut the power before the calls of a commit; most of those that leave the disk as it is are left out."""
    points = [point for point in stage.calls() if point.name in tracer.FILE]
    fewer = [point for point in points if point.name in CHANGING or point.when % 8 == 1]
    chosen = rules.some(fewer, 2 if stage.scene in scenes.SMALL else 1)
    for point in chosen:
        ended, problems, reached = cut(stage, disk, point)
        if not reached:
            problems.append("the call was not reached")
        what = f"{kind}, at every call"
        where = f"{stage.scene.name} at {point}"
        table.add("cuts", what, end=ended, problems=problems, where=where, reached=reached)
    return len(chosen)


def cut_after(stage: Stage, disk: Disk, kind: str, rules: Rules, table: Table) -> int:
    """Cut the power as soon as the act has ended."""
    times = rules.count(10, 1)
    for _ in range(times):
        ended, problems, _ = cut(stage, disk, None)
        if ended != "returned":
            problems.append(f"undisturbed, it {ended}")
        what = f"{kind}, right after it was told"
        table.add("cuts", what, end=ended, problems=problems, where=stage.scene.name)
    return times


def cut_anywhere(disk: Disk, kind: str, folder: Path, rules: Rules, table: Table) -> int:
    """Cut the power at any moment of a stream of saves."""
    scene = scenes.Stream()
    stage = Stage(scene, disk.mounted, folder, disk.sync)
    scene.many = 10**6
    times = rules.count(60, 4)
    for _ in range(times):
        stage.reset()
        child = tracer.start(stage.deed)
        deadline = time.monotonic() + _PATIENCE_S
        while not stage.journal.read() and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        threading.Event().wait(rules.chance.random() * 0.05)  # any moment will do
        # What was told before the cut began is promised: a sync that is under way may still return well.
        promised = stage.journal.read()
        disk.cut()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        run = stage.run_of(code)
        run.told = promised
        disk.boot()
        problems = stage.judge(run)
        if not promised:
            problems.append("nothing was saved in a minute")
        table.add("cuts", f"{kind}, at any moment", end=run.ended, problems=problems, where=scene.name)
    return times


def full(rules: Rules, table: Table, work: Path) -> None:
    """No room, no inode, no descriptor, read-only: for real, without any injection."""
    with disks.in_memory(work / "memory") as folder:
        for kind, how in {"ext4": disks.TINY, "xfs": disks.KINDS["xfs"]}.items():
            with disks.made(folder / kind, how) as disk:
                for scene in (*scenes.SMALL, *scenes.LARGE):
                    stage = Stage(scene, disk.mounted, folder)
                    no_room(stage, disk.mounted, f"{kind}, full", rules, table)
        with disks.in_memory(folder / "tmpfs", "size=40m,nr_inodes=200") as mounted:
            for scene in (*scenes.SMALL, *scenes.LARGE):
                stage = Stage(scene, mounted, folder)
                no_room(stage, mounted, "tmpfs, full", rules, table)
                no_inode(stage, mounted, rules, table)
                limited(stage, rules, table)
        with disks.made(folder / "strict", disks.STRICT) as disk:
            for scene in (*scenes.SMALL, *scenes.LARGE):
                read_only(Stage(scene, disk.mounted, folder, disk.sync), disk, rules, table)
    told = sum(row.ends["raised"] for (part, _), row in table.rows.items() if part == "full")
    table.require(told, "full: nobody was ever told that there is no room")


def sizes(scene: Scene, rules: Rules) -> Iterator[int]:
    """Yield how much room to leave: too little, hardly enough, and what lies between."""
    if scene in scenes.SMALL:  # a saver wants some 64 KiB more than the file will take
        steps = (*range(0, 24 << 10, 1 << 10), *range(24 << 10, 140 << 10, 6 << 10))
        yield from rules.chance.sample(steps, rules.count(len(steps), 2))
    else:
        yield from (rules.chance.randrange(12 << 20) for _ in range(rules.count(40, 2)))


def no_room(stage: Stage, mounted: Path, what: str, rules: Rules, table: Table) -> None:
    """Leave so much of the disk free and no more."""
    for size in sizes(stage.scene, rules):
        stage.reset()
        ballast = disks.leave_free(mounted, size)
        ending = tracer.run(stage.deed, lambda _: None)
        run = stage.run_of(ending.code)
        ballast.unlink()
        report(table, what, stage, run.ended, stage.judge(run), f"{size} bytes free", ending.short)


def no_inode(stage: Stage, mounted: Path, rules: Rules, table: Table) -> None:
    """Leave so many inodes and no more."""
    for left in range(rules.count(6, 1)):
        stage.reset()
        (eaters := mounted / "eaters").mkdir()
        for number in range(os.statvfs(mounted).f_ffree - left):
            (eaters / str(number)).touch()
        ending = tracer.run(stage.deed, lambda _: None)
        run = stage.run_of(ending.code)
        for path in eaters.iterdir():
            path.unlink()
        eaters.rmdir()
        report(table, "tmpfs, no inodes", stage, run.ended, stage.judge(run), f"{left} inodes left", 0)


def limited(stage: Stage, rules: Rules, table: Table) -> None:
    """Limit the sizes of files, which makes honest short writes anywhere; and the number of descriptors."""
    largest = 17_000 if stage.scene in scenes.SMALL else 9 << 20
    limits = [rules.chance.randrange(largest) for _ in range(rules.count(40, 2))]
    for limit in limits:

        def small_files(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        run, ending = stage.play(lambda _: None, small_files)
        report(table, "files limited", stage, run.ended, stage.judge(run), f"to {limit} bytes", ending.short)
    for more in range(rules.count(6, 1)):

        def few_files(more: int = more) -> None:
            used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + more))

        run, _ = stage.play(None, few_files)
        report(table, "descriptors limited", stage, run.ended, stage.judge(run), f"{more} more", 0)


def read_only(stage: Stage, disk: Disk, rules: Rules, table: Table) -> None:
    """Have the file system turn read-only before a call, as ext4 does when it meets an error."""
    points = [point for point in stage.calls() if point.name in tracer.FILE - {"pread64"}]
    for point in rules.some(points, 2 if stage.scene in scenes.SMALL else 1):
        hook, reached = at(point, disk.turn_read_only)
        run, _ = stage.play(hook)
        disk.boot()
        problems = stage.judge(run)
        if not reached:
            problems.append("the call was not reached")
        report(table, "ext4, turns read-only", stage, run.ended, problems, str(point), 0)


def report(
    table: Table, what: str, stage: Stage, end: str, problems: list[str], where: str, short: int
) -> None:
    """Count a run, and the writes that were short in it."""
    table.add("full", what, end=end, problems=problems, where=f"{stage.scene.name}, {where}")
    table.hits("full, short writes", {what: short} if short else {})
