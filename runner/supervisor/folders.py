"""Folder events: wakes the loop when something changes in `jobs/` or among the requests.

Inotify through watchdog where it works, watchdog's polling where it does not (its limits are used up, or the
file system sends no events). Events get lost all the same, so the supervisor also looks now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

log = logging.getLogger(__name__)

_POLL_S = 2.0
#: Types of file systems that deliver no events for changes made elsewhere.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "beegfs", "fuse.sshfs"}


class _Wake(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in {"created", "moved", "modified", "deleted"}:
            self._wake()


def watch(folders: list[Path], wake: Callable[[], None]) -> BaseObserver:
    """Call `wake`, from another thread, whenever an entry of one of `folders` changes."""
    try:
        observer = _observer(folders[0])
        _start(observer, folders, wake)
    except OSError as error:
        log.warning("no folder events (%s): polling every %g s instead", error, _POLL_S)
        observer = PollingObserver(timeout=_POLL_S)
        _start(observer, folders, wake)
    return observer


def _observer(folder: Path) -> BaseObserver:
    kind = filesystem_type(folder, Path("/proc/self/mountinfo").read_text())
    if kind in _REMOTE:
        log.info("%s is on %s: polling it every %g s", folder, kind, _POLL_S)
        return PollingObserver(timeout=_POLL_S)
    return Observer()


def _start(observer: BaseObserver, folders: list[Path], wake: Callable[[], None]) -> None:
    handler = _Wake(wake)
    for folder in folders:
        observer.schedule(handler, str(folder), recursive=False)
    observer.daemon = True
    observer.start()


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that holds `path`, out of /proc/PID/mountinfo's text (proc(5))."""
    best, kind = "", ""
    target = str(path.resolve())
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
