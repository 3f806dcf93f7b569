"""Training that neither `fit` nor the Python API does: nothing of it can be kept, and that is said.

Such a loop is noticed where an optimizer is applied or `train_on_batch` is called. After a kill the script
runs it again from its start: exactly, if it seeds what it draws, but the work is lost, and the next attempt
says how many batches that were, where they can be counted. The phase is then "own": whoever looks for hangs
knows that no sign of progress can be expected.

Limits: a loop that uses no optimizer of Keras's is not noticed; only `train_on_batch` is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.training.worker import Worker

_TOLD = (
    "the script trains in a loop of its own: nothing of it is kept, and after a kill it is run again from its"
    " start; a few lines change that: docs/api.md"
)


def install(worker: Worker, wrap: Callable[[type, str, Callable[..., Any]], None]) -> None:
    """Notice such loops.

    Args:
        worker: this process's.
        wrap: puts a function over a method; it is given the original first.
    """
    import tensorflow as tf
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
    from keras.src.optimizers.base_optimizer import BaseOptimizer

    def is_own() -> bool:
        return worker.fit is None and not worker.attached and not worker.restoring

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator] # TensorFlow is not typed
    def apply(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_own():
            _begin(worker)
        return original(self, *args, **kwargs)

    def train_on_batch(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if is_own():
            _begin(worker)
            worker.progress.set(own_batches=worker.progress.values["own_batches"] + 1)
        return result

    wrap(BaseOptimizer, "apply", apply)
    wrap(TensorFlowTrainer, "train_on_batch", train_on_batch)


def _begin(worker: Worker) -> None:
    if worker.progress.values["phase"] == "own":
        return
    if worker.hot is not None and worker.hot.waits:
        worker.hot.give_up("the script trains in a loop of its own")
    worker.phase("own", tell=True)
    worker.progress.write()
    if worker.own_loops_told:
        return
    worker.own_loops_told = True
    lost = worker.progress.earlier.get("own_batches")
    again = f"; the {lost} batches that the attempt before had trained so are lost" if lost else ""
    worker.facts.warn(_TOLD + again, unwatched=True)
