"""What the state folder says of a job, gathered for people and for `--json`.

Read straight from the JSON files, without the record's classes: looking at a job must be quick, works with no
supervisor, and never waits for one.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.core.best import SUFFIXES
from runner.core.exactness import Kind
from runner.core.job import ACTIVE, SETTLED, Attempt, Job, Ledger, Moment, State, elapsed_s
from runner.core.ledger import causes, goodput
from runner.errors import NoSuchJobError, UnreadableRecordError
from runner.storage import disk, mirrored, records
from runner.storage.layout import SUBMITTED_MARK, Home, JobPaths
from runner.supervisor.process import Identity, boot_id, is_alive
from runner.supervisor.traces import stopped_shim

UNREADABLE = "unreadable"
#: With less than that left nothing can be expected to be written.
_DISK_BYTES_MIN = 1 << 20
#: No count of ours comes near this; a script's own may be anything.
_COUNT_MAX = 2**63


def gather(home: Home, name: str) -> dict[str, Any]:
    """Return the facts of job `name`, with the keys of `runner status --json`.

    A folder in jobs/ that no supervisor has seen yet counts as queued.

    Raises:
        NoSuchJobError: there is neither a record nor a folder, as when it was removed meanwhile.
        UnreadableRecordError: there is a record and it cannot be read.
    """
    paths = home.job(name)
    try:
        record = records.load_json(paths.record)
    except FileNotFoundError:
        if not has_folder(home, name):
            raise NoSuchJobError(f"{name}: no such job in {home.root} any more; it was removed") from None
        record = {"name": name, "state": State.QUEUED, "reason": "not taken up yet", "attempt": 0}
    try:
        return {**_facts(paths, record), "set": _what_was_set(home.folder(name))}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnreadableRecordError(f"{paths.record}: damaged ({error!r}); see `runner rm {name}`") from None


def has_folder(home: Home, name: str) -> bool:
    """Tell whether something in jobs/ stands for job `name` (as printed)."""
    return os.path.lexists(home.folder(name)) or any(True for _ in home.submitted_as(name))


def is_gone(home: Home, name: str) -> bool:
    """Tell whether nothing is left of a job: no folder in jobs/, and no state."""
    return not has_folder(home, name) and not os.path.lexists(home.job(name).dir)


def state_of(home: Home, name: str) -> State:
    """Return where the job stands."""
    return State(gather(home, name)["state"])


def is_settled(facts: dict[str, Any]) -> bool:
    """Tell whether the job has ended."""
    return facts["state"] in SETTLED


def _facts(paths: JobPaths, record: dict[str, Any]) -> dict[str, Any]:
    state = State(record["state"])
    attempt = int(record["attempt"])
    attempts = list(record.get("attempts") or ())
    progress = _progress(paths, attempt)
    checkpoint = _placed(paths, record.get("checkpoint"))
    # Whichever is newer: progress is written once a second, and not at all while an attempt starts.
    step, epoch = max(_place(progress), _place(checkpoint or {}))
    return {
        "name": record["name"],
        "state": state.value,
        "reason": record.get("reason") or "",
        "priority": int((record.get("spec") or {}).get("priority") or 0),
        "resources": _resources(record.get("spec") or {}, attempts[-1:] if state in ACTIVE else []),
        "attempt": attempt,
        "restarts": int(record.get("restarts") or 0),
        "restarts_by_cause": _causes(record, attempts),
        "step": step,
        "epoch": epoch,
        "pid": _worker_pid(paths, attempt) if state in ACTIVE else None,
        "phase": progress.get("phase") if state in ACTIVE else None,
        "epochs": progress.get("epochs"),
        "steps_per_epoch": progress.get("steps_per_epoch"),
        "steps_per_s": progress.get("steps_per_s") if state in ACTIVE else None,
        "rss_bytes": progress.get("rss_bytes") if state in ACTIVE else None,
        "checkpoint": checkpoint,
        "checkpoint_at": record.get("checkpoint_at") if checkpoint else None,
        "saving": progress.get("saving") if state in ACTIVE else None,
        "disk": _disk(paths) if state in ACTIVE else None,
        "stuck": _stuck(paths, attempt) if state in ACTIVE else None,
        "best": _placed(paths, record.get("best")),
        "metrics": progress.get("metrics") or {},
        "goodput": _goodput(record, state, attempts),
        "mirror": _mirror(paths, record.get("spec") or {}),
        "spare": _spare(paths),
        "exactness": _exactness(record.get("classified"), record.get("exactness") or ""),
        "exit_code": _exit_code(state, attempts),
        "source": record.get("source"),
        "seed": record.get("seed"),
        "submitted_at": record.get("submitted_at"),
        "started_at": record.get("started_at"),
        "finished_at": record.get("finished_at"),
        "revision": int(record.get("revision") or 0),
        "attempts": attempts,
    }


def _resources(spec: dict[str, Any], running: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what an attempt occupies, and the devices of one that runs; None: none are given out to it."""
    asked = spec.get("resources") or {}
    memory = asked.get("memory_bytes")
    return {
        "cpus": _number(asked.get("cpus")),
        "gpus": _number(asked.get("gpus")),
        "memory_bytes": (spec.get("limits") or {}).get("memory_bytes") if memory is None else memory,
        "devices": running[0].get("gpus") if running else None,
    }


