"""Data that Python code makes: generators, PyDatasets, functions inside tf.data."""

import random

import keras
import numpy as np
import tensorflow as tf
from stage import WEIGHTS, X, Y, mlp, run, stream, variant

SIGNATURE = (tf.TensorSpec((6,), tf.float32), tf.TensorSpec((1,), tf.float32))


def endless(chance):
    while True:
        chosen = chance.choice(52, 8)
        yield X[chosen], Y[chosen]


def shared():
    while True:
        chosen = np.random.randint(0, 52, 8)
        yield X[chosen], Y[chosen]


class Rows(keras.utils.PyDataset):
    """Shuffles itself when an epoch ends."""

    def __init__(self, chance=None, **options):
        super().__init__(**options)
        self.order = np.arange(52)
        self.chance = chance

    def __len__(self):
        return 6

    def __getitem__(self, index):
        chosen = self.order[index * 8 : index * 8 + 8]
        return X[chosen], Y[chosen]

    def on_epoch_end(self):
        if self.chance is None:
            np.random.shuffle(self.order)
        else:
            self.chance.shuffle(self.order)


class Blurred(Rows):
    """Draws from a generator of its own for each batch."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + self.chance.normal(0, 0.1, x.shape).astype("float32"), y


class Labelled(Rows):
    """Gives dictionaries and weights, the last batch smaller."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        chosen = self.order[index * 8 : index * 8 + 8]
        return {"left": X[chosen, :3], "right": X[chosen, 3:]}, Y[chosen], WEIGHTS[chosen]


def two_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    out = keras.layers.Dense(1)(keras.layers.Dropout(0.2)(keras.layers.Concatenate()([left, right])))
    model = keras.Model({"left": left, "right": right}, out)
    model.compile("adam", "mse", weighted_metrics=["mae"])
    return model


@variant("generator-endless")
def _(stage):
    stage.fit(mlp(), endless(np.random.default_rng(3)), steps_per_epoch=5, epochs=4)


@variant("generator-unseeded")
def _(stage):
    stage.fit(mlp(), endless(np.random.default_rng()), steps_per_epoch=5)


@variant("generator-shared-chance")
def _(stage):
    stage.fit(mlp(), shared(), steps_per_epoch=5)


@variant("generator-finite")
def _(stage):
    rows = ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 52, 4))
    stage.fit(mlp(), rows, epochs=1)


@variant("generator-several-steps")
def _(stage):
    stage.fit(mlp(steps_per_execution=2), endless(np.random.RandomState(4)), steps_per_epoch=5)


@variant("generator-validates")
def _(stage):
    stage.fit(
        mlp(), X, Y, batch_size=8, validation_data=endless(np.random.default_rng(2)), validation_steps=3
    )  # fmt: skip


@variant("generator-both")
def _(stage):
    train, held = endless(np.random.default_rng(2)), endless(np.random.default_rng())
    stage.fit(mlp(), train, steps_per_epoch=6, validation_data=held, validation_steps=2)


@variant("generator-dictionaries")
def _(stage):
    def rows():
        while True:
            i = random.randrange(40)
            yield {"left": X[i : i + 8, :3], "right": X[i : i + 8, 3:]}, Y[i : i + 8]

    stage.fit(two_inputs(), rows(), steps_per_epoch=5)


@variant("pydataset-shuffled")
def _(stage):
    stage.fit(mlp(), Rows())


@variant("pydataset-own-chance")
def _(stage):
    stage.fit(mlp(), Blurred(np.random.default_rng()))


@variant("pydataset-in-order")
def _(stage):
    stage.fit(mlp(), Rows(np.random.RandomState(2)), shuffle=False, epochs=4)


@variant("pydataset-dictionaries")
def _(stage):
    stage.fit(two_inputs(), Labelled(), validation_data=Labelled(random_state()))


def random_state():
    return np.random.RandomState(6)


@variant("pydataset-threads")
def _(stage):
    stage.fit(mlp(), Rows(np.random.default_rng(1), workers=2))


@variant("pydataset-processes")
def _(stage):
    stage.fit(mlp(), Rows(np.random.default_rng(1), workers=2, use_multiprocessing=True), epochs=2)


@variant("pydataset-several-steps")
def _(stage):
    stage.fit(mlp(steps_per_execution=2), Rows(), validation_data=Rows(np.random.default_rng()))


@variant("pydataset-class-weight")
def _(stage):
    stage.fit(mlp(), Rows(), class_weight={0: 0.5, 1: 2.0})


@variant("from-generator")
def _(stage):
    order = list(range(52))

    def rows():
        random.shuffle(order)
        for index in order:
            yield X[index], Y[index]

    stage.fit(mlp(), tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE).batch(8))
    return order


@variant("from-generator-own-chance")
def _(stage):
    chance = np.random.default_rng()

    def rows():
        for index in chance.permutation(52):
            yield X[index] + chance.normal(), Y[index]

    data = tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE)
    stage.fit(mlp(), data.shuffle(20).batch(8).prefetch(2))


@variant("from-generator-cached")
def _(stage):
    def rows():
        for index in np.random.permutation(52):
            yield X[index], Y[index]

    data = tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE).cache()
    stage.fit(mlp(), data.shuffle(52).batch(8))


@variant("from-generator-shared")
def _(stage):
    chance = np.random.default_rng(5)

    def rows():
        for one in chance.permutation(52):
            yield X[one], Y[one]

    data = tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE).shuffle(9)
    stage.fit(mlp(), data.skip(12).batch(8), validation_data=data.take(12).batch(6))


@variant("from-generator-shared-cached")
def _(stage):
    chance = np.random.default_rng(5)

    def rows():
        for one in chance.permutation(52):
            yield X[one], Y[one]

    data = tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE).cache().shuffle(52)
    stage.fit(mlp(), data.skip(12).batch(8), validation_data=data.take(12).batch(6))


@variant("from-generator-validates")
def _(stage):
    def rows():
        for index in np.random.permutation(20):
            yield X[index], Y[index]

    data = tf.data.Dataset.from_generator(rows, output_signature=SIGNATURE).batch(8)
    stage.fit(mlp(), stream().shuffle(52).batch(8), validation_data=data)


@variant("py-function")
def _(stage):
    counts = {"rows": 0}

    def counted(row):
        counts["rows"] += 1
        return row + np.float32(counts["rows"] % 3) + np.random.rand(6).astype("float32")

    def mapped(a, b):
        return tf.ensure_shape(tf.numpy_function(counted, [a], tf.float32), (6,)), b

    stage.fit(mlp(), stream().shuffle(52).map(mapped).batch(8))


@variant("py-function-parallel-chance", inexact="Python code in a parallel map draws random numbers")
def _(stage):
    def mapped(a, b):
        noisy = tf.numpy_function(lambda row: row + np.random.rand(6).astype("float32"), [a], tf.float32)
        return tf.ensure_shape(noisy, (6,)), b

    stage.fit(mlp(), stream().map(mapped, num_parallel_calls=2).batch(8))


@variant("pydataset-in-a-tuple", inexact="the validation data come from a")
def _(stage):
    stage.fit(mlp(), stream().batch(8), validation_data=(Rows(),))


run()
