"""Loops that are over: of each a moment shortly before its end, from which it is run to the end again."""

from __future__ import annotations

from runner.errors import BadCheckpointError, StorageError
from runner.storage import checkpoint, durable
from runner.storage.checkpoint import Snapshot
from runner.training.quarantine import set_aside
from runner.training.report import now_text
from runner.training.worker import Worker


def point(worker: Worker, number: int) -> Snapshot | None:
    """Return what loop `number` is to be resumed from; None at its first time.

    The checkpoint is taken from the worker where it is this loop's; where it belongs to a later part of the
    script, it stays there.
    """
    saved = worker.saved
    if saved is None:
        return None
    mine = saved.state["fit"] == number
    if mine and saved.state["kind"] != "loop":
        worker.refuse("the checkpoint is of a fit where the script has a loop")
    if mine:
        worker.saved = None
        if not saved.state["cursor"]["over"]:
            return saved
    near_end = _load(worker, number)
    if near_end is None:
        again = "its end is restored" if mine else "it runs again from its start"
        worker.facts.warn(f"loop {number} was over, but no moment before its end is kept: {again}")
    return near_end or (saved if mine else None)


def _load(worker: Worker, number: int) -> Snapshot | None:
    paths = worker.launch.paths
    try:
        return checkpoint.read(paths.loop(number))
    except FileNotFoundError:
        return None
    except BadCheckpointError as reason:
        set_aside(paths, paths.loop(number), str(reason), worker.facts.append)
        return None


def keep(worker: Worker, number: int, near_end: Snapshot | None) -> bool:
    """Save a moment of loop `number`, by default its newest checkpoint; False where there is none to save."""
    paths = worker.launch.paths
    path = paths.loop(number)
    try:
        near_end = near_end or _newest(worker, number)
        if near_end is None:
            return False
        durable.make_folder(path.parent, paths.dir)
        checkpoint.write(path, near_end, created=now_text())
    except (OSError, StorageError) as error:
        worker.facts("save-failed", path=str(path.relative_to(paths.dir)), reason=str(error))
        return False
    return True


def _newest(worker: Worker, number: int) -> Snapshot | None:
    """Return the newest checkpoint, where it is of this loop."""
    if worker.saver.verified_step is None:
        return None
    found = checkpoint.read(worker.launch.paths.checkpoint(worker.saver.verified_step))
    mine = found.state.get("kind") == "loop" and found.state["fit"] == number
    return found if mine and not found.state["cursor"]["over"] else None
