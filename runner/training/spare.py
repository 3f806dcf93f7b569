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
import importlib
import importlib.machinery
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from runner.storage.layout import JobPaths
from runner.training import imported, imports
from runner.training.background import Background, shortage
from runner.training.entropy import Entropy
from runner.training.imported import Imported
from runner.training.launch import KEEPER

#: In the environment: the descriptor of the socket to the shim.
SPARE = "RUNNER_SPARE"
#: What must be free to begin, as nobody knows what is needed; and later, not to end.
_FREE_BYTES = 2 << 30
_LEAST_BYTES = 512 << 20
_LOOK_S = 2.0
_MESSAGE_BYTES = 65536


class UnfitError(Exception):
    """The process cannot stand in for one that is just started; the text says why."""


class ShortError(UnfitError):
    """Memory is short, now."""


def stand_by() -> Imported | None:
    """Wait to become the worker where this process was started to; None where it is the worker already.

    Returns what was imported meanwhile, with the entropy that packages have drawn from.
    """
    number = os.environ.pop(SPARE, None)
    if number is None:
        return None
    channel = socket.socket(fileno=int(number))
    channel.set_inheritable(False)
    try:
        return _Waiting(channel).wait()
    except UnfitError as reason:
        _leave(channel, str(reason), again=isinstance(reason, ShortError))


class _Waiting:
    """One process that waits."""

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self._environ = dict(os.environ)
        self._plan = json.loads(JobPaths(Path(os.environ["RUNNER_STATE"])).spare.launch.read_bytes())
        self._entropy = Entropy(int(self._plan["seed"]))
        self._imported = Imported(self._entropy, self._environ)
        self._background = Background()
        self._files: dict[str, int] = {}

    def wait(self) -> Imported:
        """Import, say so, and wait to be wanted; return what was imported.

        Raises:
            UnfitError: this process is of no use.
        """
        self._demand(_FREE_BYTES)
        try:
            self._background.enter()
            left = self._import_all()
            self._background.work_again()
        except OSError as error:
            raise UnfitError(str(error)) from error
        self._files = imported.files()
        self._find_shadows()
        ready = {
            "ready": True,
            "modules": len(self._files),
            "left": len(left),
            "until": left[0] if left else None,
        }
        self._channel.send(json.dumps(ready).encode())
        return self._take_over(*self._orders())

    def _import_all(self) -> list[str]:
        """Import what the job does; return what is left to the script, the first of which had to be."""
        wanted = json.loads(Path(self._plan["imported"]).read_bytes())
        sys.argv = [self._plan["entry"], *self._plan["args"]]
        sys.path[0] = str((Path.cwd() / self._plan["entry"]).resolve().parent)
        self._entropy.install()
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
        there = {_module(entry) for entry in os.scandir(sys.path[0])}
        if shadows := sorted(there & self._imported.asked - {""}):
            raise UnfitError(f"the job's folder has a {shadows[0]} of its own")

    def _demand(self, least_bytes: int) -> None:
        if short := shortage(least_bytes):
            raise ShortError(short)

    def _orders(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for the shim's orders; return them, and the descriptors that came with them."""
        self._channel.settimeout(_LOOK_S)
        while True:
            try:
                message, fds = _receive(self._channel)
            except TimeoutError:
                self._demand(_LEAST_BYTES)
                continue
            if not message:
                os._exit(0)  # its shim has ended
            return json.loads(message), fds

    def _take_over(self, orders: dict[str, Any], fds: list[int]) -> Imported:
        """Become the worker: with the attempt's log, its environment and its memory for snapshots."""
        log, *handed = fds
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        changed = dict(orders["environ"])
        if handed:
            changed[KEEPER] = ",".join(str(fd) for fd in handed)
        try:
            self._background.leave()
            self._find_shadows()
            if files := imported.have_changed(self._files):
                raise UnfitError(f"{files[0]} has changed")
        except (UnfitError, OSError) as reason:
            self._begin_anew(str(reason), changed, handed)
        self._channel.send(b"{}")
        self._channel.close()
        _set_environ(changed)
        return self._imported

    def _begin_anew(self, reason: str, changed: dict[str, str], handed: list[int]) -> NoReturn:
        """Become the worker as one that was just started: by exec, which keeps pid, session and parent."""
        sys.stderr.write(f"runner: started anew, the spare could not be used: {reason}\n")
        for fd in handed:
            os.set_inheritable(fd, True)
        self._channel.send(b"{}")
        argv = [str(word) for word in self._plan["argv"]]
        os.execvpe(argv[0], argv, {**self._environ, **changed})


def _module(entry: os.DirEntry[str]) -> str:
    """Return the name that an entry of a folder can be imported by; "" where it cannot be."""
    if entry.is_dir():
        return entry.name
    ends = [suffix for suffix in importlib.machinery.all_suffixes() if entry.name.endswith(suffix)]
    return entry.name.partition(".")[0] if ends else ""


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


def _leave(channel: socket.socket, reason: str, *, again: bool) -> NoReturn:
    """End, and say why, and whether another one may do better."""
    with contextlib.suppress(OSError):
        channel.send(json.dumps({"ready": False, "reason": reason, "again": again}).encode())
    os._exit(0)
