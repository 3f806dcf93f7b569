"""Arrays in every form that `fit` takes them."""

import keras
import numpy as np
import tensorflow as tf
from stage import WEIGHTS, X, Y, mlp, run, variant


@variant("arrays-shuffled")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=8)


@variant("arrays-in-order")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=8, shuffle=False)


@variant("arrays-batch-shuffle")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=10, shuffle="batch")


@variant("arrays-sample-weight")
def _(stage):
    model = mlp(weighted_metrics=["mse"])
    stage.fit(model, X, Y, batch_size=8, sample_weight=WEIGHTS)


@variant("arrays-class-weight")
def _(stage):
    stage.fit(mlp(loss="binary_crossentropy"), X, Y, batch_size=8, class_weight={0: 1.0, 1: 3.0})


@variant("arrays-validation-split")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=8, validation_split=0.25)


@variant("arrays-validation-data")
def _(stage):
    stage.fit(
        mlp(), X, Y, batch_size=8, validation_data=(X[:20], Y[:20], WEIGHTS[:20]), validation_batch_size=6
    )


@variant("arrays-validation-freq")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=10, epochs=4, validation_freq=2, validation_data=(X[:20], Y[:20]))


@variant("arrays-validation-epochs")
def _(stage):
    data = (X[:20], Y[:20])
    stage.fit(mlp(), X, Y, batch_size=10, epochs=4, validation_freq=[1, 4], validation_data=data)


@variant("arrays-initial-epoch")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=10, initial_epoch=2, epochs=5)


@variant("arrays-several-steps")
def _(stage):
    stage.fit(mlp(steps_per_execution=3), X, Y, batch_size=7, validation_split=0.2)


@variant("arrays-steps-per-epoch")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=10, steps_per_epoch=4, epochs=3)


@variant("arrays-tensors")
def _(stage):
    stage.fit(mlp(), tf.constant(X), tf.constant(Y), batch_size=8)


@variant("arrays-one-batch")
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=64, epochs=6)


def two_headed():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    both = keras.layers.Dropout(0.2)(keras.layers.Dense(5)(both))
    first, second = keras.layers.Dense(1, name="first")(both), keras.layers.Dense(2, name="second")(both)
    model = keras.Model({"left": left, "right": right}, {"first": first, "second": second})
    model.compile(
        "rmsprop",
        {"first": "mse", "second": "sparse_categorical_crossentropy"},
        metrics={"second": ["accuracy"]},
        loss_weights={"first": 1.0, "second": 0.5},
    )
    return model


@variant("arrays-dictionaries")
def _(stage):
    inputs, labels = {"left": X[:, :3], "right": X[:, 3:]}, {"first": Y, "second": Y[:, 0].astype(int)}
    stage.fit(two_headed(), inputs, labels, batch_size=8, validation_split=0.2)


@variant("arrays-lists")
def _(stage):
    one, two = keras.Input((6,)), keras.Input((6,))
    out = keras.layers.Dense(1)(keras.layers.Add()([one, keras.layers.Dropout(0.5)(two)]))
    model = keras.Model([one, two], [out, keras.layers.Dense(1)(out)])
    model.compile("sgd", ["mse", "mae"])
    stage.fit(model, [X, X[::-1]], [Y, Y * 2], batch_size=8)


@variant("arrays-unbuilt")
def _(stage):
    model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    stage.fit(model, X.astype("float64"), Y[:, 0], batch_size=16, epochs=4)


@variant("arrays-autoencoder")
def _(stage):
    model = keras.Sequential([keras.Input((6,)), keras.layers.GaussianNoise(0.1), keras.layers.Dense(6)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    stage.fit(model, X, X, batch_size=8, validation_data=(X[:9], X[:9]))


@variant("arrays-seeded", seeded=True)
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=8, validation_split=0.2)


@variant("arrays-seeded-batch", seeded=True)
def _(stage):
    stage.fit(mlp(), X, Y, batch_size=10, shuffle="batch")


@variant("arrays-seeded-drawn", seeded=True)
def _(stage):
    noisy = X + np.random.normal(0, 0.1, X.shape).astype("float32")
    stage.fit(mlp(), noisy, Y, batch_size=8)
    return np.random.rand()


run()
