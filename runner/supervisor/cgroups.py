"""Control groups (cgroup v2) for the attempts, where the daemon was given a subtree of its own.

systemd marks such a subtree by the extended attribute `user.delegate` (Delegate=yes, systemd 251);
$RUNNER_CGROUP names another one, say in a container. In it:

    daemon/              the supervisor, its shims, keepers and mirrors
    NAME.0001-1f2e3d4c/  an attempt's worker and all that it starts; the end is a digest of the home

The kernel allows no processes beside groups that have controllers, hence `daemon`. systemd starts a new
daemon beside them all the same; `release` makes that possible when one has died and its workers train on.

Limits: the controllers that we get are used, whichever they are; without any, groups still hold an attempt
together and kill it at one blow.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.job import Job
from runner.storage.layout import Home
from runner.supervisor.attemptgroup import Group

log = logging.getLogger(__name__)

VARIABLE = "RUNNER_CGROUP"
_LEAF, _CONTROL = "daemon", ".control"
_CONTROLLERS = ("memory", "pids", "cpu")
#: cpu.weight of one CPU in `resources.cpus`, and the kernel's bounds.
_WEIGHT, _WEIGHT_MAX = 100, 10_000


@dataclass(frozen=True)
class Groups:
    """The groups of one home's attempts."""

    root: Path
    mark: str  #: at the end of the names of this home's groups

    def about(self, job: Job) -> dict[str, Any]:
        """Return what launch.json tells the shim about the group of the job's newest attempt."""
        limits = job.spec.limits
        return {
            "path": str(self.root / f"{job.name}.{job.attempt:04d}-{self.mark}"),
            "memory_bytes": limits.memory_bytes,
            "pids": limits.pids,
            "cpu_weight": max(1, min(_WEIGHT_MAX, round(_WEIGHT * job.spec.resources.cpus))),
        }

    def clear(self, name: str) -> bool:
        """Kill and remove what attempts of the job have left; tell whether nothing is left."""
        left = [path for path in self._of(name) if not _end(path)]
        return not left

    def sweep(self, living: set[str]) -> None:
        """Kill and remove what is left of attempts of jobs that are not `living`."""
        for name in {path.name.rpartition(".")[0] for path in self._ours()} - living:
            self.clear(name)

    def _of(self, name: str) -> Iterator[Path]:
        return (path for path in self._ours() if path.name.rpartition(".")[0] == name)

    def _ours(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from [path for path in self.root.iterdir() if path.name.endswith(f"-{self.mark}")]


def _end(path: Path) -> bool:
    group = Group({"path": str(path)})
    group.kill()
    return group.remove()


def take(home: Home, environ: Mapping[str, str]) -> Groups | None:
    """Take hold of the subtree that is ours, and say so; None where there is none.

    Moves this process into a leaf of it, so that the controllers may be handed on.
    """
    root = find(environ)
    if root is None:
        log.info("no cgroup was delegated to the daemon: sessions and a subreaper hold each attempt together")
        return None
    try:
        (root / _LEAF).mkdir(exist_ok=True)
        (root / _LEAF / "cgroup.procs").write_text("0")
        handed = [name for name in _CONTROLLERS if _hand_on(root, name)]
        mark = mark_of(home)
    except OSError as error:
        log.warning("%s: cannot be used for the attempts: %s", root, error)
        return None
    log.info("each attempt gets a cgroup of its own in %s, with %s", root, ", ".join(handed) or "no limits")
    return Groups(root, mark)


def mark_of(home: Home) -> str:
    """Return what tells the groups of this home from those of others, in other containers too.

    Raises:
        OSError: the home is not there.
    """
    about = home.root.stat()
    told = b"%d %d %b" % (about.st_dev, about.st_ino, os.fsencode(home.root))
    return hashlib.sha256(told).hexdigest()[:8]


def release(environ: Mapping[str, str]) -> None:
    """Let systemd start a new daemon beside groups that live on: limits rest until it has come.

    Each shim puts its own in force again within a second after that. What the kernel has counted until then
    is forgotten.
    """
    root = find(environ)
    for name in _CONTROLLERS if root is not None else ():
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"-{name}")  # type: ignore[operator]


def find(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of the subtree that is ours alone; None where there is none."""
    if environ.get(VARIABLE):
        return _writable(Path(environ[VARIABLE]))
    try:
        own = _own(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None
    if own is not None and own.name in {_LEAF, _CONTROL}:
        own = own.parent
    with contextlib.suppress(OSError):
        if own is not None and os.getxattr(own, "user.delegate") == b"1":
            return _writable(own)
    return None


def _writable(root: Path) -> Path | None:
    files = (root, root / "cgroup.procs", root / "cgroup.subtree_control")
    return root if all(os.access(path, os.W_OK) for path in files) else None


def _own(cgroup: str, mountinfo: str) -> Path | None:
    """Return the folder of this process's group, out of /proc/self/cgroup and mountinfo (cgroups(7))."""
    path = next((line[3:] for line in cgroup.splitlines() if line.startswith("0::/")), None)
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if path is not None and right.split()[0] == "cgroup2":
            top, point = left.split()[3:5]
            if path == top or path.startswith(top.rstrip("/") + "/"):
                return Path(point) / path[len(top) :].lstrip("/")
    return None


def _hand_on(root: Path, name: str) -> bool:
    """Let the groups below have a controller; tell whether they do."""
    with contextlib.suppress(OSError):
        (root / "cgroup.subtree_control").write_text(f"+{name}")
    return name in (root / "cgroup.subtree_control").read_text().split()
