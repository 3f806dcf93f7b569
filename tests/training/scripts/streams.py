"""tf.data in many forms, one small fit after another; the last ones cannot be resumed at any step."""

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


def variant(name, dataset, **options):
    if not wanted(name):
        return
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=options.pop("steps_per_execution", 1))
    options = {"epochs": 2, **options}
    history = model.fit(dataset, verbose=0, callbacks=[Mortal(name)], **options)
    say(name, model, history)


variant("shuffled", source.shuffle(60).batch(10))
variant(
    "endless", source.shuffle(40).repeat().batch(8).prefetch(2), steps_per_epoch=5, epochs=3,
    validation_data=source.shuffle(30).batch(20), validation_steps=2,
)  # fmt: skip
variant("same-order", source.shuffle(60, seed=3, reshuffle_each_iteration=False).batch(10))
variant("unknown-size", source.filter(lambda a, b: a[0] > 0.3).shuffle(20).batch(8), epochs=3)
variant("cached-shuffle", source.shuffle(60).cache().batch(10))
variant("several-steps", source.shuffle(50).batch(7), steps_per_execution=2, epochs=3)
generator = tf.random.Generator.from_seed(5)
variant(
    "augmented",
    source.map(lambda a, b: (a + generator.normal((6,), stddev=0.1), b)).shuffle(9).batch(10),
    epochs=3,
)
