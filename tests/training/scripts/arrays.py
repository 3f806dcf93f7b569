"""Arrays in every form that `fit` takes them, one small fit after another."""

import sys

import keras
import numpy as np
from victim import Mortal, say, wanted

if "--seeded" in sys.argv:
    keras.utils.set_random_seed(11)

data = np.random.RandomState(1)
x = data.rand(70, 6).astype("float32")
y = (x.sum(axis=1) > 3).astype("float32")
weights = data.rand(70).astype("float32")


def make(built=True, **compile_options):
    model = keras.Sequential(
        [
            *([keras.Input((6,))] if built else []),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"], **compile_options)
    return model


def variant(name, model=None, more=(), **options):
    if not wanted(name):
        return
    model = model or make()
    options.setdefault("epochs", 2)
    inputs = options.pop("x", x)
    history = model.fit(
        inputs,
        y,
        batch_size=options.pop("batch_size", 16),
        verbose=0,
        callbacks=[Mortal(name), *more],
        **options,
    )
    say(name, model, history)


variant("shuffled", make(built=False))
variant("in-order", shuffle=False)
variant("batches", shuffle="batch")
variant("class-weight", class_weight={0: 1.0, 1: 3.0})
variant("sample-weight", sample_weight=weights)
variant("several-steps", make(steps_per_execution=3), validation_data=(x[:20], y[:20]))

if wanted("callbacks"):
    stopper = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.01)
    keeper = keras.callbacks.ModelCheckpoint("best.weights.h5", save_best_only=True, save_weights_only=True)
    rows = keras.callbacks.CSVLogger("rows.csv")
    drawn = []
    remember = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: drawn.append(np.random.rand()))
    counter = 0

    class Counting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            global counter
            counter += 1

    model = make()
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=7,
        validation_split=0.25,
        verbose=0,
        callbacks=[Mortal("callbacks"), stopper, plateau, keeper, rows, remember, Counting()],
    )
    with open("rows.csv") as file:
        table = file.read()
    model_at_best = make()
    model_at_best.build((None, 6))
    model_at_best.load_weights("best.weights.h5")
    best = [float(w.sum()) for w in model_at_best.get_weights()]
    say(
        "callbacks", model, history, drawn, counter, table, best,
        stopper.wait,
        stopper.best, stopper.stopped_epoch, plateau.wait, plateau.min_delta, keeper.best, rows.append,
    )  # fmt: skip

left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
out = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Concatenate()([left, right]))
two = keras.Model({"left": left, "right": right}, out)
two.compile("rmsprop", "mse")
variant("two-inputs", two, x={"left": x[:, :3], "right": x[:, 3:]}, epochs=3)
variant("again-the-same-model", two, x={"left": x[:, :3], "right": x[:, 3:]}, epochs=2)


class Noisy(keras.Model):
    """Traces use NumPy's generator; reports what no metric tracks."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs) * np.random.uniform(0.5, 1.5)

    def train_step(self, batch):
        logs = super().train_step(batch)
        return {**logs, "norm": keras.ops.sum(self.dense.kernel)}


noisy = Noisy()
noisy.compile("sgd", "mse")
variant("noisy-trace", noisy, epochs=3, validation_data=(x[:10], y[:10]))
