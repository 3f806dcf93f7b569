"""The hot spare: a spare that has run the script up to its first `fit`, and has executed the training step.

`training.spare` imports first, as for a warm one. Then the script runs as the next attempt would run it, at
low priority, while the guard sees that nothing in the world changes (`training.guard`). Where the script
calls `fit`, or attaches a loop of its own, this process waits to be wanted; what comes then is the resume
that any attempt begins with, on a step that is traced, and whose kernels are there (`training.warmup`).

What the worker would tell is held back until then, what the script prints too. A script that changes
something before its `fit`, raises or ends, makes this process begin anew, by exec, as a warm spare. So does
at the take-over, as the worker itself, whatever is not as the script has found it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from runner.training import launch
from runner.training.guard import Guard
from runner.training.report import Facts, Progress

if TYPE_CHECKING:
    from runner.training.spare import Waiting
    from runner.training.warmup import Warmup
    from runner.training.worker import Worker

#: For what the script prints, until there is a log for it.
_OUTPUT_BYTES = 1 << 20
_GPU = Path("/dev/nvidiactl")


def hindrance(environ: Mapping[str, str]) -> str:
    """Say why no script may be run beside; "" where it may."""
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown or (shown is None and _GPU.exists()):
        return "it would take memory of a GPU from the attempt that trains"
    return ""


class Held(Facts):
    """The facts of an attempt that may never be: they wait in memory."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.facts: list[Mapping[str, Any]] = []

    def append(self, fact: Mapping[str, Any]) -> None:
        """Keep a fact."""
        self.facts.append(fact)


class Unseen(Progress):
    """The progress of an attempt that may never be: nobody sees it."""

    def write(self) -> None:
        """Write nothing."""

    def beat(self) -> None:
        """Write nothing."""


class Hot:
    """One process that runs the script beside the attempt that trains."""

    def __init__(self, waiting: Waiting, environ: Mapping[str, str]):
        """Begin.

        Args:
            waiting: the spare that this is; it has imported.
            environ: what the next attempt is thought to be told in its environment.
        """
        self._waiting = waiting
        self._environ = dict(environ)
        self._threads: set[int] = set()
        self._guard = Guard(self._refuse)
        waiting.find_change = self._guard.changed
        self._outputs: tuple[int, int] = (-1, -1)  # as they were
        self._printed = -1
        self.waits = True  #: nobody has wanted this process yet

    @functools.cached_property
    def warmup(self) -> Warmup:
        """What tries a `fit`; for as long as Keras is there."""
        from runner.training.warmup import Warmup

        return Warmup(self._waiting.entropy)

    def enter(self) -> None:
        """Let what comes be run beside: in its environment, its output held back, guarded."""
        os.environ.update(self._environ)
        tempfile.gettempdir()  # it tries folders out, at its first call
        self._printed, write = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _OUTPUT_BYTES)
        for fd in (self._printed, write):
            os.set_blocking(fd, False)
        self._outputs = os.dup(1), os.dup(2)
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)

    def orders(self) -> launch.Launch:
        """Return the orders of the attempt that this may become, as far as they are known."""
        return launch.read(self._waiting.plan_path, os.environ)

    def run(self, script: Callable[[], None]) -> None:
        """Run the script under guard."""
        self._threads = {thread.ident or 0 for thread in threading.enumerate()}
        self._guard.enter()
        try:
            script()
        except SystemExit:
            raised = getattr(sys, "last_value", None)
            if self.waits and raised is not None:
                self.give_up(f"the script raises before its fit: {raised!r}")
            if not self.waits:
                raise
        if self.waits:
            self.give_up("the script ends before its fit")

    def stand_by(self, worker: Worker, warm_up: Callable[[], str] = lambda: "") -> None:
        """Wait here to be wanted; return as the worker of the attempt, in which all goes on as in any.

        Args:
            worker: this process's.
            warm_up: makes what can be made before; returns why it could not, "" where it could.
        """
        if not self.waits:
            return
        worker.restoring, why = True, None  # what is trained now is nobody's own loop
        try:
            why = warm_up()
        finally:
            worker.restoring = False
            if why is None:  # the script would catch what is raised here, and go on
                self.give_up(f"its step cannot be tried: {sys.exc_info()[1]!r}")
        if [one for one in threading.enumerate() if one.ident not in self._threads]:
            self.give_up("the script has threads of its own running")
        self._guard.rest()
        orders = self._waiting.offer(hot=True, why=why)
        self.waits = False
        self._guard.leave()
        self._waiting.take_over(*orders, settle=self._show, told=self._environ)
        try:
            self._go_on(worker)
        except Exception as error:  # noqa: BLE001 - here it would be the script's to catch, which is in its fit
            self._waiting.begin_anew(repr(error))

    def _go_on(self, worker: Worker) -> None:
        """Be the worker of the attempt, and tell what was held back."""
        from runner.training import fallback  # it needs NumPy, which the script imports

        held = worker.facts.facts if isinstance(worker.facts, Held) else []
        orders, phase = launch.load(), worker.progress.values["phase"]
        worker.launch = orders
        worker.facts = Facts(orders.attempt_paths.facts)
        worker.progress = Progress(orders.paths.progress, orders.attempt)
        worker.find_saved()
        if worker.saved is None and not worker.launch.paths.fit(0).exists():
            self._waiting.begin_anew("there is nothing to resume")
        if fallback.has_begun(worker):
            self._waiting.begin_anew("the job is resumed at the beginning of an epoch only")
        os.environ.pop(launch.KEEPER, None)
        worker.begin()
        for fact in held:
            worker.facts.append(fact)
        worker.phase(phase)

    def _show(self) -> None:
        """Put what the script has printed into the log, which is the output now."""
        with contextlib.suppress(OSError):
            while chunk := os.read(self._printed, _OUTPUT_BYTES):
                os.write(1, chunk)
        for fd in (self._printed, *self._outputs):
            os.close(fd)

    def give_up(self, why: str) -> NoReturn:
        """Be a warm spare instead: by exec, before anything has been done."""
        self._guard.leave()
        for number, fd in enumerate(self._outputs, 1):
            os.dup2(fd, number)
        with contextlib.suppress(OSError):
            os.truncate(1, 0)  # the imports will say it all again
        self._waiting.begin_as_warm(why)

    def _refuse(self, deed: str) -> NoReturn:
        self.give_up(f"the script changes something before its fit: {deed}")
