"""What the daemon costs, and how soon it acts: with ten thousand jobs, with fifty workers, and idle.

Real daemons on homes of their own. The queue is held by one job that takes all but half a core, so that the
rest wait, each with a record or as a fresh folder; what is submitted meanwhile has a higher priority and asks
for less than that half: a free slot. Times are from the daemon's start, or from the rename that puts a job's
folder in place, to the first line of its worker. Shares are processor time (schedstat of its threads), which
other load on the machine changes little; seconds of wall time it does change.

Usage: python benchmarks/bench_daemon.py [--quick] [--jobs N] [--workers N] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from runner.storage import eventlog, records
from runner.storage.layout import Home
from runner.supervisor.book import moment
from runner.supervisor.intake import take_up

#: A figure's name, and its target; None: none was set.
TARGETS: dict[str, float | None] = {
    "empty: idle (% of a core)": 0.1,
    "empty: RSS (MB)": None,
    "records: start to READY (s)": 3.0,
    "records: start to READY, processor time (s)": None,
    "records: RSS (MB)": 120,
    "records: PSS (MB)": 120,
    "records: submission to start (s)": 0.2,
    "records: idle (% of a core)": 0.1,
    "folders: start to READY (s)": 3.0,
    "folders: start to first worker (s)": 3.0,
    "folders: submission to start meanwhile (s)": 0.2,
    "folders: taken up all (s)": None,
    "folders: processor time of that (s)": None,
    "folders: RSS (MB)": 120,
    "workers: a sleep each (% of a core)": 2.0,
    "workers: progress each second (% of a core)": None,
    "workers: progress, and a full queue (% of a core)": None,
}
HOLDER, PROBES, WAIT_S = "0-holder", 5, 600.0
REPORTS = (
    'i=0; while :; do i=$((i+1)); echo "{\\"attempt\\": $RUNNER_ATTEMPT, \\"phase\\": \\"train\\", '
    '\\"step\\": $i, \\"time\\": $i}" > $RUNNER_STATE/p; mv $RUNNER_STATE/p $RUNNER_STATE/progress.json; '
    "sleep 1; done"
)
Figures = dict[str, float]


class Daemon:
    """A daemon on a home; `ready_s` is what it took to say READY."""

    def __init__(self, home: Home) -> None:
        self.home = home
        address = home.root / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            address.unlink(missing_ok=True)
            sock.bind(str(address))
            sock.settimeout(WAIT_S)
            self.began_ns = time.time_ns()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runner.supervisor", "--home", str(home.root), "--no-mirrors"],
                env={**os.environ, "NOTIFY_SOCKET": str(address)},
                stderr=(home.root / "daemon.log").open("ab"),
            )
            while b"READY=1" not in sock.recv(4096):
                pass
        self.ready_s = (time.time_ns() - self.began_ns) / 1e9

    def end(self) -> None:
        """Let it drain."""
        self._process.terminate()
        self._process.wait()

    def cpu_s(self) -> float:
        """Return the processor time that its threads have used."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_mb(self, what: str) -> float:
        """Return its resident memory; `what` is Rss, or Pss, in which shared pages count in part."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        found = re.search(rf"^{what}:\s+(\d+)", text, re.MULTILINE)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def share(self, seconds: float) -> float:
        """Return how much of one core it uses over `seconds`, in percent, once it has come to rest."""
        self.rest()
        before, began = self.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return 100 * (self.cpu_s() - before) / (time.monotonic() - began)

    def rest(self) -> None:
        """Wait until it does little for a second, or for a minute."""
        deadline = time.monotonic() + 60
        before = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(1)
            if self.cpu_s() - before < 0.2:
                return
            before = self.cpu_s()

    def probe_s(self, name: str) -> float:
        """Submit a job for which there is room; return the seconds to its worker's first line."""
        settings = 'command = ["sh", "-c", "date +%s%N > began"]\npriority = 1\n[resources]\ncpus = 0.1\n'
        submitted_ns = submit(self.home, name, settings)
        return (self.began_at(name) - submitted_ns) / 1e9

    def began_at(self, name: str) -> int:
        """Return when the job's worker began, in nanoseconds since the epoch."""
        path, deadline = self.home.folder(name) / "began", time.monotonic() + WAIT_S
        while not path.exists() or not (text := path.read_text()).endswith("\n"):
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start within {WAIT_S:g} s")
            time.sleep(0.002)
        return int(text)

    def wait_taken_up(self, count: int) -> float:
        """Wait until so many jobs have a record; return the seconds since its start."""
        deadline = time.monotonic() + WAIT_S
        while sum(1 for _ in self.home.state.iterdir()) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"not {count} jobs within {WAIT_S:g} s")
            time.sleep(0.05)
        return (time.time_ns() - self.began_ns) / 1e9


