"""tf.data with Python code inside, shuffles begun anew, and such data for validation: one small fit each.

`python_streams.py train|validation [--seeded]`: the training or the validation data are such.
"""

import random
import sys

import keras
import numpy as np
import tensorflow as tf
from victim import Mortal, say, wanted

if "--seeded" in sys.argv:
    keras.utils.set_random_seed(11)

data = np.random.RandomState(1)
x = data.rand(60, 6).astype("float32")
y = x.sum(axis=1, keepdims=True).astype("float32")
source = tf.data.Dataset.from_tensor_slices((x, y))
signature = (tf.TensorSpec((6,), tf.float32), tf.TensorSpec((1,), tf.float32))


def variant(name, dataset, **options):
    if not wanted(name):
        return
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse", metrics=["mae"])
    history = model.fit(dataset, verbose=0, callbacks=[Mortal(name)], **{"epochs": 3, **options})
    say(name, model, history)


def from_generator(make):
    return tf.data.Dataset.from_generator(make, output_signature=signature)


order = list(range(60))


def shuffled():
    """Shuffle a global list in place, each time on top of the last, by Python's shared generator."""
    random.shuffle(order)
    for index in order:
        yield x[index], y[index]


class Noisy:
    """Counts its passes, and draws from a generator of its own and from NumPy's shared one."""

    def __init__(self):
        self.passes = 0
        self.own = np.random.default_rng(4)

    def __call__(self):
        self.passes += 1
        for index in self.own.permutation(40):
            yield x[index] + self.passes + np.random.rand(6).astype("float32"), y[index]


def endless():
    while True:
        yield from zip(x + np.random.rand(60, 6).astype("float32"), y, strict=True)


def hidden():
    """Keep the state where nobody sees it: in a generator."""
    chances = np.random.default_rng(7)
    while True:
        yield chances.permutation(60)


orders = hidden()


def by_hidden():
    for index in next(orders):
        yield x[index], y[index]


def jittered(a, b):
    a = tf.py_function(lambda one: one + tf.random.uniform((6,)), [a], tf.float32)
    return tf.ensure_shape(a, (6,)), b


def doubled(a, b):
    return tf.ensure_shape(tf.py_function(lambda one: one * 2, [a], tf.float32), (6,)), b


variant("generator", from_generator(shuffled).batch(8))
variant("object", from_generator(Noisy()).shuffle(20).batch(8).prefetch(2))
variant("endless", from_generator(endless).batch(8).prefetch(1), steps_per_epoch=5)
variant("hidden", from_generator(by_hidden).batch(10))
variant("jittered", source.shuffle(60).map(jittered).batch(8).prefetch(1))
variant("pure", source.shuffle(60).map(doubled, num_parallel_calls=2).batch(8))
variant("cached", from_generator(shuffled).cache().shuffle(60).batch(8))
variant("joined", source.shuffle(30).concatenate(source.take(20).shuffle(20)).batch(10))
variant("repeated", source.shuffle(60).repeat(2).batch(10))
rng = tf.random.Generator.from_seed(5)
variant(
    "validated",
    source.shuffle(60).batch(10),
    validation_data=from_generator(Noisy()).batch(10),
)
variant(
    "validated-cached",
    source.shuffle(60).batch(10),
    validation_data=from_generator(shuffled).take(20).cache().batch(10),
)
variant(
    "validated-noise",
    source.shuffle(60).batch(10),
    validation_data=source.take(20).map(lambda a, b: (a + rng.normal((6,)), b)).batch(10),
)
variant(
    "validated-anew",
    source.shuffle(60).batch(10),
    validation_data=source.take(20).shuffle(20).repeat(2).batch(10),
)
again = from_generator(Noisy()).batch(8)
variant("twice", again)
variant("twice-again", again)
