"""Going on otherwise than from the newest checkpoint, where that would end as the attempts before did.

Checkpoints that are passed over are put aside with the reason, as damaged ones are: nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.core.failure import Retreat
from runner.errors import BadCheckpointError
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training.quarantine import Report, set_aside


def step_back(paths: JobPaths, retreat: Retreat, newest: Snapshot, report: Report) -> bool:
    """Put aside the checkpoints from `retreat.before` on, where an older one is good; tell whether so.

    An older one is of the same fit: the ends of fits before it are kept apart, and stay.

    Args:
        paths: the job's.
        retreat: how far, and why.
        newest: what the attempt would go on from, which may lie in memory only.
        report: takes facts.
    """
    found = paths.list_checkpoints()
    older = [path for step, path in found if retreat.before is not None and step < retreat.before]
    fit = newest.state.get("fit")
    if fit is None or not any(_fit_of(path) == fit for path in reversed(older)):
        message = f"there is no older checkpoint to go back to: {retreat.reason}"
        report({"event": "warning", "message": message})
        return False
    for _, path in found[len(older) :]:
        damage = _damage(path)
        set_aside(paths, path, damage or retreat.reason, report, rejected=not damage)
    return True


def _fit_of(path: Path) -> int | None:
    """Return which fit a checkpoint is of; None where it is not good."""
    try:
        fit = checkpoint.read(path).state.get("fit")
    except (BadCheckpointError, OSError):
        return None
    return fit if isinstance(fit, int) else None


def _damage(path: Path) -> str:
    """Say what is wrong with a checkpoint; "" where nothing is, or the disk does not give it."""
    try:
        checkpoint.verify(path, hdf5=False)
    except BadCheckpointError as error:
        return str(error)
    except OSError:
        pass
    return ""


def slow_down(optimizers: Iterable[Any], factor: float) -> list[str]:
    """Multiply learning rates, of each optimizer once; name those that cannot be set."""
    missed = []
    for optimizer in {id(one): one for one in optimizers}.values():
        try:
            optimizer.learning_rate = float(optimizer.learning_rate) * factor
        except (TypeError, ValueError, AttributeError) as error:  # a schedule decides it
            missed.append(f"the learning rate of {type(optimizer).__name__} stays as it is: {error}")
    return missed
