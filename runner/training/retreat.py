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
from runner.storage.layout import JobPaths
from runner.training.quarantine import Report, set_aside


def step_back(paths: JobPaths, retreat: Retreat, report: Report) -> bool:
    """Put aside the checkpoints from `retreat.before` on, where an older one is good; tell whether so.

    An older one is of the same fit: the ends of fits before it are kept apart, and stay.
    """
    found = paths.list_checkpoints()
    older = [path for step, path in found if retreat.before is not None and step < retreat.before]
    fit = _fit_of(found[-1][1]) if older else None
    if not any(_fit_of(path) == fit is not None for path in reversed(older)):
        message = f"there is no older checkpoint to go back to: {retreat.reason}"
        report({"event": "warning", "message": message})
        return False
    for _, path in found[len(older) :]:
        set_aside(paths, path, retreat.reason, report)
    return True


def _fit_of(path: Path) -> int | None:
    """Return which fit a checkpoint is of; None where it is not good."""
    try:
        fit = checkpoint.read(path).state.get("fit")
    except (BadCheckpointError, OSError):
        return None
    return fit if isinstance(fit, int) else None


def slow_down(optimizers: Iterable[Any], factor: float) -> list[str]:
    """Multiply learning rates, of each optimizer once; name those that cannot be set."""
    missed = []
    for optimizer in {id(one): one for one in optimizers}.values():
        try:
            optimizer.learning_rate = float(optimizer.learning_rate) * factor
        except (TypeError, ValueError, AttributeError) as error:  # a schedule decides it
            missed.append(f"the learning rate of {type(optimizer).__name__} stays as it is: {error}")
    return missed
