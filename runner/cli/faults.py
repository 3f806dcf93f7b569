"""What a drill does to a job: each fault strikes once, and says what came of it.

One that cannot be made to happen (a job without checkpoints has none to tear) is not taken for one that was
got over: `strike` raises `NotStruckError` with the reason.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.cli import daemon, facts
from runner.cli.lab import HANG_SIGNAL, NAN_SIGNAL, Lab
from runner.core.failure import NOT_FINITE, OUT_OF_MEMORY
from runner.core.job import Outcome, State
from runner.core.spec import Nan
from runner.settings import load_spec
from runner.storage import eventlog
from runner.supervisor.process import Identity
from runner.supervisor.traces import read_identity

RECOVERY_S_MAX = 180.0
_STOPPED_S = 3.0
_HANG_S_MAX = 60.0
_FULL_S_MAX = 60.0
_SPARE_BYTES = 256 * 1024
_DIES_S_MAX = 60.0
#: What a worker has found out is in the events as soon as its supervisor has read it.
_TOLD_S_MAX = 20.0
_DAY_S = 86_400
_SLOW_S = 5.0
_NO_KEEPER = "it has no keeper: it is a command"


@dataclass
class Hit:
    """One fault that struck, and how the job got over it."""

    fault: str
    step: int  #: completed steps that were known just before
    epoch: int
    what: str = ""  #: what was done, for people
    resumed_step: int | None = None  #: None: the attempt ran on
    steps_lost: int = 0
    restart_s: float | None = None  #: until a new worker was started
    recovery_s: float = 0.0  #: until training went on
    held: bool = True
    note: str = ""


class NotStruckError(Exception):
    """The fault did not happen; the text says why."""


Strike = Callable[[Lab, str, Hit, dict[str, Any]], None]


def strike(fault: str, lab: Lab, name: str) -> Hit | None:
    """Let `fault` strike the running job and wait until it has got over it; None if it had ended already.

    Raises:
        NotStruckError: this fault cannot be made to happen here.
    """
    job = lab.look(name)
    if job["state"] != State.RUNNING or not job["pid"]:
        return None
    hit = Hit(fault, job["step"], job["epoch"])
    FAULTS[fault](lab, name, hit, job)
    return hit


def _announce(lab: Lab, hit: Hit, what: str) -> float:
    """Say what is about to be done; return the time."""
    hit.what = what
    where = f" at step {hit.step}, in epoch {hit.epoch + 1}" if hit.step else ""
    lab.say(f"*** {what}{where}")
    return time.time()


def _until(lab: Lab, condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for `condition`, with the display going on."""

    def met() -> bool:
        lab.idle()
        return condition()

    return daemon.until(met, timeout_s)


