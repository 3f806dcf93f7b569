"""The Python API, for loops that are not `fit`.

    run = runner.attach(model=model, optimizer=optimizer)
    for step in run.steps(10_000):
        ...
        run.report(step, loss=float(loss))

Outside the runner all of it works and does nothing: `steps(n)` counts, `track` hands the data through. Under
the runner `steps` continues after the last completed step, with variables, random generators, `run.state`
and tracked data as they were; checkpoints are taken between steps, by the job's cadence; a stop is obeyed
there.

Limits: model and optimizer have to be built before `attach`; one `attach` a process. Data that are neither
tracked nor made from the step's number start over at a resume.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from runner.core.spec import CadenceUnit, Every
from runner.training import launch, worker

if TYPE_CHECKING:
    from runner.storage.checkpoint import Snapshot
    from runner.training.worker import Worker

_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|steps?|epochs?)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def attach(
    model: Any = None, optimizer: Any = None, metrics: Iterable[Any] = (), every: str | None = None
) -> Run:
    """Put a training loop under the runner's care, and fill it from the newest checkpoint.

    Args:
        model: a Keras model or several (list, tuple or dict), built.
        optimizer: the same of optimizers.
        metrics: further holders of variables (metrics, seed generators), and variables themselves.
        every: another checkpoint cadence than the job's: "auto", "30s", "500 steps".

    Raises:
        ValueError: something is not built yet, or `every` cannot be read.
        RuntimeError: the process is attached already.
    """
    parts = [*_each(model), *_each(optimizer), *metrics]
    cadence = _every(every) if every is not None else None
    here = worker.current()
    if here is None and "RUNNER_STATE" in os.environ and "RUNNER_ATTEMPT" in os.environ:
        here = _start()
    if here is None:
        return Run()
    if here.attached:
        raise RuntimeError("runner.attach was called already; one loop of a process can be attached")
    here.attached = True
    if cadence is not None:
        here.set_cadence(cadence)
    _build(model, optimizer)
    return _Attached(here, model if not isinstance(model, list | tuple | dict) else None, parts)


def _start() -> Worker | None:
    """Make the worker of a process that the bootstrap did not start: a command of the job's."""
    if threading.current_thread() is not threading.main_thread():
        return None
    here = worker.start(launch.load(), seed=False)
    here.find_saved()
    return here


def _each(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _build(model: Any, optimizer: Any) -> None:
    models, optimizers = _each(model), _each(optimizer)
    for one in models:
        if not getattr(one, "built", True):
            raise ValueError(
                f"{one.name} has no variables yet: build it (model.build, or call it once) first"
            )
    for one in optimizers:
        if not getattr(one, "built", True):
            if len(models) != 1 or len(optimizers) != 1:
                raise ValueError(f"{one.name} is not built: call optimizer.build(variables) first")
            one.build(models[0].trainable_variables)


def _every(text: str) -> Every:
    if text == "auto":
        return Every()
    match = _EVERY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'every = {text!r}: expected "auto", "30s", "500 steps" or "1 epoch"')
    count, unit = float(match[1]), match[2]
    if unit in _SECONDS:
        return Every(CadenceUnit.SECONDS, count * _SECONDS[unit])
    return Every(CadenceUnit.STEPS if unit.startswith("step") else CadenceUnit.EPOCHS, count)


class Run:
    """A loop that nobody looks after: everything works, nothing is kept."""

    def __init__(self) -> None:
        self.state: MutableMapping[str, Any] = State()
        self.step = 0  #: completed steps

    @property
    def should_stop(self) -> bool:
        """Whether a stop is asked for; `steps` obeys it by itself."""
        return False

    def steps(self, total: int) -> Iterator[int]:
        """Yield the numbers of the steps still to do, up to `total` of them since the very start."""
        while self.step < total:
            yield self.step
            self.step += 1

    def report(self, step: int, **metrics: Any) -> None:
        """Report metrics at a step; the best model is judged by them."""

    def checkpoint(self) -> None:
        """Ask for a checkpoint at the end of the present step (outside of `steps`: at once)."""

    def track(self, data: Iterable[Any]) -> Iterable[Any]:
        """Return the data with their position kept: a tf.data dataset, or an iterator."""
        return data


