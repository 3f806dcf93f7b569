"""A home of its own for a drill: a daemon that may be killed, and jobs that all have one seed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from runner.cli import daemon, facts, staging
from runner.core.events import Request
from runner.core.spec import LimitsSpec, Nan
from runner.errors import RunnerError
from runner.settings import FILE, load_spec
from runner.settings.text import key_lines
from runner.storage import durable, lock, requests
from runner.storage.layout import Home

_SEED = 20_260_101
_UP_S = 20.0
_END_S = 15.0
#: Below /usr, where libfaketime is: as Debian, others, and its own Makefile install it.
_FAKETIME = (f"lib/{sysconfig.get_config_var('MULTIARCH')}", "lib64", "lib", "local/lib")
_FAKETIME_FILE = "libfaketimeMT.so.1"
#: Where it keeps something of each process that it started in, by the pid.
_SHARED = Path("/dev/shm")
#: The lab's limit for a job that has none of its own, where it shall be made to hang.
HANG_S = 20.0
#: Makes the main thread of a Python program in the lab wait forever; no program of ours uses it.
HANG_SIGNAL = signal.SIGRTMIN + 11
#: Makes the weights of its Keras models something that is no number.
NAN_SIGNAL = signal.SIGRTMIN + 12
#: Runs before the program; then the environment's own sitecustomize, if there is one.
_HOOK = f"""\
import gc, importlib, os, signal, sys, time
def _hang(*_):
    while True:
        time.sleep(3600)
def _spoil(*_):
    keras = sys.modules.get("keras")
    for one in gc.get_objects() if keras is not None else ():
        if isinstance(one, keras.Model):
            for variable in one.trainable_variables:
                variable.assign(variable * float("nan"))
signal.signal({int(HANG_SIGNAL)}, _hang)
signal.signal({int(NAN_SIGNAL)}, _spoil)
sys.path.remove(os.path.dirname(__file__))
del sys.modules["sitecustomize"]
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
sys.modules.setdefault("sitecustomize", sys)
"""


class Lab:
    """A temporary home with its own daemon."""

    def __init__(
        self,
        source: Path,
        parent: Path | None = None,
        *,
        hangs: bool = False,
        spoils: bool = False,
        clock: bool = False,
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="runner-drill-", dir=parent and parent.absolute()))
        self.home = Home(self.root / "home")
        self.source = self.root / "source"
        self.say: Callable[[str], None] = print
        self.idle: Callable[[], object] = lambda: None  #: called again and again while waiting
        self._daemon: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = (self.root / "daemon.log").open("ab")
        staging.copy_tree(source, self.source)
        spec = load_spec(self.source)
        if spec.seed is None:
            _give(self.source / FILE, "seed", f"value = {_SEED}")
        if hangs and spec.command is None and spec.limits.hang_s is None:
            _give(self.source / FILE, "limits", f"hang = {HANG_S:g}")
        if spoils and spec.command is None and spec.limits.nan is Nan.IGNORE:
            # With learning rates as they were, the end is the same.
            _give(self.source / FILE, "limits", 'nan = "rollback"')
            if spec.limits.nan_learning_rate == LimitsSpec.nan_learning_rate:
                _give(self.source / FILE, "limits", "nan_learning_rate = 1.0")
        self._environ = dict(os.environ)
        if hangs or spoils:
            self._environ |= _hooked(self.root / "hook")
        preload = faketime() if clock else None
        if preload is not None:
            if "LD_PRELOAD" not in spec.env:  # the job has the true time
                _give(
                    self.source / FILE, "env", f"LD_PRELOAD = {json.dumps(os.environ.get('LD_PRELOAD', ''))}"
                )
            self.set_clock(0)
            self._environ |= clocked(self._clock, preload)

    @property
    def _clock(self) -> Path:
        return self.root / "clock"

    def set_clock(self, offset_s: int) -> None:
        """Set the daemon's clock so many seconds off the true time; the monotonic one goes on."""
        durable.write(self._clock, f"{offset_s:+d}s\n".encode())

    def has_clock(self) -> bool:
        """Tell whether the daemon has a clock of its own."""
        with contextlib.suppress(OSError):
            return _FAKETIME_FILE in Path(f"/proc/{self.daemon_pid}/maps").read_text()
        return False

    @property
    def daemon_pid(self) -> int:
        """The daemon's pid."""
        assert self._daemon is not None
        return self._daemon.pid

    def submit(self, name: str) -> None:
        """Hand the job over once more, under a name of its own."""
        staging.submit(self.home, self.source, name)

    def start(self) -> None:
        """Start the daemon and wait until it serves.

        Raises:
            RunnerError: it does not.
        """
        argv = [sys.executable, "-P", "-m", "runner.supervisor", "--home", str(self.home.root)]
        self._daemon = started = subprocess.Popen(
            [*argv, "--follow", str(os.getpid()), "--no-mirrors"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environ,
            start_new_session=True,
        )
        up = daemon.until(lambda: daemon.is_serving(self.home) or started.poll() is not None, _UP_S)
        if not up or started.poll() is not None:
            raise RunnerError(f"the drill's supervisor does not start; see {self._log.name}")

    def kill_daemon(self) -> None:
        """SIGKILL the daemon."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def look(self, name: str) -> dict[str, Any]:
        """Return the job's facts."""
        return facts.gather(self.home, name)

    def wait_gone(self, name: str) -> bool:
        """Wait until nothing of the job's attempt lives."""
        return daemon.until(lambda: not lock.is_locked(self.home.job(name).lock), _UP_S)

    def close(self, *, keep: bool) -> None:
        """End whatever runs; remove the folder unless it is to be kept."""
        for name in list(self.home.recorded()):
            if not facts.is_settled(self.look(name)):
                requests.submit_request(self.home, Request.CANCEL.value, name)
        if self._daemon is not None and self._daemon.poll() is None:
            daemon.until(lambda: not requests.pending(self.home), _END_S)
            self._daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(_END_S)
            if self._daemon.poll() is None:
                self.kill_daemon()
        self._log.close()
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)


