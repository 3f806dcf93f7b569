"""Data and callbacks that share what both use: classes, objects, the shared random generators."""

import time

import keras
import numpy as np
import tensorflow as tf
from victim import Mortal, say

keras.utils.set_random_seed(1)
x = np.random.RandomState(1).rand(32, 4).astype("float32")
SIGNATURE = (tf.TensorSpec((4,), tf.float32), tf.TensorSpec((1,), tf.float32))


def train(name, data, *callbacks, **options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(data, verbose=0, callbacks=[*callbacks, Mortal(name)], **options)
    return model, history


def batch_of(value):
    return np.full((4, 4), value, "float32"), np.full((4, 1), value / 2, "float32")


class Stream:
    """Counts at the class what it has served; a callback looks at the class, too."""

    size = 4
    served = 0
    seen = {}  # noqa: RUF012 - shared by intention

    @classmethod
    def rows(cls):
        for _ in range(48):
            cls.served += 1
            yield np.full((4,), cls.served / 48, "float32"), np.full((1,), 0.5, "float32")


class Looking(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        Stream.seen[batch] = Stream.seen.get(batch, 0) + Stream.size
        time.sleep(0.02)


rows = tf.data.Dataset.from_generator(Stream.rows, output_signature=SIGNATURE).batch(4).prefetch(4)
model, history = train("class", rows, Looking(), epochs=3)
say("class", model, history, Stream.seen)


class Counter:
    def __init__(self):
        self.made = self.trained = 0


def counted():
    """Count in an object that a callback has as well."""
    while True:
        counter.made += 1
        yield batch_of(counter.made / 60)


class Holding(keras.callbacks.Callback):
    def __init__(self, counter):
        super().__init__()
        self.made_at = []
        self.before = counter

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)
        self.made_at.append(self.before.made > 0)


counter = Counter()
holding = Holding(counter)
model, history = train("object", counted(), holding, steps_per_epoch=5, epochs=3)
say("object", model, history, holding.made_at)


class Pieces(keras.utils.PyDataset):
    """Keeps its order at the class, and how often it was shuffled in a global."""

    order = list(range(8))  # noqa: RUF012 - shared by intention

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        row = self.order[index]
        return batch_of(row / 8 + shuffled / 100)

    def on_epoch_end(self):
        global shuffled
        shuffled += 1
        generator.shuffle(Pieces.order)


shuffled, generator = 0, np.random.default_rng(3)
model, history = train("pieces", Pieces(), epochs=4)
say("pieces", model, history, Pieces.order, shuffled)


def held_back():
    """Be no further ahead than two batches of what is trained."""
    for number in range(1, 61):
        while number - counter.trained > 3:
            time.sleep(0.005)
        yield batch_of(number / 60)


class Pressing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        counter.trained += 1


model, history = train("held-back", held_back(), Pressing(), steps_per_epoch=6, epochs=4)
say("held-back", model, history)


def permuted():
    while True:
        for row in np.random.permutation(6):
            yield batch_of(row / 6)


class Jittering(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.jitter = np.random.rand()


model, history = train("both-draw", permuted(), Jittering(), steps_per_epoch=6, epochs=4)
