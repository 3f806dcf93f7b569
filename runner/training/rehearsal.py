"""Looking at a script without training it: each `fit` goes as far as its first step.

`runner doctor` starts a worker so, in a copy of the job's folder. A fit is classified, takes one step and
one step of validation, says in its facts what was learnt, and is over: the script gets a history of one epoch
and goes on. A loop of the Python API takes one step. Nothing is saved.

Limits: what a script trains without any of these is noticed where an optimizer is used, and not cut short,
but for `train_on_batch`, which trains once and then gives the same result again. Exact is judged by what is
seen until then: a callback that begins something later, or data that change later, are not.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.core.exactness import Kind
from runner.training.datasets import iterate
from runner.training.fitting import Fit
from runner.training.loop import Attached, Part
from runner.training.worker import Worker

#: Reading again is measured over at most so many batches, and for about so long.
_BATCHES_MAX = 200
_SECONDS_MAX = 1.0
_CANNOT_SAVE = "no checkpoint can be taken of it"


class Rehearsal(Fit):
    """A call of `fit` that takes one step."""

    def __init__(self, worker: Worker, model: Any, number: int, saved: None, arguments: Mapping[str, Any]):
        super().__init__(worker, model, number, saved, arguments)
        self._replay: dict[str, Any] | None = None
        worker.facts("rehearsing", fit=number, what="fit", where=_place(worker))

    def steps(self, original: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        """Give out the first step, look closer, and end the training."""
        iterator = self.iterator
        inner = original(iterator)
        self.makers.set_out(iterator, self.position)
        for item in itertools.islice(inner, 1):
            yield item
            self.done = 1
            self.worker.step += iterator.steps_per_execution
            self.position.drawn = iterator.steps_per_execution
            self._look_closer(item)
        self.model.stop_training = True
        iterator.data_adapter.on_epoch_end()

    def _look_closer(self, item: Any) -> None:
        if self._take_fleeting() is None or self._log.broken:
            self.worker.classify(self.number, Kind.NOT_EXACT, _CANNOT_SAVE)
        if self.verdict.by_replay:
            self._replay = self._measure(item)
        self.verdict.look_again(self.makers)

    def _measure(self, item: Any) -> dict[str, Any]:
        """Read on for a moment; return what reading again will take."""
        began, took_s = time.monotonic(), [0.0]
        for _ in itertools.islice(self._source(item), _BATCHES_MAX):
            took_s.append(time.monotonic() - began)
            if took_s[-1] > _SECONDS_MAX:
                break
        count = len(took_s) - 1
        # The first batch is apart: a shuffle fills its buffer for it.
        batch_s = (took_s[-1] - took_s[1]) / (count - 1) if count > 1 else took_s[-1]
        steps = self.iterator.steps_per_epoch or self.iterator._num_batches
        epoch_s = took_s[1] + (steps - 1) * batch_s if steps and count else None
        return {"batches": count, "batch_s": batch_s, "epoch_batches": steps, "epoch_s": epoch_s}

    def _source(self, item: Any) -> Iterator[Any]:
        """Return an iterator to measure by: a new one, but where there can be only one at a time."""
        adapter = self.iterator.data_adapter
        threaded = getattr(adapter, "enqueuer", None) is not None
        if threaded or type(adapter).__name__ == "GeneratorDataAdapter":
            present: Iterator[Any] = item[-1]
            return present
        return iterate(self.iterator._distributed_dataset)

    def epoch_ended(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep nothing of it."""

    def finish(self) -> None:
        """Say what was learnt."""
        self.close()
        self.worker.facts("rehearsed", fit=self.number, method=self.verdict.method, replay=self._replay)
        self.worker.phase("after", tell=True)


class RehearsedRun(Attached):
    """A run of the Python API of which each loop takes one step."""

    def __init__(self, here: Worker, models: list[Any], optimizers: list[Any], more: list[Any]):
        super().__init__(here, models, optimizers, more)
        self._broken = True  # so that nothing is saved

    def epochs(self, total: int) -> Iterator[int]:
        """Yield the first epoch."""
        yield from super().epochs(min(total, 1))

    def checkpoint(self) -> Path | None:
        """Save nothing."""
        return None

    def _begin(self, epochs: int | None) -> Part:
        here = self._worker
        here.facts("rehearsing", fit=here.fits, what="loop", where=_place(here))
        return super()._begin(epochs)

    def _walk(self, part: Part, total: int | None, data: Any) -> Iterator[Any]:
        steps: Any = super()._walk(part, total, data)
        yield from itertools.islice(steps, 1)
        next(steps, None)  # the step is complete when the next is asked for
        if self._try(part, whole=False) is None:
            self._worker.classify(part.number, Kind.NOT_EXACT, _CANNOT_SAVE)
        steps.close()
        part.inside = False
        self._worker.facts("rehearsed", fit=part.number, method="loop", replay=None)


def install(worker: Worker, wrap: Callable[[type, str, Callable[..., Any]], None]) -> None:
    """Cut validation and other training short; over all else that is put on Keras."""
    import tensorflow as tf
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
    from keras.src.optimizers.base_optimizer import BaseOptimizer
    from keras.src.trainers.epoch_iterator import EpochIterator
    from keras.src.trainers.trainer import Trainer

    results: dict[tuple[int, bool], tuple[Any, Any]] = {}
    inside: list[str] = []

    def enumerate_iterator(original: Callable[[Any], Iterator[Any]], self: Any) -> Iterator[Any]:
        validates = worker.fit is not None and self is getattr(worker.fit.model, "_eval_epoch_iterator", None)
        return _first(original(self), self) if validates else original(self)

    def should_eval(original: Callable[..., bool], self: Any, *args: Any) -> bool:
        return (worker.fit is not None and worker.fit.model is self) or original(self, *args)

    def train_on_batch(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_watched(worker):
            return original(self, *args, **kwargs)
        kind = (id(self), bool(kwargs.get("return_dict")))
        if kind not in results:
            _tell_own_loop(worker, "train_on_batch")
            inside.append("train_on_batch")
            results[kind] = (self, original(self, *args, **kwargs))
            inside.pop()
        return results[kind][1]

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator] # TensorFlow is not typed
    def apply(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_watched(worker) and not inside:
            _tell_own_loop(worker, "an optimizer")
        return original(self, *args, **kwargs)

    wrap(EpochIterator, "_enumerate_iterator", enumerate_iterator)
    wrap(Trainer, "_should_eval", should_eval)
    wrap(TensorFlowTrainer, "train_on_batch", train_on_batch)
    wrap(BaseOptimizer, "apply", apply)


def _first(steps: Iterator[Any], iterator: Any) -> Iterator[Any]:
    """Give out the first step of validation."""
    yield from itertools.islice(steps, 1)
    iterator.data_adapter.on_epoch_end()


def _is_watched(worker: Worker) -> bool:
    return worker.fit is not None or worker.attached


def _tell_own_loop(worker: Worker, what: str) -> None:
    message = "it trains in a loop of its own, of which the runner keeps nothing"
    worker.facts.warn(message, unwatched=True, what=what, where=_place(worker))


def _place(worker: Worker) -> str:
    """Return the innermost line of the job's own code that is being run, as FILE:LINE."""
    folder = worker.launch.cwd.resolve()
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(folder) and not {".venv", "site-packages"} & set(path.parts):
            return f"{path.relative_to(folder)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
