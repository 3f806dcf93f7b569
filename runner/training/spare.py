"""The worker that waits: a process that has imported what the job imports, ready to be its next attempt.

Started like any worker, by a shim that waits too (`supervisor/spare_shim.py`), with RUNNER_SPARE in its
environment: the number of a socket to that shim. `stand_by` returns at once where there is none; else it
imports, says so, and returns when this process is to be the worker: in the same environment, with the next
attempt's log as its output. All the rest is as in a process that was just started.

- What is imported is what the job's running attempt has noted (`imported`), for as long as that is sure to
  make no difference; the script's own modules never.
- What is no longer as it was (a package's file, a module in the job's folder of a package's name) makes this
  process begin anew by exec, under the same pid.
- It ends by itself where memory becomes short, and with its shim.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import importlib.machinery
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from runner.storage.layout import JobPaths
from runner.training import imported, imports
from runner.training.background import Background, shortage
from runner.training.entropy import Entropy
from runner.training.hot import Hot, hindrance
from runner.training.imported import Imported
from runner.training.launch import KEEPER, SPARE

#: In the environment: why this process, which has begun anew, is not to be hot.
_COLD = "RUNNER_SPARE_COLD"
#: Of a text that goes into a message, no more: what does not fit is cut off, and is no JSON then.
_REASON_MAX = 500
#: What changes files without Python's knowing, and is looked after in its functions (`guard`).
_UNGUARDED = frozenset({"keras", "tensorflow", "h5py"})
#: What must be free to begin, as nobody knows what is needed; and later, not to end.
_FREE_BYTES = 2 << 30
_LEAST_BYTES = 512 << 20
_LOOK_S = 2.0
#: What was looked at when the worker died is not looked at again for so long.
_LOOKED_S = 2.0
_MESSAGE_BYTES = 65536
#: Its exit code: nobody may take it for an attempt that has succeeded.
UNUSED = 75


class UnfitError(Exception):
    """The process cannot stand in for one that is just started; the text says why."""


class ShortError(UnfitError):
    """Memory is short, now."""


@dataclass(frozen=True)
class Stood:
    """What a process that waited brings with it."""

    imported: Imported  #: with the entropy that packages have drawn from
    hot: Hot | None  #: it has not been wanted yet, and runs the script meanwhile


def stand_by() -> Stood | None:
    """Wait to become the worker where this process was started to; None where it is the worker already."""
    number, cold = os.environ.pop(SPARE, None), os.environ.pop(_COLD, "")
    if number is None:
        return None
    channel = socket.socket(fileno=int(number))
    channel.set_inheritable(False)
    waiting = Waiting(channel, cold)
    try:
        return waiting.wait()
    except UnfitError as reason:
        waiting.leave(str(reason), again=isinstance(reason, ShortError))


class Waiting:
    """One process that waits."""

    def __init__(self, channel: socket.socket, cold: str):
        """Begin.

        Args:
            channel: to the shim.
            cold: why it must not be hot; "" where it may.
        """
        self._channel = channel
        self._environ = dict(os.environ)
        self._mask = os.umask(0)
        os.umask(self._mask)
        self._plan = json.loads(JobPaths(Path(os.environ["RUNNER_STATE"])).spare.launch.read_bytes())
        self._cold = cold or (hindrance(self._environ) if self._plan["spare"] == "hot" else "")
        self.entropy = Entropy(int(self._plan["seed"]))
        self._imported = Imported(self.entropy, self._environ)
        self._background = Background(lambda rest_s: bool(select.select([channel], [], [], rest_s)[0]))
        self._files: dict[str, int] = {}
        self._left: list[str] = []
        self._changed: dict[str, str] = {}  # in the environment, as the shim has told
        self._looked_s = -math.inf  # when all was found to be as it was
        #: returns the path of something that is not as the script has found it; "" where all is
        self.find_change: Callable[[], str] = str
        self._handed: list[int] = []  # descriptors for the keeper's sake

    def wait(self) -> Stood:
        """Import; then say so, and wait to be wanted, or, where it is to be hot, leave that to the script.

        Raises:
            UnfitError: this process is of no use.
        """
        self._demand(_FREE_BYTES)
        try:
            self._background.enter()
            self._left = self._import_all()
            gc.collect()  # else one of all that was imported falls due soon, and holds up the worker
        except OSError as error:
            raise UnfitError(str(error)) from error
        if self._plan["spare"] == "hot" and not self._cold and not _UNGUARDED.isdisjoint(self._left):
            self._cold = "the script imports what can be guarded only once it is there"
        if self._plan["spare"] == "hot" and not self._cold:
            # Most attempts that take over have a checkpoint by then; else all is begun anew.
            told = {name: str(self._plan["env"][name]) for name in ("RUNNER_ATTEMPT", "RUNNER_RESUME")}
            hot = Hot(self, {**told, "RUNNER_RESUME": "1"})
            hot.enter()
            return Stood(self._imported, hot)
        self.take_over(*self.offer(hot=False, why=self._cold))
        return Stood(self._imported, None)

    @property
    def plan_path(self) -> Path:
        """What this process was started by: as the launch.json of the attempt that it may become."""
        return JobPaths(Path(self._environ["RUNNER_STATE"])).spare.launch

    def offer(self, *, hot: bool, why: str) -> tuple[dict[str, Any], list[int]]:
        """Say that this process is ready, and wait to be wanted; return the orders, with descriptors.

        Args:
            hot: it has run the script up to its `fit`.
            why: not, or not all of the step is ready; in words.

        Ends the process where it is of no use.
        """
        try:
            self._files = imported.files()
            self._background.work_again()
            self._find_shadows()
            ready = {
                "ready": True,
                "modules": len(self._files),
                "left": len(self._left),
                "until": self._left[0][:_REASON_MAX] if self._left else None,
                "hot": hot,
                **({"reason": why[:_REASON_MAX]} if why else {}),
            }
            self._channel.send(json.dumps(ready).encode())
            return self._orders()
        except (UnfitError, OSError) as reason:
            self.leave(str(reason), again=isinstance(reason, ShortError))

    def _import_all(self) -> list[str]:
        """Import what the job does; return what is left to the script, the first of which had to be."""
        wanted = json.loads(Path(self._plan["imported"]).read_bytes())
        sys.argv = [self._plan["entry"], *self._plan["args"]]
        sys.path[0] = str((Path.cwd() / self._plan["entry"]).resolve().parent)
        self.entropy.install()
        imports.install()
        imports.watch(self._note)
        changed = wanted["changed"]
        original = {name: os.environ.get(name) for name in changed}
        _set_environ(changed)
        try:
            return self._import_in(wanted["imports"])
        finally:
            _set_environ(original)

    def _note(self, name: str) -> None:
        self._imported.note(name)
        self._background.pace()

    def _import_in(self, groups: list[tuple[str, list[str]]]) -> list[str]:
        wanted = [(situation, name) for situation, names in groups for name in names]
        for place, (situation, name) in enumerate(wanted):
            if name in sys.modules:
                continue
            if self._imported.situation() != situation:
                return [name for _, name in wanted[place:] if name not in sys.modules]
            self._demand(_LEAST_BYTES)
            self._import(name)
        return []

    def _import(self, name: str) -> None:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UnfitError(f"{name} cannot be imported before the script runs: {error!r}") from error

    def _find_shadows(self) -> None:
        """Look for modules in the script's folder that the script would have got instead of packages.

        Raises:
            UnfitError: there are some.
        """
        folder = sys.path[0]
        there = {_module(entry) for entry in os.scandir(folder)} & self._imported.asked - {""}
        own = {name for name in there if _place(sys.modules.get(name)).startswith(f"{folder}/")}
        if shadows := sorted(there - own):
            raise UnfitError(f"the job's folder has a {shadows[0]} of its own")

    def _find_changes(self) -> None:
        """Look whether all is as it was imported, and as the script has found it.

        Raises:
            UnfitError, OSError: it is not, or that cannot be known.
        """
        self._find_shadows()
        if files := imported.have_changed(self._files) or [*filter(None, [self.find_change()])]:
            raise UnfitError(f"{files[0]} has changed")

    def _demand(self, least_bytes: int) -> None:
        if short := shortage(least_bytes):
            raise ShortError(short)

    def _orders(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for the shim's orders; return them, and the descriptors that came with them."""
        watched, training = select.poll(), self._watch_training()
        watched.register(self._channel, select.POLLIN)
        if training >= 0:
            watched.register(training, select.POLLIN)
        while True:
            found = dict(watched.poll(1000 * _LOOK_S))
            if self._channel.fileno() in found:
                message, fds = _receive(self._channel)
                if not message:
                    os._exit(UNUSED)  # its shim has ended
                return json.loads(message), fds
            if training in found:  # the orders will follow: what the attempt has left is written first
                watched.unregister(training)
                os.close(training)
                with contextlib.suppress(UnfitError, OSError):
                    self._find_changes()
                    self._looked_s = time.monotonic()
            else:
                self._demand(_LEAST_BYTES)

    def _watch_training(self) -> int:
        """Return a descriptor that tells of the end of the worker that trains; -1 where there is none."""
        beside = JobPaths(self.plan_path.parent.parent).attempt(int(self._plan["attempt"]) - 1)
        try:
            return os.pidfd_open(int(json.loads(beside.shim.read_bytes())["worker"]["pid"]))
        except (OSError, ValueError, TypeError, KeyError):
            return -1

    def take_over(
        self,
        orders: dict[str, Any],
        fds: list[int],
        settle: Callable[[], None] = lambda: None,
        told: Mapping[str, str] | None = None,
    ) -> None:
        """Become the worker: with the attempt's log, its environment and its memory for snapshots.

        Args:
            orders: the shim's.
            fds: that came with them.
            settle: called when the log is there.
            told: what the script has been told in its environment already.
        """
        log, *self._handed = fds
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        settle()
        self._changed = dict(orders["environ"])
        try:
            self._background.leave()
            if time.monotonic() - self._looked_s > _LOOKED_S:
                self._find_changes()
            if told is not None and told != self._changed:
                raise UnfitError("the script was told of another attempt")
        except (UnfitError, OSError) as reason:
            self._channel.send(b"{}")
            self.begin_anew(str(reason))
        self._channel.send(b"{}")
        self._channel.close()
        _set_environ(self._told())

    def _told(self) -> dict[str, str]:
        """Return what the worker's environment has beyond that of a process that waits."""
        handed = {KEEPER: ",".join(str(fd) for fd in self._handed)} if self._handed else {}
        return {**self._changed, **handed}

    def begin_anew(self, reason: str) -> NoReturn:
        """Become the worker as one that was just started: by exec, which keeps pid, session and parent."""
        sys.stderr.write(f"runner: started anew, the spare could not be used: {reason}\n")
        for fd in self._handed:
            os.set_inheritable(fd, True)
        self._exec(self._told())

    def begin_as_warm(self, reason: str) -> NoReturn:
        """Wait anew, by exec, as a process that only imports."""
        self._channel.set_inheritable(True)
        with contextlib.suppress(OSError):
            self._background.leave()
        self._exec({SPARE: str(self._channel.fileno()), _COLD: reason[:_REASON_MAX].replace("\0", "")})

    def _exec(self, more: dict[str, str]) -> NoReturn:
        """Become a new process, in which nothing is left of what the script may have set for this one."""
        try:
            os.chdir(self._plan["cwd"])
            os.umask(self._mask)
            signal.setitimer(signal.ITIMER_REAL, 0)
            argv = [str(word) for word in self._plan["argv"]]
            os.execvpe(argv[0], argv, {**self._environ, **more})
        finally:
            os._exit(1)  # it must not go on in the script

    def leave(self, reason: str, *, again: bool) -> NoReturn:
        """End, and say why, and whether another one may do better."""
        said = {"ready": False, "reason": reason[:_REASON_MAX], "again": again}
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(said).encode())
        os._exit(UNUSED)


def _module(entry: os.DirEntry[str]) -> str:
    """Return the name that an entry of a folder can be imported by; "" where it cannot be."""
    if entry.is_dir():
        return entry.name
    ends = [suffix for suffix in importlib.machinery.all_suffixes() if entry.name.endswith(suffix)]
    return entry.name.partition(".")[0] if ends else ""


def _place(module: Any) -> str:
    """Return where a module is from; "" where nobody knows."""
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))


def _set_environ(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message, and the descriptors in it, which no child inherits."""
    numbers = array.array("i")
    message, ancillary, _, _ = channel.recvmsg(
        _MESSAGE_BYTES, socket.CMSG_SPACE(4 * numbers.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)
