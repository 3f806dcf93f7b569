"""What is done with a Keras that is not as `instrument` expects it: fits are resumed at an epoch's beginning.

Only where its public API is as documented; else there are no checkpoints. Either is said in a warning.
A job that was begun so goes on so, whatever Keras it finds later; and a checkpoint for an exact resume, which
may lie within an epoch, ends the attempt for good: it needs the Keras that it was taken with.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from runner.training import doubts, finished, raised
from runner.training.epochwise import KIND, EpochFit, Script, refuse
from runner.training.worker import Worker


def has_begun(worker: Worker) -> bool:
    """Tell whether the job was trained so before: then it goes on so, for its checkpoints hold no more."""
    first = worker.saved or finished.load(worker, 0)
    return first is not None and first.state.get("kind") == KIND


def arrange(worker: Worker, keras: Any, why: str) -> None:
    """Let the fits of this Keras be resumed at the beginning of an epoch.

    Args:
        worker: this process's; its checkpoints have been looked for.
        keras: the module.
        why: what keeps it from an exact resume.
    """
    lacking = doubts.lacking(keras)
    if lacking:
        worker.facts.warn(
            f"{why}; it lacks {', '.join(lacking)} too: no checkpoints with this version", unwatched=True
        )
        return
    worker.facts.warn(f"{why}: resumes are not exact, and only at the beginning of an epoch")
    if worker.saved is not None and worker.saved.state.get("kind") == "fit":
        refuse(worker, worker.saved)
    signature, original = inspect.signature(keras.Model.fit), keras.Model.fit
    script = Script(worker, why)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if script.fitting or worker.looping:
            return original(self, *args, **kwargs)  # it belongs to the step of another
        number, worker.fits = worker.fits, worker.fits + 1
        script.fitting = True
        try:
            running = _look_at(script, self, number, signature, *args, **kwargs)
            with raised.noticed(worker):
                return running.run(original) if running is not None else original(self, *args, **kwargs)
        finally:
            script.fitting = False

    keras.Model.fit = fit


def _look_at(
    script: Script, model: Any, number: int, signature: inspect.Signature, *args: Any, **kwargs: Any
) -> EpochFit | None:
    """Return our side of a call; None where it cannot be understood: Keras refuses it, or trains it alone."""
    try:
        return EpochFit(script, model, number, signature.bind(model, *args, **kwargs))
    except Exception as error:  # noqa: BLE001 - the script's training must not fail for what is ours
        script.lost = script.lost or f"fit {number}, before it, is not kept"
        script.worker.facts.warn(f"no checkpoints in fit {number}: {type(error).__name__}: {error}")
        return None
