"""The generators and PyDatasets of one fit, and what a snapshot holds of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from runner.storage.checkpoint import Snapshot
from runner.training import capture
from runner.training.capture import Trace
from runner.training.entropy import Entropy
from runner.training.maker import Maker
from runner.training.position import Position, bound

#: By role: the argument of `fit` that may be one.
ROLES = {"train": "x", "validation": "validation_data"}
#: Keras looks at two batches of a generator beforehand, and begins each iterator with them.
_PEEKED = 2


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
        self._validation_steps: int | None = None

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

    def adopt_training(self, iterator: Any, position: Position) -> None:
        """Let the position in the training data know its maker, and a generator its end."""
        maker = position.maker = self.train
        if maker is not None and maker.is_generator and iterator.steps_per_epoch:
            epochs = int(self._arguments.get("epochs", 1)) - int(self._arguments.get("initial_epoch", 0))
            bound(iterator, int(iterator.steps_per_epoch) * epochs)

    def adopt_validation(self, iterator: Any, position: Position) -> None:
        """Do the same for the validation data."""
        maker = position.maker = self._known.get("validation")
        self._validation_steps = iterator.steps_per_epoch
        if maker is not None and maker.is_generator:
            position.method = "replay"
            if self._validation_steps:
                bound(iterator, int(self._validation_steps))

    def set_out(self, iterator: Any) -> int:
        """Note the state that an epoch begins with, where Keras's threads begin at once; no step is done."""
        lives_on = iterator.steps_per_epoch and iterator._current_iterator is not None
        if self.train is not None and self.train.threaded and not lives_on:
            self.train.started()
        return 0

    def aim(self, saved: Snapshot, position: Position) -> None:
        """Prepare the maker of the training data for being pulled again as far as a snapshot was."""
        maker, fresh = self.train, bool(saved.state["cursor"]["fresh"])
        if maker is None or "train" not in self._saved:
            return
        maker.aim(self._saved["train"], at_once=fresh)
        position.settle = functools.partial(self._settle, maker, saved)
        if maker.threaded and not fresh:
            maker.started()

    def _settle(self, maker: Maker, saved: Snapshot) -> None:
        """Put back, when the place in the data is reached, what the data do not draw from."""
        if not maker.has_drawn():
            capture.restore_drawn(saved, self._entropy)

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
        return missed

    def pulled(self, iterator: Any, position: Position, validation: Position) -> dict[str, int | None]:
        """Return how many batches were taken from each generator; None: all it had."""
        found: dict[str, int | None] = {}
        if "train" in self._known:
            drawn = sum(position.history) + position.drawn
            found["train"] = max(_PEEKED, drawn) if iterator.steps_per_epoch else None
        if "validation" in self._known:
            steps = self._validation_steps
            found["validation"] = _PEEKED + validation.iterators * max(0, steps - _PEEKED) if steps else None
        return found


def finish(snapshot: Snapshot, arguments: Mapping[str, Any], entropy: Entropy) -> None:
    """Leave generators and PyDatasets as a finished fit did; the shared generators are put back by others."""
    pulled = snapshot.state["finished"].get("pulled", {})
    for role, state in states_of(snapshot).items():
        source = arguments.get(ROLES[role])
        if source is not None:
            Maker(source, entropy, role).finish(state, pulled.get(role))


def states_of(snapshot: Snapshot) -> dict[str, Trace]:
    """Return what a snapshot holds of each maker, by its role."""
    found = {}
    for role in ROLES:
        node = snapshot.state.get("makers", {}).get(role)
        if node is not None:
            prefixes = (f"trace/{role}-data/", f"data/{role}/")
            found[role] = node, {k: a for k, a in snapshot.arrays.items() if k.startswith(prefixes)}
    return found
