"""Part 1: the supervisor dies at each of its system calls, and its successors put everything right.

A scene is played by a supervisor whose main thread is stopped at each call (tests.faults.tracer) and killed
at one of them; successors, of which one may be killed as well, serve until all has settled, and the home is
judged. Limits: the calls differ a little from run to run, as the workers are real; the supervisor is forked
from a process that has imported it, so that a run takes less than a second.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.inventory import Capacity
from runner.core.job import SETTLED, State
from runner.storage import lock, records, requests
from runner.storage.layout import Home
from runner.supervisor import launch, process
from runner.supervisor.supervisor import Config, Supervisor
from runner.supervisor.traces import read_identity
from tests.chaos.jobs import ENDURING, SUCCEEDED, Ending, Plan, failed, with_spare
from tests.chaos.judge import Struck, judge
from tests.faults import tracer
from tests.faults.tracer import Act, Call, Kill

#: A supervisor that has not brought everything to its end by then hangs.
PATIENCE_S = 100
#: A worker that is not asked what it waits for goes on by then, and its job ends otherwise than it should.
UNASKED_S = 60
DONE, LEFT = 0, 3
CAPACITY = Capacity(64.0)
#: One successor in so many is killed as well, at one of its first calls.
TWICE, TWICE_CALLS = 3, 300
#: Calls that others can notice, or that wait for them: a death before any other call, a read, say, or a
#: close, which death does as well, is a death before the next of these.
#: Not epoll_wait: how often it waits is a matter of time; to die meanwhile is to die before the next call.
NOTICED = frozenset(
    {"write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "rename", "mkdir", "rmdir", "unlink"}
    | {"unlinkat", "symlink", "flock", "clone", "clone3", "sendto", "sendmsg", "select"}
    | {"kill", "wait4", "epoll_ctl", "waitid", "pidfd_send_signal", "pidfd_open"}
)
#: What tests.faults has no names for.
NUMBERED = {
    "call_23": "select", "call_58": "vfork", "call_61": "wait4", "call_62": "kill", "call_233": "epoll_ctl",
    "call_247": "waitid", "call_424": "pidfd_send_signal", "call_434": "pidfd_open",
}  # fmt: skip


def nothing(_stage: Stage) -> None:
    """Nothing has happened before."""


@dataclass(frozen=True)
class Scene:
    """Jobs, and what has happened before the supervisor begins."""

    name: str
    plans: tuple[Plan, ...]
    before: Callable[[Stage], None] = nothing
    some: int = 2  #: at how many calls the supervisor is killed in the short form


class Stage:
    """A home in which a scene is played once."""

    def __init__(self, scene: Scene, kind: type[Supervisor] = Supervisor) -> None:
        self.scene = scene
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.ledgers = self.folder / "ledgers"
        self.ledgers.mkdir()
        self.home = Home(self.folder / "home")
        self.home.create()
        self.struck: dict[str, Struck] = {plan.name: Struck() for plan in scene.plans}
        for plan in scene.plans:
            plan.submit(self.home, self.ledgers)
        scene.before(self)

    def serve(self) -> int:
        """Supervise the home, in a child, until all has settled."""
        signal.alarm(PATIENCE_S)
        supervisor = self.kind(self.home, Config(mirrors=False))
        supervisor.queue._capacity = CAPACITY

        def end_if_done() -> None:
            if self.has_settled(supervisor):
                supervisor.loop.stop()

        supervisor.loop.every(0.02, end_if_done)
        supervisor.run()
        return DONE if self.has_settled(supervisor) else LEFT

    def has_settled(self, supervisor: Supervisor) -> bool:
        jobs = supervisor.book.jobs
        return (
            not supervisor.attempts.live
            and all(
                plan.name not in jobs if plan.ending.removed else self._has_ended(plan, supervisor)
                for plan in self.scene.plans
            )
            and not requests.pending(self.home)
        )

    def _has_ended(self, plan: Plan, supervisor: Supervisor) -> bool:
        job = supervisor.book.jobs.get(plan.name)
        return job is not None and job.state in SETTLED

    def judge(self) -> list[str]:
        found = []
        for plan in self.scene.plans:
            found += judge(self.home, plan, self.ledgers, self.struck[plan.name])
        return found

    def close(self) -> None:
        for plan in self.scene.plans:
            for pid in process.carrying(("RUNNER_STATE", str(self.home.job(plan.name).dir))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def is_noticed(call: Call) -> bool:
    """Tell whether a call changes what others see, or waits for them."""
    name = NUMBERED.get(call.name, call.name)
    return name in NOTICED or (name == "openat" and bool(call.arguments[2] & os.O_CREAT))


class KillAt:
    """Kills a child before its nth call of those that count.

    What it does in which turn of its loop is a matter of time too, so the nth call is not the same one in
    each play; it is from a call on that begins what happens in one turn (`since`, which is the first).
    """

    def __init__(self, number: int, counts: Callable[[Call], bool] = is_noticed, since: str = "") -> None:
        self.number = number
        self.since = since
        self.counts = counts
        self.seen: list[str] = []
        self.struck = ""  #: the name of the call

    def __call__(self, call: Call) -> Act:
        if not self.counts(call):
            return None
        name = NUMBERED.get(call.name, call.name)
        if self.since and not self.seen and name != self.since:
            return None
        self.seen.append(name)
        if len(self.seen) != self.number:
            return None
        self.struck = self.seen[-1]
        return Kill()


@dataclass
class Verdict:
    """One run of a scene."""

    scene: str
    numbers: tuple[int, ...]  #: at which calls the supervisor was to be killed, and its successor
    struck: list[str] = field(default_factory=list)  #: the calls at which they were
    found: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = ", ".join(map(str, self.numbers))
        return (
            f"{self.scene} {where} ({', '.join(self.struck)}): {'; '.join(self.found) or 'nothing was wrong'}"
        )


def play(
    scene: Scene, numbers: Sequence[int], kind: type[Supervisor] = Supervisor, since: str = ""
) -> Verdict:
    """Play a scene; each supervisor but the last is killed at the call given for it (see `KillAt`)."""
    records._jobs()  # what is imported here is not imported by each child
    verdict = Verdict(scene.name, tuple(numbers))
    stage = Stage(scene, kind)
    try:
        for hook in (KillAt(number, since=since) for number in numbers):
            tracer.run(stage.serve, hook)
            verdict.struck += [hook.struck] if hook.struck else []
        verdict.found = to_the_end(stage)
    finally:
        stage.close()
    return verdict


def to_the_end(stage: Stage) -> list[str]:
    """Let undisturbed successors serve until all has settled; return what is wrong then."""
    code = LEFT
    while code == LEFT:
        code = tracer.run(stage.serve).code
    found = stage.judge()
    return found if code == DONE else [f"the last supervisor did not get to the end ({code})", *found]


def calls(scene: Scene, kind: type[Supervisor] = Supervisor) -> list[str]:
    """Play a scene undisturbed; return the names of the supervisor's calls that count.

    Raises:
        AssertionError: even so it does not end well.
    """
    records._jobs()
    stage, hook = Stage(scene, kind), KillAt(0)
    try:
        tracer.run(stage.serve, hook)
        found = to_the_end(stage)
        assert not found, (scene.name, found)
        return hook.seen
    finally:
        stage.close()


def deaths(scene: Scene, chance: random.Random, some: int | None) -> list[tuple[int, ...]]:
    """Draw where the supervisor is killed: everywhere, or at `some` calls, of as many names as may be."""
    names = calls(scene)
    points = list(range(1, len(names) + 1))
    if some is not None:
        shuffled = chance.sample(points, len(points))
        first = list({names[point - 1]: point for point in shuffled}.values())
        points = (chance.sample(first, len(first)) + shuffled)[:some]
    return [
        (point, chance.randint(1, TWICE_CALLS)) if chance.randrange(TWICE) == 0 else (point,)
        for point in points
    ]


# --- the shim's own deaths --------------------------------------------------------------------------------

BORN = Scene("shims", (Plan("born", SUCCEEDED, ("child", "facts:1", "exit:0"), through_shell=True),))


def play_shim(number: int) -> Verdict:
    """Kill a shim at one of its calls while there is no supervisor; number 0 counts them."""
    records._jobs()
    verdict, stage = Verdict(BORN.name, (number,)), Stage(BORN)
    attempt = stage.home.job("born").attempt(1)
    try:
        tracer.run(
            stage.serve, lambda call: Kill() if makes_a_process(call) and attempt.launch.exists() else None
        )
        hook = KillAt(number)
        tracer.run(lambda: become_shim(stage), hook)
        verdict.struck = [hook.struck] if hook.struck else hook.seen
        stage.struck["born"].shims.add(1)
        verdict.found = to_the_end(stage)
    finally:
        stage.close()
    return verdict


def makes_a_process(call: Call) -> bool:
    return NUMBERED.get(call.name, call.name) in {"vfork", "clone", "clone3"}


def become_shim(stage: Stage) -> int:
    """Do, in a child, what the supervisor did not live to do."""
    paths = stage.home.job("born")
    fd = lock.try_lock(paths.lock)
    assert fd is not None
    os.dup2(fd, 3)
    os.execv(launch._PYTHON, [launch._PYTHON, "-I", "-S", str(launch._SHIM), str(paths.attempt(1).dir)])


# --- scenes -----------------------------------------------------------------------------------------------


def kill_predecessor(stage: Stage) -> None:
    """Have another supervisor start everything, and kill it; what ends now, only the shims see."""
    pid = tracer.start(stage.serve)
    wait(lambda: all(has_begun(stage, plan) for plan in stage.scene.plans), "all to begin")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for plan in stage.scene.plans:
        attempt = stage.home.job(plan.name).attempt(1)
        if ORPHANED in plan.deeds:
            wait(attempt.outcome.exists, f"the end of {plan.name}")
        if plan.name in {"lost", "rebooted"}:
            kill_shim(stage, plan.name)


def kill_shim(stage: Stage, name: str) -> None:
    shim = read_identity(stage.home.job(name).attempt(1), "shim")
    assert shim is not None
    stage.struck[name].shims.add(1)
    os.kill(shim.pid, signal.SIGKILL)
    wait(lambda: not process.is_alive(shim), "the shim to die")
    if name == "rebooted":
        mark, told = ("RUNNER_STATE", str(stage.home.job(name).dir)), stage.home.job(name).attempt(1).shim
        wait(lambda: not process.carrying(mark), "the worker to die with its shim")
        told.write_text(told.read_text().replace(shim.boot, "00000000-0000-0000-0000-000000000000"))


def has_begun(stage: Stage, plan: Plan) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if plan.ending.state is State.CANCELLED:
            return records.load_job(stage.home.job(plan.name).record).state is State.STOPPING
        told = stage.home.job(plan.name).attempt(1).shim.exists()
        return told and "start" in (stage.ledgers / plan.name).read_text()
    return False


def wait(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.002)


ORPHANED = f"await-orphaned:{UNASKED_S}"
ENDS = Scene(
    "ends",
    (
        Plan("good", Ending(State.SUCCEEDED, 0, 1), ("facts:3", "exit:0")),
        Plan("again", Ending(State.SUCCEEDED, 0, 2), ("facts:2", "flaky:1:3")),
        Plan("later", Ending(State.SUCCEEDED, 0, 3), ("flaky:2:4",)),
        Plan("bad", failed(78, 1), ("facts:1", "exit:78")),
        Plan("spent", failed(3, 2), ("exit:3",), ENDURING.replace("1000000", "1")),
    ),
)
REQUESTS = Scene(
    "requests",
    (
        Plan(
            "stopped",
            Ending(State.CANCELLED, 75, 1),
            ("facts:1", "ask:stop:stopped", f"await-term:{UNASKED_S}"),
        ),
        Plan(
            "cancelled",
            Ending(State.CANCELLED, 137, 1),
            ("child", "ask:cancel:cancelled", f"await-term:{UNASKED_S}"),
        ),
        Plan(
            "paused",
            Ending(State.SUCCEEDED, 0, 2),
            ("facts:1", "ask:pause:paused", "ask:resume:paused", f"await-term:{UNASKED_S}"),
        ),
        Plan("retried", Ending(State.SUCCEEDED, 0, 2), ("flaky:1:78",)),
        Plan("gone", Ending(State.SUCCEEDED, 0, removed=True), ("facts:1",)),
        Plan(
            "asker",
            Ending(State.SUCCEEDED, 0, 1),
            (
                *(f"await-state:retried:failed:{UNASKED_S}", "ask:retry:retried"),
                *(f"await-state:gone:succeeded:{UNASKED_S}", "ask:rm:gone"),
            ),
        ),
    ),
)
ADOPTS = Scene(
    "adopts",
    (
        Plan("runs", Ending(State.SUCCEEDED, 0, 1), ("facts:1", f"await-adopted:{UNASKED_S}", "facts:2")),
        Plan("done", Ending(State.SUCCEEDED, 0, 1), ("facts:2", ORPHANED, "exit:0")),
        Plan("bad", failed(78, 1), (ORPHANED, "exit:78")),
        Plan("again", Ending(State.SUCCEEDED, 0, 2), (ORPHANED, "flaky:1:4")),
        Plan(
            "stopping",
            Ending(State.CANCELLED, 75, 1),
            ("ignore-term", "ask:stop:stopping", f"await-adopted:{UNASKED_S}", "exit:75"),
        ),
        Plan(
            "lost", Ending(State.SUCCEEDED, 0, 2), ("facts:1", f"await-term:{UNASKED_S}"), through_shell=True
        ),
        # A power cut is not its fault: it has no restart to spend.
        Plan(
            "rebooted",
            Ending(State.SUCCEEDED, 0, 2),
            (f"await-term:{UNASKED_S}",),
            ENDURING.replace("1000000", "0"),
        ),
    ),
    kill_predecessor,
)
DRAINS = Scene(
    "drains",
    (
        Plan("drained", SUCCEEDED, ("facts:1", "end-supervisor", "await-term:1")),
        Plan("beside", SUCCEEDED, ("await-term:0.3",)),
    ),
)
#: Two of the jobs have room, but not two large ones.
LARGE = f"cpus = {CAPACITY.cpus * 0.9}\npreemptible = true"
PREEMPTS = Scene(
    "preempts",
    (
        Plan("low", Ending(State.SUCCEEDED, 0, 2), ("facts:1", f"await-term:{UNASKED_S}"), resources=LARGE),
        Plan("first", SUCCEEDED, (f"await-begun:low:{UNASKED_S}",)),
        Plan(
            "high",
            Ending(State.SUCCEEDED, 0, 1),
            ("facts:1",),
            f'after = ["first"]\npriority = 5\n{ENDURING}',
            resources=LARGE,
        ),
    ),
    some=1,
)
SPARES = Scene(
    "spares",
    (
        Plan(
            "spared",
            Ending(State.SUCCEEDED, 0, 2),
            ("facts:1", f"await-spare:{UNASKED_S}", "flaky:1:4", "facts:1"),
            with_spare("warm"),
            spared=True,
        ),
    ),
    some=1,
)
#: The longest first: nobody waits for it alone.
SCENES = {scene.name: scene for scene in (SPARES, ENDS, REQUESTS, ADOPTS, DRAINS, PREEMPTS)}
