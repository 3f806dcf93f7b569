"""What belongs to a loop of the script's own: all that is attached and tracked, as snapshots and back."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.storage.checkpoint import Snapshot
from runner.training import capture, chance, fingerprint
from runner.training.api import State
from runner.training.capture import Camera, Trace
from runner.training.codec import Encoder, Node, Uncapturable
from runner.training.decode import Decoder
from runner.training.tracked import Tracked, Value
from runner.training.variables import ChangedScriptError, all_variables, check_same, each_once, optimizers_of
from runner.training.worker import Worker


@dataclass
class Start:
    """An epoch's start, as far as what runs before its steps may need it."""

    chance: Trace
    state: dict[str, Any]
    nodes: list[Node]  #: of what is tracked; None where it is restored at the first step only
    arrays: dict[str, np.ndarray]

    @property
    def node(self) -> Node:
        """What of it goes into a checkpoint's state."""
        return {"chance": self.chance[0], "user": self.state, "tracked": self.nodes}

    @classmethod
    def of(cls, snapshot: Snapshot) -> Start:
        """Return the epoch's start that a snapshot holds."""
        arrays = {key: one for key, one in snapshot.arrays.items() if key.startswith(("start/", "trace/"))}
        node = snapshot.state["start"]
        return cls((node["chance"], arrays), node["user"], node["tracked"], arrays)


