"""The generators and PyDatasets of one fit, and what a snapshot holds of them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training.capture import Trace
from runner.training.datasets import captured_variables, has_cache, make_unread, read_through, reshuffles_late
from runner.training.entropy import Entropy
from runner.training.maker import PEEKED, Maker
from runner.training.position import Position, bound
from runner.training.pycode import code_of
from runner.training.sharing import Sharing
from runner.training.values import listed, unlisted

#: By role: the argument of `fit` that may be one.
ROLES = {"train": "x", "validation": "validation_data"}


class Makers:
    """What watches the Python code that makes one fit's data."""

    def __init__(self, arguments: Mapping[str, Any], entropy: Entropy, saved: Snapshot | None):
        """Begin.

        Args:
            arguments: of the call of `fit`, by name.
            entropy: the job's.
            saved: what the fit is to be resumed from.
        """
        self._arguments = arguments
        self._entropy = entropy
        self._saved = {} if saved is None else states_of(saved)
        self._known: dict[str, Maker] = {}
        self._is_still = True  # a generator draws nothing just now
        self._validation_steps: int | None = None
        self._sharing = Sharing(arguments)
        self._sharing.watch()

    @property
    def train(self) -> Maker | None:
        """What makes the training data; None where no Python code does."""
        return self._known.get("train")

    def __bool__(self) -> bool:
        """Whether there are any yet."""
        return bool(self._known)

    def of(self, source: Any, *, training: bool, threaded: bool = False) -> Maker | None:
        """Return what shall watch a source; None where this fit has nothing to do with it.

        Args:
            source: a generator or PyDataset that Keras is about to read.
            training: the training data are known already.
            threaded: Keras reads it with threads or processes of its own.
        """
        role = "validation" if training else "train"
        if role in self._known or source is not self._arguments.get(ROLES[role]):
            return None
        maker = self._known[role] = Maker(source, self._entropy, role)
        maker.threaded = threaded
        if maker.is_generator and role == "validation" and role in self._saved:
            maker.aim(self._saved[role], at_once=False)
        return maker

    def adapted(self, source: Any) -> None:
        """Note that Keras has looked at the first batches of a PyDataset: validation's is put back now."""
        maker = self._known.get("validation")
        if maker is not None and source is maker.source and "validation" in self._saved:
            maker.aim(self._saved.pop("validation"), at_once=True)

    def look_into(self, iterator: Any, *, training: bool) -> Maker | None:
        """Return what watches the data behind an iterator of Keras's, a dataset with Python code too."""
        role = "train" if training else "validation"
        if role not in self._known and type(iterator.data_adapter).__name__ == "TFDatasetAdapter":
            dataset = iterator._distributed_dataset
            code = code_of(dataset)
            if code:
                maker = self._known[role] = Maker(dataset, self._entropy, role, code)
                if not training and has_cache(dataset):
                    maker.run_from_start()
                if not training and role in self._saved:
                    maker.aim(self._saved.pop(role), at_once=True)
        return self._known.get(role)

    def adopt_training(self, iterator: Any, position: Position) -> None:
        """Let the position in the training data know its maker and who shares them, a generator its end."""
        maker = position.maker = self.train
        position.sharing = self._sharing
        if maker is not None and position.method == "replay":
            maker.run_from_start()
        if maker is not None and maker.is_generator and iterator.steps_per_epoch:
            epochs = int(self._arguments.get("epochs", 1)) - int(self._arguments.get("initial_epoch", 0))
            bound(iterator, _drawn_in_steps(iterator) * epochs)

    def adopt_validation(self, iterator: Any, position: Position, training: Any) -> None:
        """Do the same for the validation data.

        Args:
            iterator: Keras's over the validation data.
            position: of the validation data.
            training: Keras's iterator over the training data.
        """
        maker = position.maker = self._known.get("validation")
        self._sharing.know(position)
        self._validation_steps = _drawn_in_steps(iterator) if iterator.steps_per_epoch else None
        if type(iterator.data_adapter).__name__ == "TFDatasetAdapter":
            if maker is None and reshuffles_late(iterator._distributed_dataset):
                position.method = "replay"
            elsewhere = {id(one) for one in captured_variables(training._distributed_dataset)}
            varying = captured_variables(iterator._distributed_dataset)
            position.holds([one for one in varying if id(one) not in elsewhere])
        if maker is not None and maker.is_generator:
            position.method = "replay"
            if self._validation_steps:
                bound(iterator, self._validation_steps)

    def set_out(self, iterator: Any, position: Position) -> None:
        """Note the state that an epoch begins with, before its first batch is asked for."""
        maker = self.train
        lives_on = iterator.steps_per_epoch and iterator._current_iterator is not None
        if maker is None or lives_on or position.drawn:
            return
        if maker.threaded:
            maker.started()
        elif not maker.pending:
            maker.opened()

    def flaw(self) -> str:
        """Say why the training data are not reproducible after all; "" as long as they seem to be."""
        return self._sharing.flaw or (self.train.disturbed() if self.train is not None else "")

    def lost(self) -> list[str]:
        """Return what of the data's state could not be put back since this was asked last."""
        found = [f"{one}, of the data" for maker in self._known.values() for one in maker.lost]
        for maker in self._known.values():
            maker.lost.clear()
        return found

    def aim(self, saved: Snapshot, position: Position) -> None:
        """Prepare the maker of the training data for being pulled again as far as a snapshot was."""
        maker, fresh = self.train, bool(saved.state["cursor"]["fresh"])
        if maker is None or "train" not in self._saved:
            return
        maker.aim(self._saved["train"], at_once=fresh)
        position.replaying = functools.partial(maker.replaying, saved)
        if maker.threaded and not fresh:
            maker.started()

    def add_to(self, snapshot: Snapshot) -> list[str]:
        """Put the makers' states into a snapshot; return what of them could not be captured."""
        nodes = snapshot.state["makers"] = {}
        missed: list[str] = []
        fresh = bool(snapshot.state["cursor"]["fresh"])
        for role in ROLES:
            if role in self._known:
                nodes[role], arrays = self._known[role].state(fresh=fresh)
                missed += self._known[role].missed
            elif role in self._saved:  # validation that has not come again since a resume
                nodes[role], arrays = self._saved[role]
            else:
                continue
            snapshot.arrays.update(arrays)
        if self.train is not None and self.train.asked is not None:
            # What is known of chance is known by now: it knows no draws for what is asked for later.
            snapshot.state["ahead"] = {"asked": self.train.asked, "still": self._is_still}
        return missed

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Let a generator draw nothing during the block, in which a snapshot is taken; where it can wait."""
        with self.train.still() if self.train is not None else contextlib.nullcontext(True) as self._is_still:
            yield

    def pulled(
        self, iterator: Any, position: Position, validation: Position, *, ran_out: bool
    ) -> dict[str, int | None]:
        """Return how many batches were taken from each generator; None: all it had.

        Args:
            iterator: Keras's over the training data.
            position: in them.
            validation: the same in the validation data.
            ran_out: the last epoch ended with the training data, not by a number of steps or a callback.
        """
        found: dict[str, int | None] = {}
        if "train" in self._known:
            drawn = sum(count or 0 for count in position.history) + position.drawn
            found["train"] = None if ran_out and not iterator.steps_per_epoch else max(PEEKED, drawn)
        if "validation" in self._known:
            steps = self._validation_steps
            found["validation"] = PEEKED + validation.iterators * max(0, steps - PEEKED) if steps else None
        return found


def _drawn_in_steps(iterator: Any) -> int:
    """Return how many batches Keras draws in one pass: the last execution draws as many as the others.

    Args:
        iterator: Keras's, with a number of steps.
    """
    size = int(iterator.steps_per_execution)
    return math.ceil(int(iterator.steps_per_epoch) / size) * size


def finish(snapshot: Snapshot, arguments: Mapping[str, Any], entropy: Entropy) -> list[str]:
    """Leave generators and PyDatasets as a finished fit did; the shared generators are put back by others.

    Returns:
        What of their state could not be put back.
    """
    done = snapshot.state["finished"]
    states, pulled = states_of(snapshot), done.get("pulled", {})
    lost: list[str] = []
    for role, argument in ROLES.items():
        source, state = arguments.get(argument), states.get(role)
        if hasattr(source, "element_spec"):
            lost += _finish_dataset(source, role, state, done["datasets"][role], entropy)
        elif source is not None and state is not None:
            maker = Maker(source, entropy, role)
            maker.finish(state, pulled.get(role))
            lost += maker.lost
    Sharing(arguments).open_for_others(done["datasets"].get("train", {}).get("others", {}))
    return [f"{one}, of the data" for one in lost]


def left_behind(iterator: Any, position: Position) -> dict[str, Any]:
    """Return what a finished fit leaves of a dataset for the next one, as JSON.

    Args:
        iterator: Keras's; None where there was none.
        position: in its data.
    """
    others = position.sharing.left_behind() if position.sharing is not None else {}
    if iterator is None or type(iterator.data_adapter).__name__ != "TFDatasetAdapter":
        return {"iterators": position.iterators, "others": others}
    variables = captured_variables(iterator._distributed_dataset)
    return {
        "iterators": position.iterators,
        "others": others,
        "reads": position.past_reads(),
        "history": position.past() if position.method == "replay" else None,
        "variables": [listed(variable.numpy()) for variable in variables],
    }


def _finish_dataset(
    dataset: Any, role: str, state: Trace | None, left: Mapping[str, Any], entropy: Entropy
) -> list[str]:
    code = code_of(dataset) if state is not None else None
    maker = Maker(dataset, entropy, role, code) if code else None
    history = left.get("history")
    if maker is not None and state is not None:
        if history is not None:
            maker.run_from_start()
        maker.finish(state, None)
    if history is None:
        make_unread(dataset, left["iterators"], left.get("reads", 0))
    else:
        read_through(dataset, history)
    for variable, value in zip(captured_variables(dataset), left.get("variables", []), strict=False):
        variable.assign(unlisted(value))
    return maker.lost if maker is not None else []


def states_of(snapshot: Snapshot) -> dict[str, Trace]:
    """Return what a snapshot holds of each maker, by its role."""
    found = {}
    for role in ROLES:
        node = snapshot.state.get("makers", {}).get(role)
        if node is not None:
            prefixes = (f"trace/{role}-data/", f"data/{role}/")
            found[role] = node, {k: a for k, a in snapshot.arrays.items() if k.startswith(prefixes)}
    return found
