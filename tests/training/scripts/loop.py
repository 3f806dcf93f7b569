"""A loop of its own, with the Python API: two optimizers, tracked data, chance, a little state."""

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from victim import moments

import runner

keras.utils.set_random_seed(3)
x = np.random.rand(64, 4).astype("float32")
model = keras.Sequential(
    [keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
)
optimizer = keras.optimizers.Adam(0.01)
mean = keras.metrics.Mean()
mean.update_state(0.0)
optimizer.build(model.trainable_variables)
run = runner.attach(model=model, optimizer=optimizer, metrics=[mean])
data = iter(run.track(tf.data.Dataset.from_tensor_slices(x).shuffle(64, seed=1).repeat().batch(8)))
lives = Path("lives.txt")

for step in run.steps(40):
    batch = next(data) + np.random.normal(size=(1, 4)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(batch, training=True) - batch[:, :1]))
    optimizer.apply_gradients(
        zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
    )
    mean.update_state(loss)
    run.state["losses"] = [*run.state.get("losses", []), float(loss)]
    if step % 4 == 0:
        run.report(step, loss=float(loss))
    lived = int(lives.read_text()) if lives.exists() else 0
    if lived < len(moments()) and moments()[lived] == f"loop/step:{step}":
        lives.write_text(str(lived + 1))
        os.kill(os.getpid(), 9)

variables = [v.numpy().tolist() for v in [*model.variables, *optimizer.variables, *mean.variables]]
print("RESULT loop", repr((variables, dict(run.state), np.random.rand())))
