"""How near writing and reading a large checkpoint come to the disk itself.

    python benchmarks/bench_disk.py [--megabytes 1200] [--rounds 7] [--folder .]

Side by side, by turns, on one file system, with the same bytes: `dd conv=fsync` and `dd oflag=direct` from a
file in memory, and `checkpoint.write`: until all is on the disk, and with reading it back for verification,
which dd does not. Reading begins with a file that was dropped from the page cache: plain reads and direct
ones into one buffer that is used again and again, the same into new memory, as any restore must, and
`checkpoint.read`, every digest checked. Medians; a ratio is taken within each round, and then their median.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot

PIECE = 4 * 1024 * 1024
ARRAYS = 30


def snapshot_of(size: int) -> Snapshot:
    """Return a snapshot of about `size` bytes of random numbers."""
    chance = np.random.default_rng(1)
    arrays = {f"variables/{n:05d}": chance.random(size // ARRAYS // 4, np.float32) for n in range(ARRAYS)}
    return Snapshot(1, 0, {}, arrays)


def dd(source: Path, target: Path, *words: str) -> None:
    """Copy by dd(1)."""
    command = ["dd", f"if={source}", f"of={target}", f"bs={PIECE}", "status=none", *words]
    subprocess.run(command, check=True)


class Write:
    """`checkpoint.write`; notes when it begins to read back."""

    def __init__(self, path: Path, snapshot: Snapshot):
        self._path, self._snapshot = path, snapshot
        self._verify = checkpoint._verify_new
        checkpoint._verify_new = self._noted
        self.written_s: list[float] = []

    def __call__(self) -> None:
        self._began = time.perf_counter()
        checkpoint.write(self._path, self._snapshot, created="")

    def _noted(self, *arguments: object) -> None:
        self.written_s.append(time.perf_counter() - self._began)
        self._verify(*arguments)


def read(path: Path, *, direct: bool, into: mmap.mmap | None) -> None:
    """Read a file in pieces, into one buffer or, without one, into new memory for all of it."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    size = os.fstat(fd).st_size
    memory = new(-(-size // PIECE) * PIECE) if into is None else into
    view, offset = memoryview(memory), 0
    while offset < size:
        at = offset if into is None else 0
        offset += os.preadv(fd, [view[at : at + PIECE]], offset)
    os.close(fd)


def new(size: int) -> mmap.mmap:
    """Return memory that nothing has touched yet."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def cold(path: Path) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def show(title: str, taken: dict[str, list[float]], size: int, than: list[str]) -> None:
    """Print one table: medians, and how fast in parts of the faster one of `than`."""
    best = [min(values) for values in zip(*(taken[name] for name in than), strict=True)]
    better = " and ".join(than)
    print(f"\n{title}: {size / 1e6:.0f} MB, medians of {len(best)}; rate of the better of {better} = 1")
    for name, seconds in taken.items():
        ratios = sorted(b / s for b, s in zip(best, seconds, strict=True))
        middle = statistics.median(seconds)
        print(
            f"  {name:36}{1000 * middle:8.0f} ms{size / middle / 1e6:8.0f} MB/s"
            f"{statistics.median(ratios):8.2f}   ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk to be measured; default: here"
    )
    options = parser.parse_args()
    snapshot = snapshot_of(options.megabytes * 1_000_000)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".disk-") as folder, memory() as shared:
        bench(snapshot, Path(folder), Path(shared), options.rounds)


def memory() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that lies in memory."""
    return tempfile.TemporaryDirectory(dir="/dev/shm")


def bench(snapshot: Snapshot, folder: Path, shared: Path, rounds: int) -> None:
    """Measure and print both tables."""
    ours, theirs, source = folder / "ours.weights.h5", folder / "theirs", shared / "source"
    write = Write(ours, snapshot)
    write()
    size = ours.stat().st_size
    with ours.open("rb") as file, source.open("wb") as copy:
        while piece := file.read(PIECE):
            copy.write(piece)
    writes: dict[str, Callable[[], object]] = {
        "dd conv=fsync": lambda: dd(source, theirs, "conv=fsync"),
        "dd oflag=direct": lambda: dd(source, theirs, "oflag=direct", "conv=fsync"),
        "checkpoint.write, with reading back": write,
    }
    buffer = new(PIECE)
    reads: dict[str, Callable[[], object]] = {
        "plain reads": lambda: read(ours, direct=False, into=buffer),
        "direct reads": lambda: read(ours, direct=True, into=buffer),
        "plain reads, new memory": lambda: read(ours, direct=False, into=None),
        "direct reads, new memory": lambda: read(ours, direct=True, into=None),
        "checkpoint.verify": lambda: checkpoint.verify(ours),
        "checkpoint.read": lambda: checkpoint.read(ours),
    }
    taken: dict[str, list[float]] = {name: [] for name in [*writes, *reads]}
    for _ in range(rounds):
        for name, action in writes.items():
            theirs.unlink(missing_ok=True)
            os.sync()
            taken[name].append(timed(action))
        theirs.unlink(missing_ok=True)
        for name, action in reads.items():
            os.sync()
            cold(ours)
            taken[name].append(timed(action))
    written = {name: taken[name] for name in writes}
    written = {**written, "checkpoint.write, until on the disk": write.written_s[-rounds:]}
    show("writing", written, size, ["dd conv=fsync", "dd oflag=direct"])
    show("reading, cold", {name: taken[name] for name in reads}, size, ["plain reads", "direct reads"])


if __name__ == "__main__":
    main()