def _mirror(paths: JobPaths, spec: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the job's mirror holds and lacks; None where it has none."""
    url = (spec.get("checkpoint") or {}).get("mirror")
    if not url:
        return None
    place, known = mirrored.place(str(url), paths.dir.name), mirrored.load(paths)
    if known.place != place:
        known = mirrored.Status(place=place)
    steps = [step for name in known.files if (step := mirrored.step_of(name)) is not None]
    return {
        "url": place,
        "steps": sorted(steps),
        "best": sorted(name for name in known.files if name.startswith("best/") and name.endswith(SUFFIXES)),
        "behind": sorted(mirrored.behind(paths, known)),
        "error": known.error or None,
        "failing_since": known.failing_since,
    }


def _spare(paths: JobPaths) -> str | None:
    """Tell whether a spare is "ready" to take over, or "warming"; None where there is none."""
    try:
        about = records.load_json(paths.spare.shim)
    except (OSError, UnreadableRecordError):
        return None
    worker = Identity.parse(about.get("worker"))
    if worker is None or not is_alive(worker):
        return None
    return "ready" if about.get("ready") else "warming"


def _exactness(found: dict[str, Any] | None, said: str) -> dict[str, Any] | None:
    """Return how exactly the newest fit can be resumed; an older record says it in words only."""
    if found is None:
        kind = Kind.NOT_EXACT if said.startswith("not exact") else Kind.EXACT
        found = {"fit": 0, "kind": kind, "reason": said.partition(": ")[2]} if said else None
    return found and {
        "fit": int(found["fit"]),
        "kind": Kind(found["kind"]),
        "reason": str(found["reason"]),
        "replay_s": _number(found.get("replay_s")),
        "missed": [str(one) for one in found.get("missed") or ()],
    }


def _what_was_set(folder: Path) -> dict[str, str]:
    """Return what `runner submit --set` gave this job; as the job may write there, nothing is relied on."""
    try:
        given = records.load_json(folder / SUBMITTED_MARK).get("set")
    except (OSError, UnreadableRecordError):
        return {}
    return {key: str(value) for key, value in given.items()} if isinstance(given, dict) else {}


def _progress(paths: JobPaths, attempt: int) -> dict[str, Any]:
    """Read the newest attempt's progress; an unreadable or older one says nothing.

    A script may write this file itself, with anything in it: what is not of its field's type is left out.
    """
    try:
        progress = records.load_json(paths.progress)
    except (OSError, UnreadableRecordError):
        return {}
    if progress.get("attempt") != attempt:
        return {}
    phase, metrics = progress.get("phase"), progress.get("metrics")
    return {
        **{key: _count(progress.get(key)) for key in _COUNTS},
        "steps_per_s": _number(progress.get("steps_per_s")),
        "phase": phase if isinstance(phase, str) else None,
        "saving": _saving(progress.get("saving")),
        "metrics": {key: _number(value) for key, value in metrics.items()}
        if isinstance(metrics, dict)
        else {},
    }


def _saving(value: Any) -> dict[str, Any] | None:
    """Read what a checkpoint costs, and since when and why saving fails, where it does."""
    if not isinstance(value, dict) or not value:
        return None
    numbers = ("interval_s", "stall_s", "save_s", "size_bytes", "retry_s", "memory_bytes")
    words = ("since", "reason")
    return {
        **{key: _number(value.get(key)) for key in numbers},
        **{key: str(value[key]) if key in value else None for key in words},
    }


def _disk(paths: JobPaths) -> str | None:
    """Say what is wrong with the disk that the state lies on, where a worker may not be able to tell."""
    trouble = disk.trouble(paths.dir, _DISK_BYTES_MIN)
    return None if trouble is None else str(trouble)


def _stuck(paths: JobPaths, attempt: int) -> str | None:
    """Say what keeps the attempt from its end: it was killed and does not die, or nobody would see it."""
    try:
        text = records.load_json(paths.attempt(attempt).stuck).get("text")
    except (OSError, UnreadableRecordError):
        text = None
    return str(text) if text else stopped_shim(paths.attempt(attempt)) or None


_COUNTS = ("step", "epoch", "epochs", "steps_per_epoch", "rss_bytes")


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < _COUNT_MAX else None


def _number(value: Any) -> float | None:
    """Return a finite number as it is; a metric may be infinite, and JSON has no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _COUNT_MAX or (isinstance(value, float) and math.isfinite(value)) else None


def _place(found: dict[str, Any]) -> tuple[int, int]:
    return int(found.get("step") or 0), int(found.get("epoch") or 0)


def _placed(paths: JobPaths, found: dict[str, Any] | None) -> dict[str, Any] | None:
    return found and {**found, "path": str(paths.dir / found["path"])}


def _goodput(record: dict[str, Any], state: State, attempts: list[dict[str, Any]]) -> dict[str, float]:
    """Return where the time went; the attempt that runs counts as useful so far, and so on.

    The ratio is that of all time but the waiting: a job is no worse for the others that were before it.
    """
    ledger = record.get("ledger") or {}
    parts = {key: float(ledger.get(key) or 0.0) for key in _PARTS}
    part, spent_s = _present(record, state, attempts)
    parts[part] = max(0.0, parts[part] + spent_s)
    return goodput(Ledger(**parts))


def _present(record: dict[str, Any], state: State, attempts: list[dict[str, Any]]) -> tuple[str, float]:
    """Return what the present time will be booked as, and how much of it there is, in seconds."""
    if state in ACTIVE:
        return "useful_s", _age_s(attempts[-1]) if attempts else 0.0
    if state is State.BACKOFF:
        return "down_s", _rested_s(record, record.get("since"))
    since = record.get("since") or (None if attempts else record.get("submitted_at"))
    return "waiting_s", _rested_s(record, since) if state is State.QUEUED else 0.0


def _rested_s(record: dict[str, Any], since: str | None) -> float:
    if since is None:
        return 0.0
    boot, since_s = str(record.get("since_boot") or ""), float(record.get("since_s") or 0.0)
    return elapsed_s(since, boot, since_s, _moment())


def _age_s(attempt: dict[str, Any]) -> float:
    boot, began_s = str(attempt.get("boot") or ""), float(attempt.get("began_s") or 0.0)
    return Attempt(0, attempt["started_at"], boot=boot, began_s=began_s).age_s(_moment())


def _moment() -> Moment:
    return Moment(datetime.now(UTC).isoformat(), 0.0, time.monotonic(), boot_id())


_PARTS = tuple(part.name for part in fields(Ledger))


def _causes(record: dict[str, Any], attempts: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many restarts followed each kind of end; of an older record as far as its attempts tell."""
    counted = record.get("restarts_by_cause") or causes(one.get("outcome") for one in attempts[:-1])
    return {str(cause): int(count) for cause, count in counted.items()}


def _exit_code(state: State, attempts: list[dict[str, Any]]) -> int | None:
    """Return the code that `runner wait` ends with: it depends on the state and the last attempt alone."""
    last = tuple(
        Attempt(0, "", exit_code=attempt.get("exit_code"), signal=attempt.get("signal"))
        for attempt in attempts[-1:]
    )
    return Job("", state, "", 0, attempts=last).exit_code


def _worker_pid(paths: JobPaths, attempt: int) -> int | None:
    try:
        worker = Identity.parse(records.load_json(paths.attempt(attempt).shim).get("worker"))
    except (OSError, UnreadableRecordError):
        return None
    return worker.pid if worker and is_alive(worker) else None
