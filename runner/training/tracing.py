"""The first call of a model's training and test functions, in which Keras traces them.

Tracing may use the script's random generators (NumPy in a custom step). In a later process it has to find
them as the first trace ever did, and to leave them as they were, so that the trace is the same in every
attempt. Where Python code makes the data while the function runs, its draws cannot be told from the trace's:
then all is left as it comes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from runner.training import capture
from runner.training.worker import Worker


class Traces:
    """What chance was like before each function of one model was traced for the first time ever."""

    def __init__(self, worker: Worker, model: Any):
        self._worker = worker
        self._model = model
        #: The training function, and what stands before it for its first call.
        self._wrapped: tuple[Any, Callable[[Any], Any]] | None = None
        before = worker.traces.get(model, {})
        #: By function: the node and the arrays of the chance that its first trace found.
        self.known = {name: before[name] for name in before if _function(model, name) is not None}
        worker.traces[model] = self.known
        untraced = "test" in worker.untraced.get(model, ())
        self._test_known = model.test_function is not None and not untraced

    def state(self) -> dict[str, Any]:
        """Return the nodes that a snapshot's state holds, by function."""
        return {name: node for name, (node, _) in self.known.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that belong to them."""
        return {key: array for _, arrays in self.known.values() for key, array in arrays.items()}

    @contextlib.contextmanager
    def tracing(self, name: str, *, resumed: bool, exact: bool) -> Iterator[None]:
        """Run a function that Keras traces at its first call (`name`: "train" or "test")."""
        earlier = resumed or name in self._worker.untraced.get(self._model, ())
        self._worker.untraced.get(self._model, set()).discard(name)
        if name not in self.known:
            self.known[name] = capture.capture_chance(self._worker.entropy, name)
        elif earlier and not self._model.run_eagerly and exact:
            with capture.chance_of(self.known[name], self._worker.entropy):
                yield
            return
        yield

    def wrap_train_function(
        self, ran: Callable[[Any], None], resumed: Callable[[], bool], exact: Callable[[], bool]
    ) -> None:
        """Care for the first call of the training function, in which it is traced.

        Args:
            ran: called after it, with the function.
            resumed: tells whether the fit has been resumed.
            exact: tells whether the trace can be made again as it was.
        """
        function = self._model.train_function

        def first(iterator: Any) -> Any:
            if not resumed():
                self._worker.phase("trace", tell=True)
            with self.tracing("train", resumed=resumed(), exact=exact()):
                logs = function(iterator)
            self.unwrap_train_function()
            ran(function)
            return logs

        self._wrapped = function, functools.wraps(function)(first)
        self._model.train_function = self._wrapped[1]

    def unwrap_train_function(self) -> None:
        """Give the model its own function back, where it still has the other."""
        if self._wrapped is not None and self._model.train_function is self._wrapped[1]:
            self._model.train_function = self._wrapped[0]

    def wrap_test_function(self, *, resumed: bool, exact: Callable[[], bool]) -> None:
        """Care for the first trace of the test function, once."""
        if self._test_known:
            return
        self._test_known = True
        function = self._model.test_function

        def first(iterator: Any) -> Any:
            self._model.test_function = function
            with self.tracing("test", resumed=resumed, exact=exact()):
                return function(iterator)

        self._model.test_function = first


def _function(model: Any, name: str) -> Any:
    return model.train_function if name == "train" else model.test_function
