"""Callbacks whose state comes into being while they listen, one fit after another."""

import dataclasses
import enum
import itertools
import logging
import sys
import threading

import keras
import numpy as np
import tensorflow as tf
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


def variant(name, *callbacks, data=None, model=None):
    if model is None:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    data = (x, y, 8) if data is None else (data,)
    history = model.fit(*data, epochs=4, verbose=0, callbacks=[*callbacks, Mortal(name)])
    return model, history


keeping = Keeping()
model, history = variant("objects", keeping)
say(
    "objects", model, history,
    keeping.records, keeping.by_epoch, sorted(keeping.seen, key=repr), keeping.phase,
    [one is keeping.best for one in keeping.records], keeping.by_epoch[0, Phase.MAIN] is keeping.records[0],
    keeping.weights.loss, [one.tolist() for one in keeping.weights.values],
)  # fmt: skip


class Growing(keras.callbacks.Callback):
    """Makes globals as it goes, one of them large, one an object whose method makes another."""

    def on_train_batch_end(self, batch, logs=None):
        global steps, history_of_rows
        steps = globals().get("steps", 0) + 1
        history_of_rows = np.append(history_of_rows, np.full((1, 20_000), logs["loss"]), 0)

    def on_epoch_begin(self, epoch, logs=None):
        global unfinished
        unfinished = epoch

    def on_epoch_end(self, epoch, logs=None):
        global last_loss, tally, unfinished
        last_loss = logs["loss"]
        del unfinished
        if epoch == 0:
            tally = Tally()
        tally.count()


class Tally:
    def __init__(self):
        self.counted = 0

    def count(self):
        global counted_twice
        self.counted += 1
        counted_twice = self.counted * 2


def closure():
    def note(epoch, logs):
        nonlocal late
        late = [*(late if epoch else []), logs["loss"]]

    model, history = variant("closure", keras.callbacks.LambdaCallback(on_epoch_end=note))
    found, late = late, None  # noqa: F821 - the callback has bound it
    say("closure", model, history, found)


history_of_rows = np.zeros((0, 20_000))
model, history = variant("globals", Growing())
say("globals", model, history, steps, history_of_rows.sum(), history_of_rows.shape, last_loss, tally.counted)
print("RESULT globals-more", counted_twice, "unfinished" in globals())
closure()


def lazily():
    """Keep count in a global that the first batch makes, before others in the order of names."""
    global drawn
    for index in range(32):
        drawn = globals().get("drawn", 0) + 1
        order.append(order.pop(drawn % 7))
        yield x[order[index % 7]] + drawn, y[index]


order = list(range(7))
signature = (tf.TensorSpec((4,), tf.float32), tf.TensorSpec((1,), tf.float32))
data = tf.data.Dataset.from_generator(lazily, output_signature=signature).batch(8)
model, history = variant("lazy-data", data=data)
say("lazy-data", model, history, drawn, order)


class Drawing(keras.callbacks.Callback):
    """Draws from generators of Keras and TensorFlow, and keeps what belongs partly to the model."""

    def __init__(self, model):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)
        self.generator = tf.random.Generator.from_seed(4)
        self.more = keras.Sequential([model.layers[-1], keras.layers.Dense(2)])
        self.more.build((None, 4))
        self.schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
        self.loss, self.bar = keras.losses.MeanSquaredError(), keras.utils.Progbar(3, verbose=0)
        self.data = tf.data.Dataset.range(3)
        self.drawn = []

    def on_train_batch_end(self, batch, logs=None):
        drawn = keras.random.normal((), seed=self.seeds) + self.generator.normal(()) + shared.normal(())
        kernel = self.more.layers[-1].kernel
        kernel.assign(kernel + drawn)
        self.drawn.append(float(drawn) * float(self.schedule(batch)))
        logger.debug("drawn")
        with lock:
            words.get("drawn")


shared = tf.random.Generator.from_seed(5)
logger, lock, words = logging.getLogger(), threading.Lock(), {"drawn": 1}
drawing = None


def draw():
    global drawing
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    drawing = Drawing(model)
    return variant("generators", drawing, model=model)


model, history = draw()
say("generators", model, history, drawing.drawn, drawing.more.layers[-1].kernel.numpy().tolist())


class Ledger:
    """Keeps accounts for all its objects together."""

    entries = {}  # noqa: RUF012 - shared by intention

    def enter(self, epoch, loss):
        Ledger.entries[epoch] = loss
        Ledger.last = loss


class Counting(keras.callbacks.Callback):
    """Has what it counts at its class, partly from the beginning."""

    losses = []  # noqa: RUF012 - shared by intention
    steps = 0

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()

    def on_train_batch_end(self, batch, logs=None):
        Counting.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(logs["loss"])
        self.ledger.enter(epoch, logs["loss"])


model, history = variant("classes", Counting())
say("classes", model, history, Counting.losses, Counting.steps, Ledger.entries, Ledger.last)


class Ordered(dict):
    pass


class Hiding(keras.callbacks.Callback):
    """Has what cannot be captured, in attributes and globals."""

    def __init__(self):
        super().__init__()
        self.items = iter(tf.data.Dataset.range(1000))
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    def on_train_batch_end(self, batch, logs=None):
        tallies[batch] = next(numbers) + int(next(self.items)) + int(next(items))


numbers, tallies, items = itertools.count(), Ordered(), iter(tf.data.Dataset.range(1000))
if "--hiding" in sys.argv:
    variant("hiding", Hiding())
