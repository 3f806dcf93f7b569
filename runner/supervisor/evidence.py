"""Evidence about an attempt that is to be ended because it hangs: what it was doing, and with what.

Run by the shim as `python -I -S evidence.py ATTEMPT_DIR WORKER_PID`; standard library only. It writes
`stacks.txt` (each thread's place in the kernel, then Python's stacks of all threads, by the worker's own
faulthandler, and py-spy's where that is installed) and `evidence.txt` (processes, open files, progress, last
metrics, GPUs, memory). What may block, as reading the memory map of a process in uninterruptible sleep may,
comes last: the shim waits for this program no longer than a few seconds, and kills it then. Each part is
bounded, and one that fails says so and costs no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

#: No more than this of anything.
PART_BYTES_MAX = 1 << 18
PROCESSES_MAX, THREADS_MAX, FILES_MAX, LINES = 64, 256, 1000, 20
#: For the worker's faulthandler, and for programs of others.
PYTHON_S, PROGRAM_S = 2.0, 3.0


def main() -> None:
    """Write everything, the quickest first."""
    folder, worker = Path(sys.argv[1]), int(sys.argv[2])
    pidfd = os.pidfd_open(worker)  # before the look at whose it is: that one, or none
    if parent_of(worker) != os.getppid():
        return
    tree = family(worker)
    stacks = folder / "stacks.txt"
    with stacks.open("ab") as out:
        write(out, f"/proc/{worker}/status", read, f"/proc/{worker}/status")
        for pid in tree:
            write(out, f"threads of {pid} in the kernel", threads, pid)
    with (folder / "evidence.txt").open("ab") as out:
        write(out, "processes", processes, tree)
        ask_python(worker, pidfd, stacks)
        for pid in tree:
            write(out, f"open files of {pid}", files, pid)
        write_reports(out, folder)
        write(out, "GPUs", run, "nvidia-smi")
        for pid in tree:
            write(out, f"memory of {pid}", read, f"/proc/{pid}/smaps_rollup")
            write(out, f"command line of {pid}", read, f"/proc/{pid}/cmdline")
    with stacks.open("ab") as out:
        write(out, "py-spy", run, "py-spy", "dump", "--nonblocking", "--pid", str(worker))


def write(out: BinaryIO, title: str, tell: Callable[..., str], *of: object) -> None:
    """Write one part; what fails says so in its place, and a program that is not there nothing."""
    try:
        text = tell(*of)
    except FileNotFoundError:
        return
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as failure:
        text = f"(not to be had: {failure})"
    text = text.replace("\0", " ").rstrip()
    out.write(f"--- {title}\n{text}\n".encode(errors="replace")[:PART_BYTES_MAX])
    out.flush()


def write_reports(out: BinaryIO, folder: Path) -> None:
    """Write what the attempt itself reported last."""
    state = Path(json.loads((folder / "launch.json").read_bytes())["state"])
    write(out, "progress.json", read, state / "progress.json")
    for path in (state / "metrics.jsonl", folder / "facts.jsonl"):
        write(out, f"last lines of {path.name}", tail, path)


def read(path: str | Path) -> str:
    """Return the beginning of a file."""
    with open_quickly(path) as file:
        return file.read(PART_BYTES_MAX).decode(errors="replace")


def tail(path: Path) -> str:
    """Return the last lines of a file."""
    with open_quickly(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - PART_BYTES_MAX // 2))
        return "\n".join(file.read(PART_BYTES_MAX).decode(errors="replace").splitlines()[-LINES:])


def open_quickly(path: str | Path) -> BinaryIO:
    """Open a file to be read; a FIFO that somebody has put in its place does not block."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def family(worker: int) -> list[int]:
    """List the worker and its descendants, nearest first."""
    found = [worker]
    for pid in found:  # it grows
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in read(thread / "children").split()]
        if len(found) >= PROCESSES_MAX:
            break
    return found[:PROCESSES_MAX]


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])
    return 0


def processes(pids: list[int]) -> str:
    """Describe processes, one a line."""
    return "\n".join(map(process, pids))


def process(pid: int) -> str:
    """Describe a process on one line, from its stat (proc(5))."""
    try:
        name, rest = read(f"/proc/{pid}/stat").split("(", 1)[1].rsplit(")", 1)
    except OSError:
        return f"{pid}: gone"
    fields = rest.split()
    tick = os.sysconf("SC_CLK_TCK")
    user_s, system_s, rss = int(fields[11]) / tick, int(fields[12]) / tick, int(fields[21])
    return (
        f"{pid}: {name}, state {fields[0]}, parent {fields[1]}, threads {fields[17]}, user {user_s:.2f} s,"
        f" system {system_s:.2f} s, resident {rss * os.sysconf('SC_PAGE_SIZE') >> 10} KiB"
    )


def threads(pid: int) -> str:
    """Describe each thread: its state, what it waits for, and its kernel stack where that may be read."""
    return "\n".join(map(thread, sorted(Path(f"/proc/{pid}/task").iterdir())[:THREADS_MAX]))


def thread(folder: Path) -> str:
    """Describe one thread."""
    about = {}
    for what in ("stat", "comm", "wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            about[what] = read(folder / what).strip()
    state = about.get("stat", ") ?").rsplit(")", 1)[1].split()[0]
    place = ", ".join(f"{what} {about[what]}" for what in ("wchan", "syscall") if about.get(what))
    stack = "".join(f"\n    {line}" for line in about.get("stack", "").splitlines())
    return f"{folder.name}: {about.get('comm', '?')}, state {state}, {place}{stack}"


def files(pid: int) -> str:
    """List what a process has open."""
    return "\n".join(links(Path(f"/proc/{pid}/fd")))


def links(folder: Path) -> Iterator[str]:
    """Yield the links in a folder, by number."""
    for link in sorted(folder.iterdir(), key=lambda one: int(one.name))[:FILES_MAX]:
        with contextlib.suppress(OSError):
            yield f"{link.name} -> {link.readlink()}"


def ask_python(worker: int, pidfd: int, stacks: Path) -> None:
    """Let the worker's faulthandler append its stacks, where it has one, and wait until it has."""
    caught = next(line for line in read(f"/proc/{worker}/status").splitlines() if line.startswith("SigCgt"))
    if not int(caught.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1:
        return  # the signal would end it
    before = size = stacks.stat().st_size
    signal.pidfd_send_signal(pidfd, signal.SIGUSR2)
    deadline = time.monotonic() + PYTHON_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        last, size = size, stacks.stat().st_size
        if before < size == last:
            return


def run(program: str, *arguments: str) -> str:
    """Return what a program of others says, which may hang as well."""
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        raise FileNotFoundError(program)
    with subprocess.Popen(
        [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        try:
            return child.communicate(timeout=PROGRAM_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            child.kill()
            raise


if __name__ == "__main__":
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        main()
    os._exit(0)
