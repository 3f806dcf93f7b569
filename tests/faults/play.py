"""Plays a scene in a child, with something happening to it, and judges what is left."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.storage import checkpoint
from tests.faults import scenes, tracer
from tests.faults.scenes import Run, Scene
from tests.faults.tracer import Act, Call, Ending, Fail, Kill, Leave, Point, Short

Hook = Callable[[Call], Act]


class Journal:
    """What a child tells, in memory that its death leaves and for which it makes no system call."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1 << 16)

    def clear(self) -> None:
        self._memory[:8] = bytes(8)

    def tell(self, fact: dict[str, Any]) -> None:
        line = json.dumps(fact).encode() + b"\n"
        begin = self._size()
        self._memory[8 + begin : 8 + begin + len(line)] = line
        self._memory[:8] = (begin + len(line)).to_bytes(8, "little")

    def read(self) -> list[dict[str, Any]]:
        text = self._memory[8 : 8 + self._size()]
        return [json.loads(line) for line in text.splitlines()]

    def _size(self) -> int:
        return int.from_bytes(self._memory[:8], "little")


def _nothing() -> None:
    pass


class Stage:
    """Where one scene is played, again and again, each time upon a copy of what it finds."""

    def __init__(self, scene: Scene, folder: Path, kept: Path, settle: Callable[[], None] = _nothing) -> None:
        """Prepare it.

        Args:
            scene: what is played.
            folder: where.
            kept: another folder, for what the scene finds: it survives what happens to the first.
            settle: called where what the scene finds has been put into its place.
        """
        self.scene = scene
        self.state = folder / "state"
        self._settle = settle
        self._template = kept / "template"
        shutil.rmtree(self._template, ignore_errors=True)
        scene.prepare(self._template)
        self._before = scenes.digests(self._template)
        self.journal = Journal()
        self._warm_up()

    def _warm_up(self) -> None:
        """Act here once, so that no child has anything to import."""
        self.reset()
        before = set(Path("/proc/self/fd").iterdir())
        self.scene.act(self.state, lambda _: None)
        self.scene.after()
        for path in set(Path("/proc/self/fd").iterdir()) - before:  # what would end with the process
            with contextlib.suppress(OSError):
                os.close(int(path.name))
        if not self.scene.known:
            checkpoint._plans.clear()

    def reset(self) -> None:
        """Make the state folder what the scene finds."""
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(self._template, self.state)
        self.journal.clear()
        self.scene.before(self.state)
        self._settle()

    def deed(self) -> int:
        """Act, in the child."""
        try:
            self.scene.act(self.state, self.journal.tell)
        except scenes.TOLD_OF:
            return 3
        return 0

    def play(self, hook: Hook | None, limit: Callable[[], None] = _nothing) -> tuple[Run, Ending]:
        """Let the scene be acted while `hook` looks at each call; nothing is judged yet.

        Args:
            hook: see `tracer.run`.
            limit: is called first, in the child.
        """

        def deed() -> int:
            limit()
            return self.deed()

        self.reset()
        ending = tracer.run(deed, hook)
        return self.run_of(ending.code), ending

    def run_of(self, code: int) -> Run:
        """Return what was told, where the child has ended so."""
        ended = {0: "returned", 3: "raised", -9: "killed"}.get(code, f"died ({code})")
        told = self.journal.read() + self.scene.after()
        return Run(told, ended, self.state, before=self._before)

    def judge(self, run: Run) -> list[str]:
        """Return what is wrong."""
        found = [f"it {run.ended}"] if run.ended.startswith("died") else []
        try:
            found += self.scene.judge(run)
        except Exception as error:  # noqa: BLE001 - whatever a start meets is a finding
            found.append(f"a start afterwards fails: {type(error).__name__}: {error}")
        return found

    def calls(self) -> list[Point]:
        """Play it undisturbed; return its calls, in their order.

        Raises:
            AssertionError: even undisturbed it does not end well.
        """
        run, ending = self.play(lambda _: None)
        run.disturbed = False
        problems = self.judge(run)
        assert not problems, (self.scene.name, problems)
        return ending.calls


def kill(point: Point) -> Hook:
    """Kill the child before the call at `point`."""
    return lambda call: Kill() if call.point == point else None


def once(point: Point, errno: int) -> Hook:
    """Fail the call at `point`, and no other."""
    return _then_leave(point, lambda _: Fail(errno))


def sticky(point: Point, errno: int) -> Hook:
    """Fail the call at `point`, and all of its name after it."""
    return lambda call: Fail(errno) if call.name == point.name and call.when >= point.when else None


class Dead:
    """Fail the call at a point, and everything that concerns files after it."""

    def __init__(self, point: Point, errno: int) -> None:
        self._point = point
        self._act = Fail(errno)
        self._reached = False

    def __call__(self, call: Call) -> Act:
        self._reached = self._reached or call.point == self._point
        return self._act if self._reached and call.name in tracer.FILE else None


class Shorter:
    """Let the call at a point do only a part; each later one of its kind too, or fail with an error."""

    def __init__(self, point: Point, part: float, then: str = "whole", errno: int = 0) -> None:
        """Begin.

        Args:
            point: the first call.
            part: of its length; at least a byte is done.
            then: "whole", "part" or "error".
            errno: of that error.
        """
        self._point = point
        self._part = part
        self._then = then
        self._errno = errno
        self._kind = tracer.WRITES if point.name in tracer.WRITES else tracer.READS
        self._reached = False

    def __call__(self, call: Call) -> Act:
        if not self._reached:
            self._reached = call.point == self._point
            return self._shortened(call) if self._reached else None
        if self._then == "whole":
            return Leave()
        if call.name not in self._kind:
            return None
        return Fail(self._errno) if self._then == "error" else self._shortened(call)

    def _shortened(self, call: Call) -> Act:
        length = call.length if call.file.startswith("/") and "/memfd:" not in call.file else 0
        # A direct write takes whole blocks only: every other time it gets some.
        wanted = max(1, int(length * self._part))
        if length > 1 << 16 and call.when % 2:
            wanted = max(4096, wanted // 4096 * 4096)
        return Short(min(wanted, length - 1)) if length > 1 else None


def _then_leave(point: Point, act: Callable[[Call], Act]) -> Hook:
    reached = False

    def hook(call: Call) -> Act:
        nonlocal reached
        if reached:
            return Leave()
        reached = call.point == point
        return act(call) if reached else None

    return hook