class Belongings:
    """Models, optimizers, further variables, what is tracked, and the script's small state."""

    def __init__(self, here: Worker, state: State, models: list[Any], optimizers: list[Any], more: list[Any]):
        self._worker = here
        self._state = state
        self._models, self._optimizers, self._more = models, optimizers, more
        #: Laid out in the checkpoints for Keras's `load_weights`; None where several are attached.
        self.model: Any = models[0] if len(models) == 1 else None
        self._camera = Camera(
            self.model, here.entropy, self._variables, lend=lambda layout: here.saver.lend(layout)
        )
        self._tracked: list[Tracked] = []
        self._fingerprint = {**fingerprint.machine(), "source": fingerprint.source(here.entry)}
        self.doubts: list[str] = []
        self._lost: list[str] = []  #: what the last resume could not put back

    def add(self, holder: Any, keeper: Tracked | None) -> None:
        """Take in what was tracked; without a keeper it is a holder of variables."""
        if keeper is None:
            self._more.append(holder)
        else:
            self._tracked.append(keeper)

    @property
    def optimizers(self) -> list[Any]:
        """List the optimizers, those of models too."""
        return [*self._optimizers, *(part for model in self._models for part in optimizers_of(model))]

    def _variables(self) -> list[Any]:
        found: list[Any] = []
        for model in self._models:
            found += all_variables(model)
        for part in [*self._optimizers, *self._more]:
            own = getattr(part, "variables", None)
            found += own if own is not None else [getattr(part, "state", part)]
        return each_once(found)

    def is_built(self) -> bool:
        """Tell whether all variables are there that training makes."""
        own = [getattr(model, "optimizer", None) for model in self._models]
        return all(getattr(part, "built", True) for part in [*self._models, *self._optimizers, *own])

    def build(self, snapshot: Snapshot) -> None:
        """Build optimizers that were built at the snapshot, each for the model in its own place.

        Others, and models, are left to the script's first step.
        """
        if len(self._models) != len(self._optimizers):
            return
        paths = [one["path"] for one in snapshot.state["variables"]]
        for model, optimizer in zip(self._models, self._optimizers, strict=True):
            known = sum(path.startswith(f"{optimizer.name}/") for path in paths)
            if model.built and not optimizer.built and known > len(optimizer.variables):
                optimizer.build(model.trainable_variables)

    def rehearse(self) -> None:
        """Let what is drawn from the data be put back by `restore_data`, where it was too much."""
        for one in self._tracked:
            if not isinstance(one, Value):
                one.rehearse()

    def fits(self, snapshot: Snapshot) -> bool:
        """Tell whether the variables are those of the snapshot."""
        try:
            check_same(snapshot.state["variables"], self._variables())
        except ChangedScriptError:
            return False
        return True

    # -- snapshots ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Have memory ready for snapshots; that something cannot be captured is told when one is due."""
        with contextlib.suppress(TypeError, ValueError, RecursionError, Uncapturable):
            self._worker.saver.prepare(self._camera.size)

    def take(
        self, *, step: int, epoch: int, state: Mapping[str, Any], start: Start | None, ahead: Tracked | None
    ) -> Snapshot:
        """Return a snapshot of now.

        Args:
            step: completed steps, over the whole script.
            epoch: from 0.
            state: the loop's own part.
            start: of the present epoch.
            ahead: the data whose newest element is drawn, but not yet used.

        Raises:
            Uncapturable: something tracked cannot be captured any more.
            TypeError: nor can something in the script's state.
        """
        arrays: dict[str, np.ndarray] = {}
        encoder = Encoder(arrays, "tracked")
        snapshot = self._camera.take(
            step=step,
            epoch=epoch,
            callbacks=(),
            logs=None,
            state={
                **state,
                "user": self._state.snapshot(),
                "tracked": [one.node(encoder, int(one is ahead)) for one in self._tracked],
                "start": None if start is None else start.node,
                "doubts": list(self.doubts),
                "fingerprint": self._fingerprint,
                "traces": {},
            },
        )
        snapshot.arrays.update(arrays)
        if start is not None:
            snapshot.arrays.update({**start.chance[1], **start.arrays})
        return snapshot

    def note_start(self) -> Start:
        """Remember an epoch's start; of values only generators, the others are restored at the first step."""
        arrays: dict[str, np.ndarray] = {}
        encoder = Encoder(arrays, "start")
        nodes = [one.node(encoder, 0) if _is_early(one) else None for one in self._tracked]
        trace = capture.capture_chance(self._worker.entropy, "start")
        return Start(trace, self._state.snapshot(), nodes, arrays)

    # -- and back: each may raise ChangedScriptError --------------------------------------------------------

    def restore_start(self, snapshot: Snapshot, start: Start) -> None:
        """Put back what an epoch's beginning may need; variables as they were later, where they are there."""
        decoder = Decoder(start.arrays)
        for one, early, now in zip(self._tracked, start.nodes, snapshot.state["tracked"], strict=True):
            if isinstance(one, Value):
                if early is not None:
                    one.arrive(decoder, early)
            elif early is not None:
                one.approach(early, now)
        if self.fits(snapshot):
            capture.restore_variables(snapshot, self._variables())
        self._fill(start.state)
        chance.restore(Decoder(start.chance[1]), start.chance[0], self._worker.entropy)

    def restore_data(self, snapshot: Snapshot) -> None:
        """Go to the snapshot's place in all data."""
        nodes = snapshot.state["tracked"]
        if len(nodes) != len(self._tracked):
            raise ChangedScriptError(
                f"the checkpoint has {len(nodes)} things tracked, the script {len(self._tracked)}"
            )
        decoder = Decoder(snapshot.arrays)
        for one, node in zip(self._tracked, nodes, strict=True):
            if isinstance(one, Value) != ("drawn" not in node):
                raise ChangedScriptError("what is tracked is of another kind than in the checkpoint")
            if not isinstance(one, Value):
                one.arrive(decoder, node)

    def restore_rest(self, snapshot: Snapshot) -> None:
        """Put all else back."""
        decoder = Decoder(snapshot.arrays)
        capture.restore_variables(snapshot, self._variables())
        for one, node in zip(self._tracked, snapshot.state["tracked"], strict=True):
            if isinstance(one, Value):
                one.arrive(decoder, node)
        self._lost = [f"what is tracked cannot be put back: {lost}" for lost in dict.fromkeys(decoder.lost)]
        self._fill(snapshot.state["user"])
        capture.restore_chance(snapshot, self._worker.entropy)

    def _fill(self, values: Mapping[str, Any]) -> None:
        self._state.clear()
        self._state.update(values)

    def differences(self, snapshot: Snapshot) -> list[str]:
        """Say why a resume from the snapshot is not exact; nothing where it is."""
        found = fingerprint.differences(snapshot.state["fingerprint"], self._fingerprint)
        return list(dict.fromkeys([*found, *snapshot.state["doubts"], *self.doubts, *self._lost]))


def _is_early(one: Tracked) -> bool:
    return not isinstance(one, Value) or one.is_generator
