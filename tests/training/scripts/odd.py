"""Fits of less usual kinds, one after another."""

import keras
import numpy as np
import tensorflow as tf
from victim import Mortal, say

x = np.random.default_rng(1).random((24, 4)).astype("float32")
y = x[:, :1] * 2


def network():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


# A generator that has another model predict: also while Keras takes its first batches.
teacher, student = network(), network()


def taught():
    while True:
        batch = np.random.rand(6, 4).astype("float32")
        yield batch, teacher.predict(batch, verbose=0)


history = student.fit(taught(), steps_per_epoch=4, epochs=4, verbose=0, callbacks=[Mortal("taught")])
say("taught", student, history)

# A model that was saved compiled: loading it makes its optimizer's variables.
student.save("student.keras")
again = keras.saving.load_model("student.keras")
say("loaded", again, again.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[Mortal("loaded")]))


# Stopped by a callback within an epoch, and a fit after it.
class Enough(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.params["epochs"] == 3 and batch == 1


stopped = network()
history = stopped.fit(x, y, epochs=3, batch_size=4, verbose=0, callbacks=[Enough(), Mortal("stopped")])
say("stopped", stopped, history)
say("after", stopped, stopped.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[Mortal("after")]))


# An endless generator, of which only a callback knows when it is enough.
def endless():
    chance = np.random.default_rng(5)
    while True:
        batch = chance.random((6, 4), dtype="float32")
        yield batch, batch[:, :1]


class After(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 6


ended = network()
say("ended", ended, ended.fit(endless(), verbose=0, callbacks=[After(), Mortal("ended")]))

# Ragged and sparse tensors in a dataset, and as they are.
ragged = tf.RaggedTensor.from_row_lengths(tf.range(60.0), [4, 1] * 12)
sparse = tf.sparse.from_dense(np.eye(24, 4, dtype="float32"))
dataset = tf.data.Dataset.from_tensor_slices((ragged, y)).map(
    lambda row, target: (tf.reshape(tf.concat([row, tf.zeros(4)], 0)[:4], (4,)), target)
)
padded = network()
history = padded.fit(dataset.shuffle(24).batch(6), epochs=3, verbose=0, callbacks=[Mortal("ragged")])
say("ragged", padded, history)
thin = network()
history = thin.fit(sparse, y, epochs=3, batch_size=6, verbose=0, callbacks=[Mortal("sparse")])
say("sparse", thin, history)