class State(MutableMapping[str, Any]):
    """A small dict that can only hold what JSON can."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not isinstance(key, str) or not same:
            raise TypeError(
                f"run.state[{key!r}]: only what JSON can hold, under a string; got {type(value).__name__}"
            )
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class _Attached(Run):
    """A loop under the runner."""

    def __init__(self, here: Worker, model: Any, parts: list[Any]):
        super().__init__()
        from runner.training import fingerprint
        from runner.training.capture import Camera

        self._worker = here
        self._parts = parts
        self._model = model
        self._camera = Camera(model, here.entropy, self._variables)
        self._tracked: list[_Tracked] = []
        self._asked = self._inside = self._worked = False
        self._fingerprint = {**fingerprint.machine(), "source": fingerprint.source(here.entry)}
        self._saved = self._take_over()

    def _variables(self) -> list[Any]:
        from runner.training.variables import each_once

        found: list[Any] = []
        for part in self._parts:
            own = getattr(part, "variables", None)
            found += own if own is not None else [getattr(part, "state", part)]
        return each_once(found)

    def _take_over(self) -> Snapshot | None:
        """Fill what was attached from the checkpoint; the generators follow when the loop begins."""
        from runner.training import capture
        from runner.training.variables import ChangedScriptError

        saved, here = self._worker.saved, self._worker
        if saved is None or saved.state.get("kind") != "loop":
            return None
        try:
            capture.restore_variables(saved, self._variables())
        except ChangedScriptError as reason:
            here.refuse(str(reason))
        for key, value in saved.state["user"].items():
            self.state[key] = value
        self.step = here.step = saved.step
        here.metrics.cut(int(saved.state["metrics_size"]))
        here.saved = None
        return saved

    @property
    def should_stop(self) -> bool:
        """Whether a stop is asked for; `steps` obeys it by itself."""
        return self._worker.stop.requested

    def steps(self, total: int) -> Iterator[int]:
        """Yield the numbers of the steps still to do; between two of them is a safe point."""
        here = self._worker
        self._begin(total)
        while self.step < total:
            self._inside = True
            yield self.step
            self._inside = False
            self.step += 1
            if not self._worked:
                self._worked = True
                here.release()
                here.phase("train", tell=True)
            self._safe_point()
        if self._worked:
            here.saver.flush()
            here.save_now(self._take())
        here.phase("after", tell=True)
        here.keep_nothing()

    def _begin(self, total: int) -> None:
        from runner.training import capture, fingerprint

        here, saved = self._worker, self._saved
        here.facts("classified", fit=0, exact=True, reason="a loop: what is attached and tracked")
        here.facts("fit-started", fit=0, epochs=None, steps_per_epoch=total)
        here.progress.set(step=self.step, steps_per_epoch=total, step_in_epoch=self.step)
        if saved is not None:
            self._saved = None
            capture.restore_variables(saved, self._variables())
            capture.restore_chance(saved, here.entropy)
            reasons = fingerprint.differences(saved.state["fingerprint"], self._fingerprint)
            here.tell_resumed(saved, reasons)

    def _safe_point(self) -> None:
        here, now = self._worker, time.monotonic()
        here.step = self.step
        here.progress.set(step=self.step, step_in_epoch=self.step)
        here.progress.write_if_due(now)
        if here.stop.may_leave:
            here.leave_with(self._take())
        if here.saver.due(self.step, None, False) or self._asked:
            self._asked = False
            snapshot = self._take()
            here.saver.submit(snapshot, time.monotonic() - now)

    def _take(self) -> Snapshot:
        return self._camera.take(
            step=self.step,
            epoch=0,
            callbacks=(),
            logs=None,
            state={
                "kind": "loop",
                "user": dict(self.state),
                "tracked": [one.position_node() for one in self._tracked],
                "metrics_size": self._worker.metrics.size(),
                "fingerprint": self._fingerprint,
                "traces": {},
            },
        )

    def report(self, step: int, **metrics: Any) -> None:
        """Report metrics at a step: a line in metrics.jsonl; the best model is judged by them."""
        from runner.training.report import now_text, plain

        here = self._worker
        values = {name: plain(value) for name, value in metrics.items()}
        here.metrics.append({"epoch": None, "step": step, "fit": 0, "time": now_text(), **values})
        here.progress.set(metrics=values)
        message = here.best.consider(0, step, values, self._take, self._save_whole)
        if message:
            print(message, flush=True)  # noqa: T201 - one line in the job's log

    def _save_whole(self, path: Any) -> None:
        if self._model is None:
            raise ValueError("a whole model can be saved only where one model is attached")
        self._model.save(str(path))

    def checkpoint(self) -> None:
        """Ask for a checkpoint at the end of the present step (outside of `steps`: at once)."""
        if self._inside:
            self._asked = True
        else:
            self._worker.save_now(self._take())

    def track(self, data: Iterable[Any]) -> Iterable[Any]:
        """Return the data with their position kept: a tf.data dataset, or an iterator."""
        saved = self._saved.state["tracked"] if self._saved is not None else []
        index = len(self._tracked)
        tracked = _Tracked(data, saved[index] if index < len(saved) else None)
        self._tracked.append(tracked)
        return tracked


class _Tracked:
    """Data whose position is kept; iterating goes on where it was."""

    def __init__(self, data: Any, saved: Mapping[str, int] | None):
        from runner.training.position import Position

        self._data = data
        self._position = Position("skip" if hasattr(data, "skip") else "pull")
        self._iterator: Iterator[Any] | None = None
        if saved is not None and saved["iterators"]:
            self._position.go_to(saved["iterators"], saved["drawn"], [])

    def position_node(self) -> dict[str, int]:
        return {"iterators": self._position.iterators, "drawn": self._position.drawn}

    def __iter__(self) -> Iterator[Any]:
        self._iterator = self._position.open(self._data)
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            iter(self)
        assert self._iterator is not None
        item = next(self._iterator)
        self._position.drawn += 1
        return item
