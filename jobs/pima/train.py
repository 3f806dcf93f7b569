"""Predict diabetes from eight measurements (Pima Indians): 12-8-1, 150 epochs, and three ways to keep models.

The data is a CSV file of 768 lines with nine numbers each, the last one the class.
"""

import os
import sys
from pathlib import Path

import numpy as np

SOURCE = "https://raw.githubusercontent.com/jbrownlee/Datasets/master/pima-indians-diabetes.data.csv"

csv = Path(os.environ.get("PIMA_CSV") or Path(__file__).with_name("pima-indians-diabetes.csv"))
if not csv.is_file():
    print(f"pima: no data at {csv}: save {SOURCE} there, or set PIMA_CSV to its path", file=sys.stderr)
    sys.exit(78)  # bad configuration: the runner does not try again

import keras  # noqa: E402 - the data is looked for first, because this takes seconds
from keras import layers  # noqa: E402

table = np.loadtxt(csv, delimiter=",", dtype=np.float32)
x, y = table[:, :8], table[:, 8]


def build():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(12, activation="relu"),
            layers.Dense(8, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


# 1. A series: one file for each improvement, named by the epoch and by what it reached.
series = keras.callbacks.ModelCheckpoint(
    "weights-improvement-{epoch:02d}-{val_accuracy:.2f}.weights.h5",
    monitor="val_accuracy",
    mode="max",
    save_best_only=True,
    save_weights_only=True,
    verbose=1,
)
# 2. The best only: one file, replaced each time.
best_only = keras.callbacks.ModelCheckpoint(
    "best.weights.h5",
    monitor="val_accuracy",
    mode="max",
    save_best_only=True,
    save_weights_only=True,
    verbose=1,
)
model = build()
history = model.fit(
    x, y, validation_split=0.33, epochs=150, batch_size=10, callbacks=[series, best_only], verbose=0
)
print(f"best validation accuracy in training: {100 * max(history.history['val_accuracy']):.2f} %")

# 3. Load the best into a new model and evaluate it.
best = build()
best.load_weights("best.weights.h5")
loss, accuracy = best.evaluate(x, y, verbose=0)
print(f"the best model on all data: loss {loss:.4f}, accuracy {100 * accuracy:.2f} %")
for row, truth in zip(best.predict(x[:3], verbose=0), y[:3], strict=True):
    print(f"predicted {row[0]:.2f}, in truth {truth:.0f}")
