"""Shapes of scripts: several fits, recompiled, frozen, in loops and functions, with others in between."""

import keras
import numpy as np
from keras import layers
from stage import X, Y, mlp, run, stream, variant


@variant("shape-k-fold")
def _(stage):
    scores = []
    for fold in range(3):
        keras.backend.clear_session()
        held = np.arange(52) % 3 == fold
        model = mlp()
        stage.fit(model, X[~held], Y[~held], batch_size=9, epochs=2, validation_data=(X[held], Y[held]))
        scores.append(model.evaluate(X[held], Y[held], verbose=0))
    return scores


@variant("shape-fine-tune")
def _(stage):
    base = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), layers.BatchNormalization(), layers.Dropout(0.2)], name="base"
    )
    model = keras.Sequential([keras.Input((6,)), base, layers.Dense(1)])
    base.trainable = False
    model.compile(keras.optimizers.Adam(0.01), "mse")
    stage.fit(model, X, Y, batch_size=13, epochs=2)
    base.trainable = True
    model.compile(keras.optimizers.Adam(0.001), "mse", metrics=["mae"])
    stage.fit(model, X, Y, batch_size=13, epochs=4, initial_epoch=2)


@variant("shape-pretrain")
def _(stage):
    inputs = keras.Input((6,))
    encoder = keras.Model(inputs, layers.Dense(3, activation="relu")(layers.Dropout(0.1)(inputs)))
    whole = keras.Model(inputs, layers.Dense(6)(encoder(inputs)))
    whole.compile("adam", "mse")
    stage.fit(whole, X, X, batch_size=13, epochs=2)
    encoder.trainable = False
    judge = keras.Model(inputs, layers.Dense(1)(encoder(inputs)))
    judge.compile("adam", "mse")
    stage.fit(judge, X, Y, batch_size=13, epochs=2)


class Pupil(keras.Model):
    """Learns from a teacher."""

    def __init__(self, teacher, pupil):
        super().__init__()
        self.teacher, self.pupil = teacher, pupil

    def call(self, inputs, training=False):
        return self.pupil(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        taught = keras.ops.mean(keras.ops.square(self.teacher(x, training=False) - y_pred))
        return 0.3 * own + 0.7 * taught


@variant("shape-distillation")
def _(stage):
    teacher = mlp()
    stage.fit(teacher, X, Y, batch_size=13, epochs=2)
    teacher.trainable = False
    pupil = Pupil(teacher, mlp(layers.Dropout(0.1)))
    pupil.compile("adam", "mse")
    stage.fit(pupil, X, Y, batch_size=13, epochs=2)


@variant("shape-loop")
def _(stage):
    model, losses = mlp(), []
    for rounds in range(3):
        history = stage.fit(model, X, Y, batch_size=13, epochs=1 + rounds % 2)
        losses.append(history.history["loss"][-1])
        model.optimizer.learning_rate = 0.01 / (1 + rounds)
    return losses


@variant("shape-between")
def _(stage):
    model = mlp()
    before = model.evaluate(X, Y, verbose=0)
    stage.fit(model, X, Y, batch_size=13, epochs=2)
    scores = model.evaluate(X, Y, verbose=0, return_dict=True)
    predicted = model.predict(X[:7], verbose=0)
    stage.fit(model, X, Y, batch_size=13, epochs=2, validation_split=0.2)
    return [before, scores, predicted, model.predict(X[:7], verbose=0)]


def searched(stage, rate):
    model = mlp(optimizer=keras.optimizers.Adam(rate))
    history = stage.fit(model, stream().shuffle(52).batch(13), epochs=2, validation_data=stream().batch(26))
    return min(history.history["val_loss"]), model


@variant("shape-search")
def _(stage):
    found = [(searched(stage, rate), rate) for rate in (0.1, 0.01)]
    (_, best), rate = min(found, key=lambda one: one[0][0])
    stage.fit(best, X, Y, epochs=1)
    return [rate, best.get_weights()]


@variant("shape-same-dataset-twice")
def _(stage):
    data = stream().shuffle(52).batch(13)
    stage.fit(mlp(), data, epochs=2)
    stage.fit(mlp(), data, epochs=2, validation_data=data)


@variant("shape-on-batch-before")
def _(stage):
    model = mlp()
    losses = [model.train_on_batch(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]
    stage.fit(model, X, Y, batch_size=13)
    return [*losses, model.test_on_batch(X, Y)]


@variant("shape-saved-and-loaded")
def _(stage):
    path = stage.folder / "model.keras"
    model = mlp()
    stage.fit(model, X, Y, batch_size=13, epochs=2)
    model.save(path)
    again = keras.saving.load_model(path)
    stage.fit(again, X, Y, batch_size=13, epochs=2)


@variant("shape-cloned-weights")
def _(stage):
    model = mlp()
    stage.fit(model, X, Y, batch_size=13, epochs=2)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile("sgd", "mse")
    stage.fit(twin, X, Y, batch_size=13, epochs=2)
    return keras.utils.to_categorical(twin.predict(X, verbose=0).argmax(1), 2)


@variant("shape-ensemble", seeded=True)
def _(stage):
    nets = []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        nets.append(mlp())
        stage.fit(nets[-1], X, Y, batch_size=13, epochs=2)
    return np.mean([net.predict(X, verbose=0) for net in nets], axis=0)


@variant("shape-seeded-folds", seeded=True)
def _(stage):
    order = np.random.permutation(52)
    for fold in np.array_split(order, 2):
        stage.fit(mlp(), X[fold], Y[fold], batch_size=9, epochs=2)
    return order


run()
