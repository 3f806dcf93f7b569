"""The Python API, for training loops that are not `fit`.

    run = runner.attach(model=model, optimizer=optimizer)
    for step in run.steps(10_000):
        ...
        run.report(step, loss=float(loss))

Outside the runner all of it works and does nothing: `steps` counts, `track` hands back what it is given, no
file is touched. Under the runner a loop goes on where it stopped, with everything attached and tracked as it
was; see `runner.training.loop` for how.

Limits: one `attach` a process, and one such process a job; exact is what is attached, tracked, or made from
the step's number. What Python code draws while TensorFlow compiles a function is drawn anew at a resume.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.spec import CadenceUnit, Every
from runner.training import launch, worker

if TYPE_CHECKING:
    from runner.training.worker import Worker

_EVERY = re.compile(r"(\d+(?:\.\d+)?) ?(s|m|h|steps?|epochs?)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def attach(
    model: Any = None, optimizer: Any = None, metrics: Iterable[Any] = (), every: str | None = None
) -> Run:
    """Put a training loop under the runner's care.

    `run.state` is filled at once. All else is restored when the loop begins, so that what the script computes
    before is computed as ever. What is not built by then is built by running the loop's first step once
    more, as in the beginning, before everything is restored: that step is reported nowhere, but what else it
    does (printing, appending to a list of the script's own) happens once more. Where it cannot be restored
    even then, the attempt ends with exit code 78 instead of training from scratch.

    Args:
        model: a Keras model, or several (list, tuple or dict).
        optimizer: the same of optimizers; that of a compiled model comes with the model.
        metrics: further holders of variables: metrics, seed generators, variables themselves.
        every: another checkpoint cadence than the job's: "auto", "30s", "500 steps", "1 epoch".

    Raises:
        ValueError: `every` cannot be read.
        RuntimeError: the process is attached already; or, in a job's command, this is not the main thread.
    """
    cadence = _every(every) if every is not None else None
    here = worker.current() or _start()
    if here is None or here.progress.values["pid"] != os.getpid():
        return Run()
    if here.attached:
        raise RuntimeError("runner.attach was called already: a process is attached once, for all its loops")
    import keras

    if keras.config.backend() != "tensorflow":
        here.facts.warn(f"Keras runs on {keras.config.backend()}: no checkpoints; they need TensorFlow")
        return Run()
    from runner.training.loop import Attached

    kind: type[Attached] = Attached
    if here.launch.rehearse:
        from runner.training.rehearsal import RehearsedRun

        kind = RehearsedRun
    if here.hot is not None:
        here.hot.stand_by(here)
    here.attached = True
    if not here.searched:
        here.find_saved()
    if cadence is not None:
        here.set_cadence(cadence)
    return kind(here, each(model), each(optimizer), list(metrics))


def _start() -> Worker | None:
    """Make the worker of a process that the bootstrap did not start, a job's command; None outside a job."""
    if "RUNNER_STATE" not in os.environ or "RUNNER_ATTEMPT" not in os.environ:
        return None
    if multiprocessing.parent_process() is not None:
        return None  # a child that loads data, say: its parent is the one to attach
    try:
        orders = launch.load()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("runner.attach: call it in the main thread, which receives the signals")
    return worker.start(orders, seed=False)


def each(value: Any) -> list[Any]:
    """List what is one object, several, or none."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _every(text: str) -> Every:
    if text == "auto":
        return Every()
    match = _EVERY.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'every = {text!r}: expected "auto", "30s", "500 steps" or "1 epoch"')
    count, unit = float(match[1]), match[2]
    if unit in _SECONDS:
        return Every(CadenceUnit.SECONDS, count * _SECONDS[unit])
    return Every(CadenceUnit.STEPS if unit.startswith("step") else CadenceUnit.EPOCHS, count)


class Run:
    """A training run; this one is nobody's: everything works, nothing is kept."""

    def __init__(self) -> None:
        #: A small dict of what JSON can hold; saved and restored with the rest.
        self.state: MutableMapping[str, Any] = State()
        self.step = 0  #: completed steps, over all loops

    @property
    def should_stop(self) -> bool:
        """Whether a stop is asked for: a hint to cut short what is long within a step.

        The loop obeys by itself when the present step is done; do not break out of it.
        """
        return False

    def steps(self, total: int) -> Iterator[int]:
        """Yield the numbers of the steps still to do, of `total` from 0; in `epochs`, those of the epoch.

        Between two steps is a safe point: there a checkpoint is taken when due, and a stop obeyed.
        """
        return self._count(range(total))

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the elements of `data`, each one step: a loop over data, or in `epochs` one epoch's.

        Args:
            data: a tf.data dataset, or any iterable that gives the same elements in each process; tracked.
        """
        return self._count(data)

    def _count(self, data: Iterable[Any]) -> Iterator[Any]:
        for element in data:
            try:
                yield element
            finally:
                self.step += 1

    def epochs(self, total: int) -> Iterator[int]:
        """Yield the numbers of the epochs still to do; inside, use `steps` or `batches` once an epoch.

        What precedes them in the interrupted epoch is run again from the epoch's random state. An epoch that
        has neither counts as one step.
        """
        for number in range(total):
            before = self.step
            yield number
            self.step += self.step == before

    def report(self, step: int, **metrics: Any) -> None:
        """Report metrics at a step: one line of metrics.jsonl a call; the best model is judged by them."""

    def checkpoint(self) -> Path | None:
        """Save a checkpoint now, and return its path when it is durable; None where there is no loop to save.

        The present step counts as completed (between an epoch's steps and its end, the epoch does): call it
        as the last thing.

        Raises:
            OSError, StorageError: it could not be saved.
        """
        return None

    def track(self, data: Any) -> Any:
        """Have something else kept that the loop uses; return it, or what stands for it.

        Args:
            data: a tf.data dataset or an iterator (goes on at the same element: it is iterated anew and what
                was drawn is skipped); variables and generators; or a value that is changed in place: NumPy
                arrays, lists, dicts, deques, plain objects made of such. Always track in the same order.

        Raises:
            TypeError: it cannot be captured.
        """
        return data


class State(MutableMapping[str, Any]):
    """A small dict that holds what JSON can."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value
        self.check(key)

    def check(self, key: str) -> None:
        """Refuse a value that would not come back from JSON as it is, and drop it.

        Raises:
            TypeError: it would not.
        """
        value = self._values[key]
        try:
            same = type(key) is str and _is_same(json.loads(json.dumps(value)), value)
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            del self._values[key]
            raise TypeError(
                f"run.state[{key!r}] = a {type(value).__name__}: expected what JSON holds (None, bool, int,"
                " float, str, and lists and dicts of them, with str keys); for arrays and objects: run.track"
            )

    def snapshot(self) -> dict[str, Any]:
        """Return a copy; values that were changed inside since they were set are checked again."""
        for key in list(self._values):
            self.check(key)
        copied: dict[str, Any] = json.loads(json.dumps(self._values))
        return copied

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _is_same(read: Any, value: Any) -> bool:
    """Tell whether what was read is the value, types included; NaN is NaN."""
    if type(read) is not type(value):
        return False
    if isinstance(read, dict):
        return read.keys() == value.keys() and all(_is_same(read[key], value[key]) for key in read)
    if isinstance(read, list):
        return len(read) == len(value) and all(map(_is_same, read, value))
    return bool(read == value or (read != read and value != value))
