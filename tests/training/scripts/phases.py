"""Says in a file where it is, and stays there for long on the first visit, so that it can be stopped."""

import os
import time
from pathlib import Path


def linger(phase):
    mark = Path(f"was-in-{phase}")
    if os.environ.get("LINGER") == phase and not mark.exists():
        mark.touch()
        time.sleep(100)


linger("import")
import keras  # noqa: E402
import numpy as np  # noqa: E402
from victim import say  # noqa: E402

linger("build")


class Slow(keras.layers.Dense):
    def call(self, inputs):
        linger("trace")
        return super().call(inputs)


class Lingering(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.06)
        if self.model.optimizer.iterations == 5:
            Path("was-in-train").touch()
            if os.environ.get("LINGER") == "train":
                while not Path("asked").exists():
                    time.sleep(0.01)
                for _ in range(200):
                    time.sleep(0.01)

    def on_test_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations > 10:
            linger("validate")

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            linger("callbacks")


x = np.random.RandomState(0).rand(64, 4).astype("float32")
model = keras.Sequential([Slow(8), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
model.compile("adam", "mse")
history = model.fit(
    x,
    x[:, 0],
    batch_size=8,
    epochs=4,
    validation_data=(x[:16], x[:16, 0]),
    verbose=0,
    callbacks=[Lingering()],
)
linger("after")
say("phases", model, history)
