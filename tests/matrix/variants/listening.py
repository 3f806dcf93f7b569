"""Callbacks of Keras and of users, and the files that they write."""

import threading

import keras
import numpy as np
from stage import X, Y, mlp, run, variant

DATA = {"x": X, "y": Y, "batch_size": 8, "validation_split": 0.2}
counter = 0
seen = {"epochs": [], "losses": []}


class Attributes(keras.callbacks.Callback):
    """Keeps its state in all sorts of attributes, one under two names."""

    def __init__(self, others):
        super().__init__()
        self.losses = []
        self.others = others
        self.by_epoch = {}
        self.chance = np.random.default_rng()
        self.mean = keras.metrics.Mean()
        self.running = np.zeros(3)

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])
        self.mean.update_state(logs["loss"])
        self.running = 0.9 * self.running + self.chance.random(3)

    def on_epoch_end(self, epoch, logs=None):
        self.others.append(len(self.losses))
        self.by_epoch[epoch] = self.losses
        self.losses = []


class Counting(keras.callbacks.Callback):
    """Counts in globals of its script."""

    def on_train_batch_end(self, batch, logs=None):
        global counter
        counter += 1

    def on_epoch_end(self, epoch, logs=None):
        seen["epochs"].append(epoch)
        seen["losses"] = [*seen["losses"], logs["loss"]]


class Locked(keras.callbacks.Callback):
    """Holds something that cannot be captured."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.calls = 0

    def on_train_batch_end(self, batch, logs=None):
        with self.lock:
            self.calls += 1


class Slowing(keras.callbacks.Callback):
    """Sets the learning rate by itself, and draws from NumPy's shared generator."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.01 * np.random.rand()


class Best(keras.callbacks.Callback):
    """Keeps copies of weights, and puts the best back at the end."""

    def __init__(self):
        super().__init__()
        self.best = (np.inf, None)

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_loss"] < self.best[0]:
            self.best = (logs["val_loss"], self.model.get_weights())

    def on_train_end(self, logs=None):
        self.model.set_weights(self.best[1])


@variant("callback-attributes")
def _(stage):
    others = []
    callback = Attributes(others)
    stage.fit(mlp(), **DATA, callbacks=[callback])
    assert callback.others is others
    return [others, callback.by_epoch, callback.chance.random(), callback.mean.result(), callback.running]


@variant("callback-globals")
def _(stage):
    stage.fit(mlp(), **DATA, callbacks=[Counting()])
    return [counter, seen]


@variant("callback-closures")
def _(stage):
    drawn, count = [], 0

    def count_on(batch, logs):
        nonlocal count
        count += 1

    def draw(epoch, logs):
        drawn.append((epoch, np.random.rand(), count))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=draw, on_train_batch_end=count_on)
    stage.fit(mlp(), **DATA, callbacks=[callback])
    return [drawn, count]


@variant("callback-cannot-be-captured", warns="Locked.lock")
def _(stage):
    callback = Locked()
    stage.fit(mlp(), **DATA, callbacks=[callback])
    return callback.calls


@variant("callback-sets-the-rate")
def _(stage):
    stage.fit(mlp(), **DATA, callbacks=[Slowing()])


@variant("callback-keeps-the-best")
def _(stage):
    callback = Best()
    stage.fit(mlp(), **DATA, callbacks=[callback])
    return callback.best


@variant("callback-stops")
def _(stage):
    def stop(epoch, logs):
        model.stop_training = epoch == 2

    model = mlp()
    stage.fit(model, **DATA, epochs=5, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])
    return model.stop_training


@variant("csv-logger")
def _(stage):
    stage.fit(mlp(), **DATA, callbacks=[keras.callbacks.CSVLogger(stage.folder / "rows.csv")])


@variant("csv-logger-appends")
def _(stage):
    for _ in range(2):
        logger = keras.callbacks.CSVLogger(stage.folder / "rows.csv", separator=";", append=True)
        stage.fit(mlp(), **DATA, callbacks=[logger])


@variant("checkpoint-best")
def _(stage):
    path = stage.folder / "best.weights.h5"
    keeper = keras.callbacks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True)
    stage.fit(mlp(), **DATA, epochs=5, callbacks=[keeper])
    return keeper.best


