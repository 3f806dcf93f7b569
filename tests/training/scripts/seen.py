"""Prints what a script can see of its own training; it sets no seeds, so no numbers."""

import contextlib
import copy
import inspect
import io
import pickle
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf


def seen(name, *values):
    print("SEEN", name, *values, flush=True)


class Watcher(keras.callbacks.Callback):
    """Looks at the model's functions after each batch."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def on_train_batch_end(self, batch, logs=None):
        self.functions.append(self.model.train_function)
        seen("batch", batch, {name: type(value).__name__ for name, value in logs.items()})

    def on_test_batch_end(self, batch, logs=None):
        self.functions.append(self.model.test_function)

    def on_epoch_end(self, epoch, logs=None):
        seen("epoch", epoch, sorted(logs), [one.__qualname__ for one in self.functions])
        seen("the same function", [one is self.functions[0] for one in self.functions])


def make():
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


x, y = np.ones((8, 3), "float32"), np.zeros((8, 1), "float32")

for name in ("fit", "evaluate", "train_on_batch"):
    method = getattr(keras.Model, name)
    seen(method.__name__, method.__qualname__, inspect.signature(method), len(inspect.getsource(method)))
seen("arguments", sorted(inspect.signature(keras.callbacks.CallbackList.on_epoch_end).parameters))

model, watcher, words = make(), Watcher(), io.StringIO()
with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(words):
    warnings.simplefilter("always")
    quiet = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: print("epoch", epoch))
    history = model.fit(x, y, 4, 3, 0, [quiet], validation_data=(x, y))
seen("words", repr(words.getvalue()), [str(one.message) for one in warned])
seen("history", type(history).__module__, history.params, history.epoch, sorted(history.history))
history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[watcher], validation_data=(x, y))
seen("model", sorted(vars(model)))
seen("functions", model.train_function.__qualname__, model.test_function.__qualname__)
seen("attributes", sorted(vars(model.train_function)), sorted(vars(history)))
again = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
seen("copies", [np.array_equal(one.predict(x, verbose=0), model.predict(x, verbose=0)) for one in again])

with tempfile.TemporaryDirectory() as folder:
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    model = make()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[backup])
    seen("begins at", model._initial_epoch)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[backup])
    seen("begins at", model._initial_epoch)


class Mine(keras.Model):
    """Has a training function of its own, a tf.function."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)

    def make_train_function(self, force=False):
        super().make_train_function(force)
        if not hasattr(self.train_function, "get_concrete_function"):
            step = self.train_step
            self.train_function = tf.function(lambda iterator: step(next(iterator)))


model, watcher = Mine(), Watcher()
model.compile("sgd", "mse")
model.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=[])
mine = model.train_function
seen("mine", type(mine).__name__, mine.experimental_get_tracing_count())


class Asks(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        seen("still mine", self.model.train_function is mine, list(logs))


model.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=[Asks()])
seen("mine", model.train_function is mine, mine.experimental_get_tracing_count())

for arguments in ({"nonsense": 1}, {"x": x, "y": y[:3]}, {}):
    try:
        model.fit(**arguments)
    except (TypeError, ValueError, KeyError) as error:
        seen("refused", repr(error))
