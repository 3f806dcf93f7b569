"""Train from an endless stream: tf.data with repeat, virtual epochs, and an evaluation after each.

A data set that is too large to speak of epochs, or that keeps growing, is trained by the number of examples.
A virtual epoch is then a fixed number of steps between two checkpoints: however much data arrives, models
are saved and evaluated equally often, and TRAINING_EXAMPLES alone says how long to train.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BATCH_SIZE = 64
TRAINING_EXAMPLES = 60 * 50 * BATCH_SIZE
VIRTUAL_EPOCHS = 60
STEPS_PER_EPOCH = TRAINING_EXAMPLES // (BATCH_SIZE * VIRTUAL_EPOCHS)

keras.utils.set_random_seed(20)


def waves(count, seed):
    """Noisy sine waves of unknown frequency and phase; the frequency is what shall be found."""
    random = np.random.default_rng(seed)
    frequency = random.uniform(1, 8, (count, 1)).astype(np.float32)
    phase = random.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    time = np.linspace(0, 1, 64, dtype=np.float32)[np.newaxis]
    noise = random.normal(0, 0.3, (count, 64)).astype(np.float32)
    return np.sin(2 * np.pi * frequency * time + phase) + noise, frequency[:, 0]


def stream(count, seed):
    return tf.data.Dataset.from_tensor_slices(waves(count, seed))


training = stream(10_000, 1).shuffle(2_000, seed=3).repeat().batch(BATCH_SIZE).prefetch(2)
evaluation = stream(2_000, 2).batch(250)

model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.Reshape((64, 1)),
        layers.Conv1D(16, 9, strides=2, activation="relu"),
        layers.Conv1D(32, 9, strides=2, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.1),
        layers.Dense(1),
    ]
)
model.compile(optimizer="adam", loss="mse", metrics=["mae"])
model.fit(
    training,
    epochs=VIRTUAL_EPOCHS,
    steps_per_epoch=STEPS_PER_EPOCH,
    validation_data=evaluation,
    verbose=2,
)
loss, error = model.evaluate(evaluation, verbose=0)
print(f"mean error of the frequency: {error:.3f} Hz")
