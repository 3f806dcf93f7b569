"""Part 2: random faults over a stream of jobs; every job ends as it should, exactly.

Workers, their children, keepers and spares, shims and the supervisor are killed, stopped and continued, or
told to end, at random moments, two at once now and then; the supervisor is started again as systemd does.
When the faults are done, all jobs are let run to their ends, and the home is judged (`judge`).

A seed repeats what is drawn, not the moments at which real processes meet it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from runner.core.job import ACTIVE, SETTLED, Job, State
from runner.errors import AlreadyRunningError, UnreadableRecordError
from runner.storage import records, requests
from runner.storage.layout import Home
from runner.supervisor import process
from runner.supervisor.traces import read_identity
from tests.chaos.jobs import CANCELLED, ENDURING, Plan, counting, failing, spared, training
from tests.chaos.judge import Struck, judge

Fault: TypeAlias = tuple[str, signal.Signals]
KILL, STOP, TERM, HUP = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP)
#: What is done to whom, and how often, by weight; a supervisor is there more often than the others.
#: A worker's child, or anything else of the job: "tree".
FAULTS = {
    ("worker", KILL): 12, ("worker", STOP): 6, ("worker", TERM): 6,
    ("tree", KILL): 6,
    ("shim", KILL): 10, ("shim", STOP): 6, ("shim", TERM): 6,
    ("keeper", KILL): 8, ("keeper", STOP): 4, ("keeper", TERM): 4,
    ("spare", KILL): 5, ("spare", STOP): 3, ("spare", TERM): 3, ("spare shim", KILL): 3,
    ("supervisor", KILL): 6, ("supervisor", STOP): 2, ("supervisor", TERM): 1, ("supervisor", HUP): 1,
}  # fmt: skip
#: What the processes of a spare are called in its folder.
SPARES = {"spare": "worker", "spare shim": "shim"}
#: One fault in so many comes together with another one, at the same job.
TOGETHER = 5
#: How a supervisor ends: told to, killed, by a signal before it has its handlers, or as there is one still.
ENDS = {0, -KILL, -TERM, -HUP, AlreadyRunningError.exit_code}
#: How long what is stopped stays so, at most.
STOPPED_S = 1.5
#: So many jobs that have not settled at any time.
ABREAST = 6
#: Of a real training.
EPOCHS, STEP_S = 15, 0.006
#: From a supervisor's end to the next one's start.
RESTART_S = 0.1


@dataclass
class Rules:
    """How much is done, and by which chance."""

    seed: int
    faults: int
    pause_s: float = 1.0  #: between two faults, on the average
    trainings: int = 0  #: real ones, with Keras
    length: float = 1.0  #: of the jobs: 1.0 makes them last some seconds
    faults_drawn: dict[Fault, int] = field(default_factory=lambda: FAULTS)  #: with their weights
    settle_s: float = 300.0  #: for all jobs to settle when nothing strikes any more
    program: str = "runner.supervisor"  #: the supervisor: a module
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)


class Campaign:
    """A home under fire."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.rules = rules
        self.chance = rules.chance
        self.home = Home(folder / "home")
        self.home.create()
        self.ledgers = folder / "ledgers"
        self.ledgers.mkdir()
        self.log = folder / "supervisor.log"
        self.plans: dict[str, Plan] = {}
        self.struck: dict[str, Struck] = {}
        self.faults: Counter[str] = Counter()
        self.found: list[str] = []
        self._settled: set[str] = set()
        self._asked: set[tuple[str, str]] = set()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._ended_at = 0.0
        self._stopped: list[tuple[float, int]] = []  # when to continue what is stopped: pidfds

    # --- the course of it ------------------------------------------------------------------------------

    def run(self, more: Iterator[Plan], trainings: list[Plan]) -> None:
        """Strike until the faults are done, let all settle, and judge."""
        for plan in trainings:
            self._submit(plan)
        try:
            next_at = time.monotonic()
            while self.faults.total() < self.rules.faults:
                self._tend()
                while len(self._unsettled()) < ABREAST + len(trainings):
                    self._submit(next(more))
                if time.monotonic() >= next_at and self._strike():
                    next_at = time.monotonic() + self.chance.uniform(0.0, 2 * self.rules.pause_s)
                time.sleep(0.02)
            self._let_settle()
            for plan in self.plans.values():
                self.found += judge(self.home, plan, self.ledgers, self.struck[plan.name])
        finally:
            self._close()

    def _submit(self, plan: Plan) -> None:
        self.plans[plan.name] = plan
        self.struck[plan.name] = Struck()
        plan.submit(self.home, self.ledgers)

    def _let_settle(self) -> None:
        until = time.monotonic() + self.rules.settle_s
        while unsettled := self._unsettled():
            self._tend()
            if time.monotonic() > until:
                states = {name: (job := self._job(name)) and (job.state, job.reason) for name in unsettled}
                self.found.append(f"not settled after {self.rules.settle_s:g} s: {states}")
                return
            time.sleep(0.02)
        while self._stopped:
            self._tend()

    def _unsettled(self) -> list[str]:
        """Name the jobs that have not settled; nothing here makes one run that has."""
        for name in self.plans.keys() - self._settled:
            job = self._job(name)
            if job is not None and job.state in SETTLED:
                self._settled.add(name)
        return [name for name in self.plans if name not in self._settled]

    def _tend(self) -> None:
        """Do what systemd and people do: start what has ended, continue what was stopped, ask."""
        now = time.monotonic()
        for when, pidfd in list(self._stopped):
            if when <= now:
                self._stopped.remove((when, pidfd))
                send(pidfd, signal.SIGCONT)
                os.close(pidfd)
        code = self._supervisor.poll() if self._supervisor is not None else None
        if code is not None:
            self._supervisor, self._ended_at = None, now
            if code not in ENDS:
                self.found.append(f"the supervisor ended by itself, with {code}")
        if self._supervisor is None and now - self._ended_at >= RESTART_S:
            command = [sys.executable, "-m", self.rules.program, "--home", str(self.home.root)]
            with self.log.open("ab") as out:
                self._supervisor = subprocess.Popen(command, stdout=out, stderr=out)
        for name in self._unsettled():
            self._ask(self.plans[name])

    def _ask(self, plan: Plan) -> None:
        """Ask what people ask of a job: each verb once, when the job is as far."""
        for verb in plan.asks.split():
            if (plan.name, verb) in self._asked:
                continue
            job = self._job(plan.name)
            if job is None or (verb != "resume" and job.attempt == 0):
                return
            if verb == "resume" and job.state is not State.PAUSED:
                return
            self._asked.add((plan.name, verb))
            requests.submit_request(self.home, verb, plan.name)

    def _job(self, name: str) -> Job | None:
        with contextlib.suppress(FileNotFoundError):
            try:
                return records.load_job(self.home.job(name).record)
            except UnreadableRecordError as error:
                self.found.append(str(error))
        return None

    # --- strikes ---------------------------------------------------------------------------------------

    def _strike(self) -> bool:
        """Do one fault, or two at once; False where nobody is there to be struck."""
        jobs = [job for job in map(self._job, self._unsettled()) if job is not None and job.state in ACTIVE]
        if not jobs:
            return False
        job = self.chance.choice(jobs)
        with_spare = [one for one in jobs if self.home.job(one.name).spare.shim.exists()]
        times = 2 if self.chance.randrange(TOGETHER) == 0 else 1
        faults = self.rules.faults_drawn
        drawn = self.chance.choices(list(faults), list(faults.values()), k=times)
        at = {who: self.chance.choice(with_spare or jobs) if who in SPARES else job for who, _ in drawn}
        return sum(self._do(who, number, at[who]) for who, number in drawn) > 0

    def _do(self, who: str, number: signal.Signals, job: Job) -> bool:
        pidfd = self._find(who, job)
        if pidfd is None:
            return False
        if who == "shim" and number == KILL:
            self.struck[job.name].shims.add(job.attempt)
        if who == "shim" and number == TERM:
            self.struck[job.name].asked.add(job.attempt)
        if who == "worker":
            self.struck[job.name].workers.add(job.attempt)
        if who in SPARES:  # it may be the next attempt's by now
            self.struck[job.name].shims |= {job.attempt, job.attempt + 1}
            self.struck[job.name].workers |= {job.attempt, job.attempt + 1}
            self.struck[job.name].asked |= {job.attempt, job.attempt + 1}
        if not send(pidfd, number):
            return False
        self.faults[f"{number.name} {who}"] += 1
        if number == STOP:
            until = time.monotonic() + self.chance.uniform(0.0, STOPPED_S)
            self._stopped.append((until, pidfd))
        else:
            os.close(pidfd)
        return True

    def _find(self, who: str, job: Job) -> int | None:
        """Open a pidfd of whoever is to be struck."""
        paths = self.home.job(job.name)
        if who == "supervisor":
            lives = self._supervisor is not None and self._supervisor.poll() is None
            return os.pidfd_open(self._supervisor.pid) if lives else None
        if who == "tree":
            mark = ("RUNNER_STATE", str(paths.dir))
            members = set(process.carrying(mark)) & set(
                process.carrying(("RUNNER_ATTEMPT", str(job.attempt)))
            )
            identity = process.identify(self.chance.choice(sorted(members))) if members else None
            self.struck[job.name].workers.add(job.attempt)
        elif who in SPARES:
            identity = read_identity(paths.spare, SPARES[who])
        else:
            identity = read_identity(paths.attempt(job.attempt), who)
        return process.open_pidfd(identity) if identity is not None else None

    # --- the end ---------------------------------------------------------------------------------------

    def _close(self) -> None:
        for _, pidfd in self._stopped:
            send(pidfd, signal.SIGCONT)
        if self._supervisor is not None:
            self._supervisor.terminate()
            try:
                if self._supervisor.wait(30) not in ENDS:
                    self.found.append(f"the supervisor ended with {self._supervisor.returncode}")
            except subprocess.TimeoutExpired:
                self.found.append("the supervisor did not end when it was asked to")
                self._supervisor.kill()
                self._supervisor.wait()
        for name in self.plans:
            for pid in process.carrying(("RUNNER_STATE", str(self.home.job(name).dir))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if "Traceback" in self.log.read_text():
            self.found.append(f"a traceback in {self.log}")


def send(pidfd: int, number: int) -> bool:
    """Send a signal to a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
        return True
    return False


# --- the jobs ---------------------------------------------------------------------------------------------

#: Each of a name, and of a length, as a factor.
KINDS: list[Callable[[str, float], Plan]] = [
    lambda name, length: counting(name, int(300 * length), 0.01),
    lambda name, length: counting(name, int(200 * length), 0.02, "child"),
    lambda name, length: counting(name, int(200 * length), 0.02, shell=True),
    lambda name, length: spared(name, int(400 * length), 0.02),
    lambda name, length: counting(name, int(100 * length), 0.03, asks="pause resume"),
    lambda name, length: counting(name, int(150 * length), 0.01, "flaky:2:4"),
    lambda name, length: failing(name, 78, int(100 * length)),
    lambda name, length: failing(name, 125, int(50 * length)),
    lambda name, length: failing(name, 3, int(60 * length), f"{ENDURING}fatal_exit_codes = [3]\n"),
    lambda name, _: failing(name, 1, 0, ENDURING.replace("1000000", "4")),
    lambda name, _: Plan(name, CANCELLED, ("count:1000000:0.02",), asks="stop"),
    lambda name, _: Plan(name, CANCELLED, ("child", "count:1000000:0.02"), asks="cancel"),
]


def stream(chance: random.Random, length: float) -> Iterator[Plan]:
    """Yield jobs without end: all kinds, in an order by chance, again and again."""
    number = 0
    while True:
        for kind in chance.sample(KINDS, len(KINDS)):
            number += 1
            yield kind(f"job-{number:03}", length)


def undisturbed(folder: Path, plan: Plan) -> str:
    """Train where nothing strikes; return the result."""
    quiet = Campaign(folder, Rules(0, 0))
    quiet.run(iter(()), [plan])
    assert not quiet.found, quiet.found
    return (quiet.home.folder(plan.name) / "final.json").read_text()


def strikes(folder: Path, rules: Rules) -> Campaign:
    """Run a campaign below `folder`, and return what has become of it."""
    plans = []
    if rules.trainings:
        (alone := folder / "alone").mkdir()
        result = undisturbed(alone, training("alone", EPOCHS, STEP_S, None))
        kinds = [("hot", "warm", "none")[n % 3] for n in range(rules.trainings)]
        plans = [
            training(f"training-{n}-{kind}", EPOCHS, STEP_S, result, kind) for n, kind in enumerate(kinds)
        ]
    campaign = Campaign(folder, rules)
    campaign.run(stream(rules.chance, rules.length), plans)
    return campaign
