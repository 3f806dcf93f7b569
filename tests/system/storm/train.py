"""An ordinary Keras script that seeds nothing: dropout, batch normalisation, Adam, validation, callbacks."""

import hashlib
import json
import random
import sys
import time
from pathlib import Path

import keras
import numpy as np

rows = np.arange(1500, dtype="float32")[:, None]
columns = np.arange(1, 17, dtype="float32")[None, :]
x = np.sin(rows * columns * 0.37).astype("float32")
y = (x[:, :4].sum(axis=1) + 0.3 * x[:, 5] > 0).astype("int32")

model = keras.Sequential(
    [
        keras.layers.Input((16,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x,
    y,
    epochs=int(sys.argv[1]),
    batch_size=10,
    validation_split=0.33,
    verbose=2,
    callbacks=[
        keras.callbacks.ReduceLROnPlateau(patience=3),
        keras.callbacks.EarlyStopping(patience=1000, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint("kept.weights.h5", save_best_only=True, save_weights_only=True),
        # A step of a model of some size takes a while: this gives the kills something to hit.
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: time.sleep(float(sys.argv[2]))),
    ],
)


def digest(arrays: list[np.ndarray]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


Path("final.json").write_text(
    json.dumps(
        {
            "weights": digest(model.get_weights()),
            "optimizer": digest([np.asarray(v) for v in model.optimizer.variables]),
            "history": history.history,
            "numpy": float(np.random.random()),
            "python": random.random(),
        }
    )
)
