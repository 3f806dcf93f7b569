"""Broken ways to commit: the campaign must find each of them out, or it proves nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from runner.storage import checkpoint, durable
from runner.storage.layout import JobPaths
from tests.faults import calls, disks, mutants, outages, play, tracer
from tests.faults.play import Hook, Stage
from tests.faults.scenes import NEW, OLD, Run, Scene, Tell
from tests.faults.table import Rules, Table
from tests.faults.tracer import Point
from tests.storage.snapshots import CREATED


class Control(Scene):
    """Writes the right bytes in a wrong way."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        checkpoint.write(folder / "image", self.snapshot(NEW), created=CREATED)
        self.image = (folder / "image").read_bytes()
        (folder / "image").unlink()


class InPlace(Control):
    """To the final name, piece by piece."""

    name = "in place"
    pieces_synced = False

    def act(self, folder: Path, tell: Tell) -> None:
        path = JobPaths(folder).checkpoint(NEW)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        for start in range(0, len(self.image), 4096):
            durable.write_all(fd, self.image[start : start + 4096])
            if self.pieces_synced:
                os.fsync(fd)
        os.fsync(fd)
        os.close(fd)
        durable.sync_folder(path.parent)
        tell({"event": "checkpoint", "step": NEW})


class InPlaceSynced(InPlace):
    """The same, with care."""

    name = "in place, synced"
    pieces_synced = True


class WithoutSync(Control):
    """The product's own way, but for fsync of files, or of folders."""

    def __init__(self, name: str, is_left_out: Callable[[int], bool]) -> None:
        self.name = name
        self._is_left_out = is_left_out

    def act(self, folder: Path, tell: Tell) -> None:
        fsync = os.fsync

        def partly(fd: int) -> None:
            if not self._is_left_out(os.fstat(fd).st_mode):
                fsync(fd)

        os.fsync = partly  # type: ignore[assignment]
        try:
            super().act(folder, tell)
        finally:
            os.fsync = fsync


class Hasty(Control):
    """Makes room first."""

    name = "evicts first"
    may_go = ("checkpoints/step-000000000010",)

    def act(self, folder: Path, tell: Tell) -> None:
        durable.remove(JobPaths(folder).checkpoint(OLD))
        super().act(folder, tell)


