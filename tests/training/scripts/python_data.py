"""Data that Python code makes, in several shapes; each training dies where KILL says."""

import random
import sys

import keras
import numpy as np
from victim import Mortal, say, wanted

if "--seeded" in sys.argv:
    keras.utils.set_random_seed(7)
x = np.random.RandomState(1).rand(60, 4).astype("float32")
y = x.sum(1, keepdims=True)


def endless(draw):
    while True:
        chosen = draw()
        yield x[chosen], y[chosen]


def shared():
    return np.random.randint(0, 60, 10)


def passes(rng, size=10):
    """Shuffle, and give all of it, again and again."""
    while True:
        order = rng.permutation(60)
        for start in range(0, 60, size):
            yield x[order[start : start + size]], y[order[start : start + size]]


class Pieces(keras.utils.PyDataset):
    """Shuffles by NumPy's shared generator when an epoch ends, and blurs by its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.order = np.arange(60)
        self.rng = np.random.default_rng()
        self.epochs = 0
        self.seen = []

    def __len__(self):
        return 6

    def __getitem__(self, index):
        chosen = self.order[10 * index : 10 * index + 10]
        return x[chosen] + self.rng.normal(0, 0.1, (10, 4)).astype("float32"), y[chosen]

    def on_epoch_end(self):
        np.random.shuffle(self.order)
        self.epochs += 1
        self.seen.append(int(self.order[0]))


class Big(keras.utils.PyDataset):
    """Shuffles big arrays in place, in what Keras's own shuffling of the batches leaves in order."""

    def __init__(self):
        super().__init__()
        self.x = np.tile(x, (2000, 2))
        self.y = self.x.sum(1, keepdims=True)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.x[index * 10 : index * 10 + 10, :4], self.y[index * 10 : index * 10 + 10]

    def on_epoch_end(self):
        state = random.getrandbits(32)
        np.random.default_rng(state).shuffle(self.x)
        np.random.default_rng(state).shuffle(self.y)


class Quiet(keras.utils.PyDataset):
    """Draws from nothing: may be read by several threads."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return x[10 * index : 10 * index + 10], y[10 * index : 10 * index + 10]


def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2),
                              keras.layers.Dense(1)])  # fmt: skip
    model.compile("adam", "mse", metrics=["mae"])
    return model


def train(name, data, **kwargs):
    if not wanted(name):
        return
    model = build()
    history = model.fit(data, verbose=0, callbacks=[Mortal(name)], **kwargs)
    say(name, model, history, getattr(data, "seen", None))


train("shared", endless(shared), steps_per_epoch=5, epochs=4)
train("passes", passes(np.random.RandomState(3)), steps_per_epoch=4, epochs=4)
train("several-steps", passes(np.random.default_rng(), 20), steps_per_epoch=5, epochs=3)
both = passes(np.random.default_rng())
train("validated", both, steps_per_epoch=5, epochs=4, validation_data=endless(shared), validation_steps=3)
train("the-same-again", both, steps_per_epoch=5, epochs=2)
train("arrays", x, y=y, epochs=4, batch_size=10, validation_data=passes(np.random.RandomState(5)),
      validation_steps=4)  # fmt: skip
train("pieces", Pieces(), epochs=4, validation_data=Pieces())
train("in-order", Pieces(), epochs=4, shuffle=False)
train("big", Big(), epochs=4)
train("threads", Quiet(workers=2), epochs=4)
train("processes", Quiet(workers=2, use_multiprocessing=True), epochs=3)
finite = (batch for batch, _ in zip(passes(np.random.RandomState(8)), range(9), strict=False))
train("finite", finite, epochs=1)
