"""Naming a checkpoint of a job: `NAME`, `NAME@STEP`, `NAME@best`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.cli import facts
from runner.cli.options import existing
from runner.errors import RefusedError, UsageError
from runner.storage.layout import Home, JobPaths


@dataclass(frozen=True)
class Model:
    """A checkpoint or best model on disk; `origin` names it, as NAME@STEP."""

    path: Path
    step: int
    origin: str


def find(home: Home, text: str) -> Model:
    """Find the checkpoint that `text` names; without `@` it is the newest.

    Raises:
        UsageError: what follows the `@` is neither a step nor `best`.
        NoSuchJobError: there is no such job.
        RefusedError: the job has no such checkpoint.
    """
    name, at, which = text.partition("@")
    name = existing(home, name)
    if at and which == "best":
        return best(home, name)
    if at and not which.isdecimal():
        raise UsageError(f"{text}: expected NAME, NAME@STEP or NAME@best")
    return at_step(home, name, int(which) if at else None)


def best(home: Home, name: str) -> Model:
    """Find the best model so far.

    Raises:
        RefusedError: there is none yet.
    """
    found = facts.gather(home, name)["best"]
    if found is None:
        raise RefusedError(f"{name}: no best model yet; it is kept once the monitored metric is reported")
    return Model(Path(found["path"]), int(found["step"]), f"{name}@{found['step']}")


def at_step(home: Home, name: str, step: int | None) -> Model:
    """Find the checkpoint of `step`, or the newest.

    Raises:
        RefusedError: there is none.
    """
    kept = _by_step(home.job(name))
    if not kept:
        raise RefusedError(f"{name}: no checkpoint yet")
    step = max(kept) if step is None else step
    if step not in kept:
        raise RefusedError(
            f"{name}: no checkpoint of step {step}; there are {', '.join(map(str, sorted(kept)))}"
        )
    return Model(kept[step], step, f"{name}@{step}")


def _by_step(paths: JobPaths) -> dict[int, Path]:
    """Return all that can be continued from, by step: checkpoints, and the ends of fits."""
    kept = dict(paths.list_checkpoints())
    for _, path in paths.list_fits():
        from runner.storage import checkpoint  # numpy: only where models are read

        kept[checkpoint.describe(path).step] = path
    return kept
