"""Two fits that say with which weights each epoch begins and ends."""

import hashlib
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from victim import Mortal


def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[
        :16
    ]


class Told(keras.callbacks.Callback):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def tell(self, what, epoch):
        with open("told.txt", "a") as file:
            file.write(f"{self.name} {what} {epoch} {digest(self.model.get_weights())}\n")

    def on_epoch_begin(self, epoch, logs=None):
        self.tell("begin", epoch)
        while "AWAIT" in os.environ and epoch == 2 and not Path("asked").exists():
            time.sleep(0.01)

    def on_train_batch_end(self, batch, logs=None):
        if "AWAIT" in os.environ and Path("asked").exists():
            time.sleep(0.7)  # the epoch takes longer than a stop waits

    def on_epoch_end(self, epoch, logs=None):
        self.tell("end", epoch)


class Eager(keras.Model):
    """Can be called with a real batch only."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(1)

    def call(self, inputs):
        return self.inner(inputs) * float(np.abs(inputs.numpy()).max())


def fit(name, model, *data, more=(), **options):
    callbacks = [Mortal(name), Told(name), *more]
    history = model.fit(*data, verbose=0, callbacks=callbacks, **options)
    assert callbacks == [*callbacks[:2], *more], "the script's own list is as it was"
    optimizer = [variable.numpy() for variable in model.optimizer.variables]
    print("RESULT", name, digest(model.get_weights()), digest(optimizer), history.epoch, history.history)


keras.utils.set_random_seed(5)
x = np.random.RandomState(0).rand(64, 4).astype("float32")
if "--eager" in sys.argv:
    model = Eager()
    model.compile("adam", "mse", run_eagerly=True)
    fit("eager", model, x, x[:, 0], batch_size=16, epochs=5)
    sys.exit()

model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
)
model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
drawn = []
more = [
    keras.callbacks.EarlyStopping("val_loss", patience=4, restore_best_weights=True),
    keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.05),
    keras.callbacks.CSVLogger("rows.csv"),
    keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: drawn.append(np.random.rand())),
]
fit("first", model, x, x[:, 0], batch_size=16, epochs=5, validation_data=(x[:8], x[:8, 0]), more=more)
print("RESULT drawn", drawn, Path("rows.csv").read_text().split())

second = keras.Sequential(
    [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
second.compile("adam", "mse")
batches = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(16)
fit("second", second, batches, epochs=4)
print("RESULT chance", np.random.rand(), float(keras.random.uniform(())))
