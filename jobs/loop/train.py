"""A training loop of one's own (GradientTape), with the runner's Python API: it continues where it stopped.

`python train.py` alone works just the same; the calls to `run` then do nothing.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import runner

STEPS = 3_000
BATCH_SIZE = 64

keras.utils.set_random_seed(5)
random = np.random.default_rng(5)
x = random.uniform(-1, 1, (4_096, 2)).astype(np.float32)
y = (np.sin(3 * x[:, :1]) * np.cos(2 * x[:, 1:])).astype(np.float32)

model = keras.Sequential(
    [
        keras.Input((2,)),
        layers.Dense(64, activation="tanh"),
        layers.Dense(64, activation="tanh"),
        layers.Dense(1),
    ]
)
optimizer = keras.optimizers.Adam(1e-3)
optimizer.build(model.trainable_variables)


@tf.function
def train_step(inputs, targets):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
    optimizer.apply_gradients(
        zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
    )
    return loss


run = runner.attach(model=model, optimizer=optimizer)

for step in run.steps(STEPS):
    # What a step needs is made from its number, so that a resumed loop goes on with the same data.
    chosen = np.random.default_rng((5, step)).integers(0, len(x), BATCH_SIZE)
    loss = train_step(x[chosen], y[chosen])
    if step % 50 == 0:
        run.report(step, loss=float(loss))
    if step % 500 == 0:
        print(f"step {step}: loss {float(loss):.6f}")

error = float(np.abs(model(x) - y).mean())
print(f"after {STEPS} steps: mean error {error:.4f}")
