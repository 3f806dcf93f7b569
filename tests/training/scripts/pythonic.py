"""Training steps in which Python code of the script's own runs, and remembers things."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from victim import Mortal, say

x = np.random.default_rng(1).random((24, 4)).astype("float32")
y = x[:, :1] * 2
seen = {"batches": 0}


class Noisy(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self._chance = np.random.default_rng(2)

    def call(self, inputs, training=False):
        return inputs + self._chance.normal() * 0.1 if training else inputs


class Counting(keras.Model):
    def __init__(self):
        super().__init__()
        self.noisy, self.dense = Noisy(), keras.layers.Dense(1)
        self.count = self._private = 0
        self.losses_seen = []
        self.notes = {"inner": {}, "rows": []}

    def call(self, inputs, training=False):
        return self.dense(self.noisy(inputs, training=training))

    def train_step(self, data):
        self.count += 1
        self.losses_seen.append(self.count * 2.0)
        self._private += 2
        self.notes["last"] = self.count
        self.notes["inner"][str(self.count)] = self._private
        self.notes["rows"].append([self.count, self._private])
        seen["batches"] += 1
        logs = super().train_step(data)
        return {**logs, "count": float(self.count + self._private)}


class Weighing:
    """Weighs each batch otherwise than the one before."""

    def __init__(self):
        self.turn = 0

    def weigh(self, value):
        self.turn += 1
        return np.float32(value * (1 + self.turn % 5))


@dataclasses.dataclass(frozen=True)
class Scale:
    by: float
    seen: list

    def apply(self, value):
        self.seen.append(1)
        return np.float32(value * self.by)


weighing, calls, scale = Weighing(), [], Scale(0.5, [])


def noted(value):
    calls.append(float(value))
    return np.float32(len(calls))


def weighed(true, predicted):
    loss = tf.reduce_mean(tf.square(true - predicted))
    factor = tf.numpy_function(weighing.weigh, [1.0], tf.float32)
    factor = tf.numpy_function(scale.apply, [factor], tf.float32)
    tf.numpy_function(noted, [loss], tf.float32)
    return loss * tf.ensure_shape(factor, ())


eager = Counting()
eager.compile("adam", "mse", run_eagerly=True)
history = eager.fit(x, y, epochs=3, batch_size=6, verbose=0, callbacks=[Mortal("eager")])
notes = {**eager.notes, "inner": dict(eager.notes["inner"]), "rows": list(map(list, eager.notes["rows"]))}
remembered = (eager.count, eager._private, list(eager.losses_seen), notes, seen)
remembered += (eager.noisy._chance.random(),)
say("eager", eager, history, remembered)

compiled = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
compiled.compile("adam", weighed)
history = compiled.fit(x, y, epochs=3, batch_size=6, verbose=0, callbacks=[Mortal("compiled")])
say("compiled", compiled, history, weighing.turn, calls, len(scale.seen))

last = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
last.compile("adam", "mse")
say(
    "last", last, last.fit(x, y, epochs=1, batch_size=6, verbose=0, callbacks=[Mortal("last")]), weighing.turn
)