def _worker(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    struck = _announce(lab, hit, f"kill -9 of the worker (pid {job['pid']})")
    _kill(job["pid"])
    _recovered(lab, name, hit, job, struck)


def _supervisor(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    struck = _announce(lab, hit, f"kill -9 of the supervisor (pid {lab.daemon_pid}), then a new one")
    lab.kill_daemon()
    lab.start()
    hit.held = _until(lab, lambda: _event_since(lab, name, "adopted", job["revision"]) is not None, 20)
    hit.recovery_s = time.time() - struck
    after = lab.look(name)
    unchanged = after["pid"] == job["pid"] or facts.is_settled(after)
    hit.held = hit.held and unchanged
    hit.note = "the worker trained on" if unchanged else "the worker was not the same afterwards"


def _both(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    what = f"kill -9 of supervisor and worker (pids {lab.daemon_pid}, {job['pid']})"
    struck = _announce(lab, hit, what)
    lab.kill_daemon()
    _kill(job["pid"])
    lab.start()
    _recovered(lab, name, hit, job, struck)


def _process_of(lab: Lab, name: str, job: dict[str, Any], who: str, missing: str) -> Identity:
    """Return one of the attempt's processes; where it has none, `missing` says why none is struck."""
    found = read_identity(lab.home.job(name).attempt(job["attempt"]), who)
    if found is None:
        raise NotStruckError(missing)
    return found


def _shim(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    shim = _process_of(lab, name, job, "shim", "its shim is not known")
    struck = _announce(lab, hit, f"kill -9 of the shim (pid {shim.pid}), whose worker dies with it")
    _kill(shim.pid)
    _recovered(lab, name, hit, job, struck)


def _keeper(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Kill who writes the checkpoints: the worker writes its own then."""
    keeper = _process_of(lab, name, job, "keeper", _NO_KEEPER)
    struck = _announce(lab, hit, f"kill -9 of the keeper (pid {keeper.pid}), which writes the checkpoints")
    _kill(keeper.pid)
    _trains_on(lab, name, hit, job, struck)


def _slow(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Stop who writes: to the training that is a disk that takes nothing for a while."""
    keeper = _process_of(lab, name, job, "keeper", _NO_KEEPER)
    struck = _announce(lab, hit, f"nothing is written for {_SLOW_S:g} s: SIGSTOP of the keeper")
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGSTOP)
    try:
        _until(lab, lambda: facts.is_settled(lab.look(name)), _SLOW_S)
        _trains_on(lab, name, hit, job, struck)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper.pid, signal.SIGCONT)


def _trains_on(lab: Lab, name: str, hit: Hit, job: dict[str, Any], struck: float) -> None:
    """Wait for a later step of the same attempt."""

    def later() -> bool:
        now = lab.look(name)
        return facts.is_settled(now) or now["attempt"] != job["attempt"] or now["step"] > job["step"]

    hit.held = _until(lab, later, RECOVERY_S_MAX) and lab.look(name)["attempt"] == job["attempt"]
    hit.recovery_s = time.time() - struck
    hit.note = "training went on" if hit.held else "training did not go on"


def _memory(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Give the worker no more address space: its next larger allocation fails, as where memory is short.

    That is not a kill by the kernel, which needs a control group; but it is to be told as what it is.
    """
    pid = job["pid"]
    struck = _announce(lab, hit, f"no more address space for the worker (pid {pid}): an allocation fails")
    before = resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    if not _until(lab, lambda: lab.look(name)["pid"] != pid, _DIES_S_MAX):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)
        raise NotStruckError(f"it asked for no memory within {_DIES_S_MAX:g} s")
    _recovered(lab, name, hit, job, struck)
    raised = _event_since(lab, name, "raised", job["revision"]) or {}
    ended = _event_since(lab, name, "ended", job["revision"]) or {}
    if raised.get("kind") in OUT_OF_MEMORY:
        hit.held = hit.held and ended.get("outcome") == Outcome.OUT_OF_MEMORY
    by = raised.get("kind") or ended.get("signal") or f"exit code {ended.get('exit_code')}"
    hit.note = f"it was told as {ended.get('outcome')} ({by})"


def _nan(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Spoil the weights of the worker's models, by the lab's hook."""
    limits = load_spec(lab.source).limits
    if limits.nan is not Nan.ROLLBACK or limits.nan_learning_rate != 1.0:
        raise NotStruckError("limits.nan is its own, and does not lead to the same end")
    if not _catches(job["pid"], NAN_SIGNAL):
        raise NotStruckError("its Python does not load the drill's hook (sitecustomize)")
    struck = _announce(lab, hit, "the weights are made NaN")
    os.kill(job["pid"], NAN_SIGNAL)

    def told() -> bool:
        event = _event_since(lab, name, "raised", job["revision"])
        return event is not None and event.get("kind") == NOT_FINITE

    if not _until(lab, told, _DIES_S_MAX):
        raise NotStruckError("no loss was NaN: it trains by a loop of its own, or not at all")
    _recovered(lab, name, hit, job, struck)
    hit.note = "it was noticed, and rolled back"


def _stop(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    struck = _announce(lab, hit, f"SIGSTOP of the worker for {_STOPPED_S:g} s")
    os.kill(job["pid"], signal.SIGSTOP)
    time.sleep(_STOPPED_S)
    os.kill(job["pid"], signal.SIGCONT)
    hit.recovery_s = time.time() - struck
    hit.held = lab.look(name)["attempt"] == job["attempt"]
    hit.note = "the attempt went on" if hit.held else "the attempt did not survive it"


def _clock(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    if not lab.has_clock():
        raise NotStruckError("it needs libfaketime; install Debian's package libfaketime")
    struck = _announce(lab, hit, "the supervisor's clock is set a day forth, two days back, and right again")
    try:
        for offset_s in (_DAY_S, -_DAY_S):
            lab.set_clock(offset_s)
            _until(lab, lambda: facts.is_settled(lab.look(name)), _STOPPED_S)
    finally:
        lab.set_clock(0)
    if job["step"]:
        _trains_on(lab, name, hit, job, struck)
    else:
        hit.held = lab.look(name)["attempt"] == job["attempt"]
        hit.note = "the attempt went on" if hit.held else "the attempt did not survive it"


def _hang(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Let the worker's main thread wait forever, which only the lab's hook in a Python program can do."""
    limit_s = load_spec(lab.source).limits.hang_s
    if limit_s is None or limit_s > _HANG_S_MAX:
        raise NotStruckError(f"limits.hang is over {_HANG_S_MAX:g} s, or it is a command of its own")
    if not _catches(job["pid"], HANG_SIGNAL):
        raise NotStruckError("its Python does not load the drill's hook (sitecustomize)")
    struck = _announce(lab, hit, f"a hang of the worker (pid {job['pid']}; limits.hang is {limit_s:g} s)")
    os.kill(job["pid"], HANG_SIGNAL)
    _recovered(lab, name, hit, job, struck)
    found = _event_since(lab, name, "hung", job["revision"]) is not None
    hit.held = hit.held and found
    hit.note = "it was found out" if found else "it was not found out"


def _catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal (SigCgt in proc(5))."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def _torn(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    if not lab.home.job(name).list_checkpoints():
        raise NotStruckError("there is no checkpoint to cut")
    struck = _announce(lab, hit, "kill -9 of both, and the newest checkpoint cut in half")
    lab.kill_daemon()
    _kill(job["pid"])
    lab.wait_gone(name)
    kept = lab.home.job(name).list_checkpoints()
    if not kept:
        lab.start()
        raise NotStruckError("the checkpoint was gone before it could be cut")
    step, path = kept[-1]
    os.truncate(path, path.stat().st_size // 2)
    hit.what += f" (that of step {step})"
    lab.start()
    _recovered(lab, name, hit, job, struck)
    found = _until(
        lab, lambda: _event_since(lab, name, "quarantined", job["revision"]) is not None, _TOLD_S_MAX
    )
    hit.held = hit.held and found
    hit.note = "it was quarantined" if found else "it was not found out"


def _disk(lab: Lab, name: str, hit: Hit, job: dict[str, Any]) -> None:
    """Let saves fail as on a full disk: no file may grow beyond a little less than a checkpoint's size."""
    limit = _limit_bytes(lab, name, job["attempt"])
    struck = _announce(lab, hit, "no space for checkpoints")
    keeper = read_identity(lab.home.job(name).attempt(job["attempt"]), "keeper")
    pids = [job["pid"], *([keeper.pid] if keeper is not None else [])]
    before = resource.prlimit(job["pid"], resource.RLIMIT_FSIZE)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, before[1]))

    def failed() -> bool:
        return _event_since(lab, name, "save-failed", job["revision"]) is not None

    _until(lab, lambda: failed() or lab.look(name)["pid"] != job["pid"], _FULL_S_MAX)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    after = lab.look(name)
    hit.recovery_s = time.time() - struck
    hit.held = after["attempt"] == job["attempt"]
    if hit.held and not failed():
        raise NotStruckError(f"no save failed within {_FULL_S_MAX:g} s; save more often: checkpoint.every")
    saves = "a save failed and was reported" if failed() else "no save was tried meanwhile"
    hit.note = f"{saves}; training went on" if hit.held else f"{saves}; the attempt did not survive it"


FAULTS: dict[str, Strike] = {
    "clock": _clock,
    "worker": _worker,
    "supervisor": _supervisor,
    "both": _both,
    "shim": _shim,
    "keeper": _keeper,
    "stop": _stop,
    "hang": _hang,
    "memory": _memory,
    "nan": _nan,
    "torn": _torn,
    "disk": _disk,
    "slow-disk": _slow,
}


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _limit_bytes(lab: Lab, name: str, attempt: int) -> int:
    """Choose a size that no checkpoint has room in, and everything else that is written has."""
    paths = lab.home.job(name)
    sizes = [path.stat().st_size for _, path in paths.list_checkpoints()]
    others = (paths.attempt(attempt).log, paths.attempt(attempt).facts, paths.metrics)
    largest = max((path.stat().st_size for path in others if path.exists()), default=0)
    if not sizes:
        raise NotStruckError("there is no checkpoint, so it cannot be told what would be too large")
    if largest + _SPARE_BYTES > min(sizes):
        raise NotStruckError("its checkpoints are too small to be told from its log by their size")
    return min(sizes) - 1


def _event_since(lab: Lab, name: str, kind: str, revision: int) -> dict[str, Any] | None:
    for event in eventlog.read(lab.home.job(name).events):
        if isinstance(event, dict) and event.get("event") == kind and event.get("seq", 0) > revision:
            return event
    return None


def _recovered(lab: Lab, name: str, hit: Hit, before: dict[str, Any], struck: float) -> None:
    """Wait until a new attempt trains, and note from where and when."""

    def trains() -> bool:
        job = lab.look(name)
        if job["attempt"] <= before["attempt"]:
            return facts.is_settled(job)
        reports = bool(before["step"])
        return bool(job["step"] > _start(job) or job["metrics"]) if reports else job["pid"] is not None

    hit.held = _until(lab, trains, RECOVERY_S_MAX)
    hit.recovery_s = time.time() - struck
    job = lab.look(name)
    resumed = _event_since(lab, name, "resumed", before["revision"])
    hit.resumed_step = int(resumed["step"]) if resumed else _start(job)
    hit.steps_lost = max(0, hit.step - hit.resumed_step)
    started = _event_since(lab, name, "running", before["revision"])
    if started:
        hit.restart_s = max(0.0, datetime.fromisoformat(started["time"]).timestamp() - struck)


def _start(job: dict[str, Any]) -> int:
    return int(job["attempts"][-1].get("start_step", 0)) if job["attempts"] else 0