@variant("checkpoint-each-epoch")
def _(stage):
    path = stage.folder / "{epoch:02d}-{val_loss:.3f}.weights.h5"
    keeper = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    stage.fit(mlp(), **DATA, callbacks=[keeper])


@variant("checkpoint-whole-model")
def _(stage):
    keeper = keras.callbacks.ModelCheckpoint(
        stage.folder / "model.keras", save_best_only=True, monitor="loss"
    )
    stage.fit(mlp(), **DATA, callbacks=[keeper])


@variant("checkpoint-some-batches")
def _(stage):
    path = stage.folder / "{epoch}-{batch}.weights.h5"
    keeper = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=4)
    stage.fit(mlp(), **DATA, callbacks=[keeper])


@variant("tensorboard")
def _(stage):
    board = keras.callbacks.TensorBoard(stage.folder)
    stage.fit(mlp(), **DATA, epochs=4, callbacks=[board])


@variant("tensorboard-batches")
def _(stage):
    board = keras.callbacks.TensorBoard(stage.folder, update_freq=2, histogram_freq=1, write_graph=False)
    stage.fit(mlp(), **DATA, callbacks=[board])


@variant("tensorboard-twice")
def _(stage):
    for _ in range(2):
        model = mlp()
        stage.fit(
            model, **DATA, callbacks=[keras.callbacks.TensorBoard(stage.folder / str(len(stage.models)))]
        )


@variant("early-stopping")
def _(stage):
    stopper = keras.callbacks.EarlyStopping(patience=1, min_delta=0.02, restore_best_weights=True)
    stage.fit(mlp(), **DATA, epochs=8, callbacks=[stopper])
    return [stopper.best, stopper.wait, stopper.stopped_epoch, stopper.best_epoch, stopper.best_weights]


@variant("early-stopping-from-an-epoch")
def _(stage):
    stopper = keras.callbacks.EarlyStopping("loss", patience=2, start_from_epoch=2, min_delta=0.05)
    stage.fit(mlp(), **DATA, epochs=8, callbacks=[stopper])
    return [stopper.best, stopper.wait, stopper.stopped_epoch]


@variant("reduce-on-plateau")
def _(stage):
    plateau = keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.02, cooldown=1)
    stage.fit(mlp(), **DATA, epochs=6, callbacks=[plateau])
    return [plateau.best, plateau.wait, plateau.cooldown_counter]


@variant("rate-scheduler")
def _(stage):
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7)
    stage.fit(mlp(), **DATA, callbacks=[scheduler])


@variant("backup-and-restore")
def _(stage):
    backup = keras.callbacks.BackupAndRestore(stage.folder / "backup")
    stage.fit(mlp(optimizer="nadam"), **DATA, callbacks=[backup])


@variant("terminate-on-nan")
def _(stage):
    y = Y.copy()
    y[30] = np.inf
    stage.fit(mlp(), X, y, batch_size=4, callbacks=[keras.callbacks.TerminateOnNaN()])


@variant("swap-ema")
def _(stage):
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    stage.fit(mlp(optimizer=optimizer), **DATA, callbacks=[swap])


@variant("swap-ema-saved")
def _(stage):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4)
    keeper = keras.callbacks.ModelCheckpoint(stage.folder / "ema.weights.h5", save_weights_only=True)
    stage.fit(
        mlp(optimizer=optimizer),
        **DATA,
        callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True), keeper],
    )


@variant("progress-bar")
def _(stage):
    stage.fit(mlp(), **DATA, verbose=2)


@variant("all-together")
def _(stage):
    stopper = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    stage.fit(
        mlp(optimizer=keras.optimizers.Adam(0.05)),
        **DATA,
        epochs=6,
        callbacks=[
            stopper,
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.3),
            keras.callbacks.ModelCheckpoint(
                stage.folder / "best.weights.h5", save_best_only=True, save_weights_only=True
            ),
            keras.callbacks.CSVLogger(stage.folder / "rows.csv"),
            keras.callbacks.TensorBoard(stage.folder / "board", write_graph=False),
        ],
    )
    return [stopper.best, stopper.wait]


run()