def _give(toml: Path, table: str, line: str) -> None:
    """Add a line to a table of a job.toml that has no such key."""
    text = toml.read_text(encoding="utf-8-sig") if toml.exists() else ""
    lines = text.splitlines()
    found = key_lines(text)
    place = found.get((table,))
    if place is None:
        dotted = any(path[0] == table for path in found)
        lines = [f"{table}.{line}", *lines] if dotted else [*lines, f"[{table}]", line]
    elif lines[place - 1].lstrip().startswith("["):
        lines.insert(place, line)
    else:  # an inline table
        empty = lines[place - 1].partition("{")[2].lstrip().startswith("}")
        lines[place - 1] = lines[place - 1].replace("{", f"{{ {line}{' ' if empty else ', '}", 1)
    toml.write_text("\n".join(lines) + "\n")


def _hooked(folder: Path) -> dict[str, str]:
    """Return what makes every Python program obey `HANG_SIGNAL` and `NAN_SIGNAL`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOOK)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def faketime() -> Path | None:
    """Return where libfaketime is; None where it is not."""
    paths = (Path("/usr", place, "faketime", _FAKETIME_FILE) for place in _FAKETIME)
    return next((path for path in paths if path.exists()), None)


def _sweep_clocks() -> None:
    """Remove what killed programs have left of libfaketime: one that gets such a pid would not start."""
    for path in _SHARED.glob("*faketime_*"):
        pid = path.name.rpartition("_")[2]
        with contextlib.suppress(OSError):  # another user's
            if pid.isdecimal() and not Path("/proc", pid).exists():
                path.unlink()


def clocked(said: Path, preload: Path) -> dict[str, str]:
    """Return what gives a program the clock that a file says, and leaves it what else counts time."""
    _sweep_clocks()
    alone = ("FAKETIME_NO_CACHE", "DONT_FAKE_MONOTONIC", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT")
    preloads = ":".join([str(preload), *filter(None, [os.environ.get("LD_PRELOAD")])])
    return {"LD_PRELOAD": preloads, "FAKETIME_TIMESTAMP_FILE": str(said), **dict.fromkeys(alone, "1")}