class Careless(Control):
    """Its temporary file has a name that no start knows."""

    name = "leaves a mess"

    def act(self, folder: Path, tell: Tell) -> None:
        path = JobPaths(folder).checkpoint(NEW)
        temporary = path.with_name(f"{os.getpid()}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT)
        durable.write_all(fd, self.image)
        os.fsync(fd)
        os.close(fd)
        durable.move(temporary, path)
        tell({"event": "checkpoint", "step": NEW})


class Deaf(Control):
    """A temporary file, fsync and rename, but no error is heard and nothing read back."""

    name = "deaf"

    def act(self, folder: Path, tell: Tell) -> None:
        path = JobPaths(folder).checkpoint(NEW)
        temporary = path.with_name(f".{path.name}.1-00000000.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT)
        for start in range(0, len(self.image), 4096):
            with suppress(OSError):
                os.pwrite(fd, self.image[start : start + 4096], start)
        with suppress(OSError):
            os.fsync(fd)
        os.close(fd)
        temporary.rename(path)
        durable.sync_folder(path.parent)
        tell({"event": "checkpoint", "step": NEW})


class Bare(Scene):
    """What most programs do: h5py, fsync, rename, fsync of the folder."""

    name = "bare h5py"
    values = np.arange(8192.0)

    def act(self, folder: Path, tell: Tell) -> None:
        path, temporary = folder / "bare.h5", folder / ".bare.h5.1-00000000.tmp"
        try:
            self._write(temporary)
        except (RuntimeError, KeyError, ValueError) as error:  # h5py's ways to tell of a disk that failed
            raise OSError(str(error)) from error
        temporary.rename(path)
        durable.sync_folder(folder)
        tell({"event": "checkpoint", "step": NEW})

    def _write(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("values", data=self.values, chunks=(1024,))
            file.flush()
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def judge(self, run: Run) -> Iterator[str]:
        path = run.folder / "bare.h5"
        if run.told_of("checkpoint") or path.exists():
            code = tracer.run(lambda: self._differs(path)).code  # to read it may crash
            if code:
                yield f"it was told to be saved, and holds something else ({code})"

    def _differs(self, path: Path) -> int:
        with h5py.File(path, "r") as file:
            return int(not np.array_equal(file["values"][()], self.values))


def caught(stage: Stage, points: list[Point], strike: Callable[[Point], Hook]) -> int:
    """Return after how many strikes something is wrong."""
    return sum(bool(stage.judge(stage.play(strike(point))[0])) for point in points)


def controls(rules: Rules, table: Table, work: Path) -> None:
    """Have each broken way found out where it must be."""
    with calls.ground(work) as folder:
        by_calls(folder, work, table)
        trusting(rules, folder, table)
    with disks.in_memory(work / "disks") as folder:
        for kind, how in disks.KINDS.items():
            with disks.made(folder / kind, how) as disk:
                by_cuts(disk, kind, folder, rules, table)


def by_calls(folder: Path, work: Path, table: Table) -> None:
    """Kill and fail those that do not need a power cut to be found out."""
    (kept := work / "kept").mkdir()
    for scene, names, strike in (
        (InPlace(), tracer.WRITES | {"fsync"}, play.kill),
        (Hasty(), tracer.WRITES, play.kill),
        (Careless(), tracer.WRITES | {"fsync"}, play.kill),
        (InPlace(), tracer.WRITES, lambda point: play.once(point, errno.EIO)),
        (Deaf(), tracer.WRITES, lambda point: play.once(point, errno.EIO)),
        (Deaf(), tracer.WRITES, lambda point: play.Shorter(point, 0.5)),
        (Bare(), tracer.WRITES, lambda point: play.once(point, errno.EIO)),
        (Bare(), tracer.WRITES, lambda point: play.once(point, errno.ENOSPC)),
    ):
        stage = Stage(scene, folder, kept)
        points = [point for point in stage.calls() if point.name in names]
        found = caught(stage, points, strike)
        verdict(table, f"{scene.name}, kills and errors", found, len(points))


def by_cuts(disk: disks.Disk, kind: str, folder: Path, rules: Rules, table: Table) -> None:
    """Cut the power right after "committed" was told, and in the midst of writing in place."""
    for scene in (WithoutSync("no fsync", stat.S_ISREG), WithoutSync("no folder fsync", stat.S_ISDIR)):
        stage = Stage(scene, disk.mounted, folder, disk.sync)
        times = rules.count(10, 2)
        found = sum(bool(outages.cut(stage, disk, None)[1]) for _ in range(times))
        verdict(table, f"{scene.name}, cuts, {kind}", found, times)
    stage = Stage(InPlaceSynced(), disk.mounted, folder, disk.sync)
    points = [point for point in stage.calls() if point.name in tracer.WRITES]
    found = sum(bool(outages.cut(stage, disk, point)[1]) for point in points)
    verdict(table, f"in place, synced, cuts, {kind}", found, len(points))


def trusting(rules: Rules, folder: Path, table: Table) -> None:
    """Read mutants with bare h5py: it gives other values, and no error."""
    path, times, believed = folder / "mutant", rules.count(300, 30), 0
    with h5py.File(path, "w") as file:
        file["values"] = Bare.values
    good = path.read_bytes()
    for number in range(times):
        data = bytearray(good)
        mutants.flipped(data, good, mutants.chance_of(rules, "trusting", number))
        path.write_bytes(data)
        believed += tracer.run(lambda: reads_other(path)).code == 7
    verdict(table, "bare h5py, mutants", believed, times)


def reads_other(path: Path) -> int:
    """Return 7 where bare h5py reads other values and tells no error."""
    try:
        with h5py.File(path, "r") as file:
            return 0 if np.array_equal(file["values"][()], Bare.values) else 7
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return 0


def verdict(table: Table, what: str, found: int, of: int) -> None:
    """It is a finding where a broken way was not found out."""
    problems = [] if found else [f"not found out in {of} runs"]
    table.add("controls", f"{what}: found out", end="", problems=problems, where="control", reached=found)
    table.rows["controls", f"{what}: found out"].runs += of - 1
