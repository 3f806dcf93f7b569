"""Callbacks whose state comes into being while they listen, one fit after another."""

import dataclasses
import enum

import keras
import numpy as np
from victim import Mortal, say

x = np.random.RandomState(1).rand(32, 4).astype("float32")
y = x[:, :1] * 2


class Phase(enum.Enum):
    WARM = 1
    MAIN = 2


@dataclasses.dataclass
class Epoch:
    number: int
    loss: float
    phase: Phase = Phase.WARM


@dataclasses.dataclass(frozen=True)
class Seen:
    epoch: int


class Weights:
    __slots__ = ("loss", "values")

    def __init__(self, loss, values):
        self.loss, self.values = loss, values


class Keeping(keras.callbacks.Callback):
    """Makes objects of the script's classes, and reaches some of them by two ways."""

    def __init__(self):
        super().__init__()
        self.records, self.by_epoch, self.seen = [], {}, set()
        self.best = self.phase = self.weights = None

    def on_epoch_end(self, epoch, logs=None):
        record = Epoch(epoch, logs["loss"])
        self.records.append(record)
        self.by_epoch[epoch, Phase.MAIN] = record
        self.seen.add(Seen(epoch))
        if self.best is None or record.loss < self.best.loss:
            self.best, self.phase = record, Phase.MAIN
            self.weights = Weights(record.loss, self.model.get_weights())
        self.best.phase = self.phase


def variant(name, *callbacks):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[*callbacks, Mortal(name)])
    return model, history


keeping = Keeping()
model, history = variant("objects", keeping)
say(
    "objects", model, history,
    keeping.records, keeping.by_epoch, sorted(keeping.seen, key=repr), keeping.phase,
    [one is keeping.best for one in keeping.records], keeping.by_epoch[0, Phase.MAIN] is keeping.records[0],
    keeping.weights.loss, [one.tolist() for one in keeping.weights.values],
)  # fmt: skip