@contextlib.contextmanager
def homes() -> Iterator[Home]:
    """Yield an empty home, and delete it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        home = Home(Path(folder))
        home.create()
        yield home


@contextlib.contextmanager
def serving(home: Home) -> Iterator[Daemon]:
    """Yield a daemon, and let it drain."""
    daemon = Daemon(home)
    try:
        yield daemon
    finally:
        daemon.end()


def submit(home: Home, name: str, settings: str) -> int:
    """Put a whole job folder in place in one step; return when that was, in nanoseconds since the epoch."""
    staged = home.jobs / f".{name}.tmp"
    staged.mkdir()
    (staged / "job.toml").write_text(settings)
    (staged / ".submitted.json").write_text('{"version": 1, "source": null}')
    staged.rename(home.folder(name))
    return time.time_ns()


def sleeping(cpus: float, program: str = "exec sleep 3600") -> str:
    """Return the settings of a job that does not end by itself, and notes when it began."""
    command = json.dumps(["sh", "-c", f"date +%s%N > began; {program}"])
    return f'command = {command}\n[limits]\ngrace = "1s"\n[resources]\ncpus = {cpus}\n'


def fill(home: Home, count: int) -> None:
    """Put `count` folders in place of which only the first can run."""
    submit(home, HOLDER, sleeping((os.cpu_count() or 1) - 0.5))
    for number in range(1, count):
        submit(home, f"job-{number:06d}", sleeping(1))


def record(home: Home) -> None:
    """Give each folder the record that a daemon would have made of it, without its care for power cuts."""
    fsync, fdatasync = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda _fd: None  # type: ignore[assignment]
    try:
        for order, name in enumerate(list(home.submitted()), 1):
            job, paths = take_up(home, name, order, moment()), home.job(name)
            records.save_job(paths.record, replace(job, outbox=(), reason="waits for a free slot"))
            eventlog.append(paths.events, job.outbox)
    finally:
        os.fsync, os.fdatasync = fsync, fdatasync


def with_records(home: Home, seconds: float, number: int) -> Figures:
    """Start with a record of each job there already."""
    with serving(home) as daemon:
        cpu_s = daemon.cpu_s()
        daemon.rest()
        figures = {
            "records: start to READY (s)": daemon.ready_s,
            "records: start to READY, processor time (s)": cpu_s,
            "records: RSS (MB)": daemon.memory_mb("Rss"),
            "records: PSS (MB)": daemon.memory_mb("Pss"),
        }
        probes = [daemon.probe_s(f"probe-{number}-{i}") for i in range(PROBES)]
        return {
            **figures,
            "records: submission to start (s)": statistics.median(probes),
            "records: idle (% of a core)": daemon.share(seconds),
        }


def with_folders(count: int) -> Figures:
    """Start with fresh folders only."""
    with homes() as home:
        fill(home, count)
        with serving(home) as daemon:
            first_s = (daemon.began_at(HOLDER) - daemon.began_ns) / 1e9
            probe_s = daemon.probe_s("probe")
            all_s = daemon.wait_taken_up(count)
            daemon.rest()
            return {
                "folders: start to READY (s)": daemon.ready_s,
                "folders: start to first worker (s)": first_s,
                "folders: submission to start meanwhile (s)": probe_s,
                "folders: taken up all (s)": all_s,
                "folders: processor time of that (s)": daemon.cpu_s(),
                "folders: RSS (MB)": daemon.memory_mb("Rss"),
            }


def with_workers(home: Home, workers: int, seconds: float, program: str, figure: str) -> Figures:
    """Supervise so many workers at once."""
    with serving(home) as daemon:
        for number in range(workers):
            submit(home, f"worker-{number:03d}", "priority = 1\n" + sleeping(0.01, program))
        for number in range(workers):
            daemon.began_at(f"worker-{number:03d}")
        return {figure: daemon.share(seconds)}


def idle(seconds: float) -> Figures:
    """Serve an empty home."""
    with homes() as home, serving(home) as daemon:
        share = daemon.share(seconds)
        return {"empty: idle (% of a core)": share, "empty: RSS (MB)": daemon.memory_mb("Rss")}


def measurements(jobs: int, workers: int, rounds: int, seconds: float) -> Iterator[Callable[[], Figures]]:
    """Yield what is to be measured, one piece after the other."""
    for _ in range(rounds):
        yield lambda: idle(seconds)
        for program, figure in (
            ("exec sleep 3600", "workers: a sleep each (% of a core)"),
            (REPORTS, "workers: progress each second (% of a core)"),
        ):
            with homes() as home:
                yield lambda: with_workers(home, workers, seconds, program, figure)  # noqa: B023 - run at once
        yield lambda: with_folders(jobs)
    with homes() as home:
        fill(home, jobs)
        record(home)
        for number in range(rounds):
            yield lambda: with_records(home, seconds, number)  # noqa: B023 - run at once
        yield lambda: with_workers(
            home, workers, seconds, REPORTS, "workers: progress, and a full queue (% of a core)"
        )


def table(found: dict[str, list[float]], about: str) -> bool:
    """Print each figure's median and extremes beside its target; tell whether all are kept."""
    kept = True
    print(f"\n{about}")
    print(f"{'':52}{'median':>9}{'min':>9}{'max':>9}{'target':>9}")
    for name, target in TARGETS.items():
        if values := found.get(name):
            middle = statistics.median(values)
            kept &= target is None or middle <= target
            verdict = "" if target is None else f"{target:9g}{'' if middle <= target else '  MISSED'}"
            print(f"{name:52}{middle:9.3f}{min(values):9.3f}{max(values):9.3f}{verdict}")
    return kept


def main() -> int:
    """Measure and print one table; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="What the daemon costs, and how soon it acts.")
    parser.add_argument("--quick", action="store_true", help="1,000 jobs, 10 workers, one round of 10 s")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="over which a share of a core is taken")
    options = parser.parse_args()
    usual = (1000, 10, 1, 10.0) if options.quick else (10_000, 50, 3, 60.0)
    given = (options.jobs, options.workers, options.rounds, options.seconds)
    jobs, workers, rounds, seconds = (one or other for one, other in zip(given, usual, strict=True))
    found: dict[str, list[float]] = {}
    for measure in measurements(int(jobs), int(workers), int(rounds), seconds):
        for name, value in measure().items():
            found.setdefault(name, []).append(value)
            print(f"{name}: {value:.3f}", file=sys.stderr)
    about = f"{jobs} jobs, {workers} workers, {rounds} rounds, shares over {seconds:g} s"
    return int(not table(found, about))


if __name__ == "__main__":
    sys.exit(main())
