"""Loops of many shapes, one after another, with the Python API. KILL names where each life ends."""

import os
import sys
from collections import deque
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from victim import moments, until_saved

import runner

track = "--untracked" not in sys.argv
lives = Path("lives.txt")


def reach(moment):
    lived = int(lives.read_text()) if lives.exists() else 0
    if lived < len(moments()) and moments()[lived] == moment:
        lives.write_text(str(lived + 1))
        until_saved(run.step - 4)
        os.kill(os.getpid(), 9)


def dense(*sizes, inputs=4):
    layers = [keras.layers.Dense(size, activation="tanh") for size in sizes]
    return keras.Sequential(
        [keras.Input((inputs,)), *layers, keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )


def compiled(model, optimizer):
    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return step


if "--unseeded" not in sys.argv:
    keras.utils.set_random_seed(3)
x = np.random.RandomState(1).rand(64, 4).astype("float32")
y = x[:, :1] * 2
names = ["plain", "generator", "critic", "epochs", "agent", "orders"]
models = {name: dense(6, inputs=3 if name == "generator" else 1 if name == "critic" else 4) for name in names}
optimizers = {name: keras.optimizers.Adam(0.01) for name in names}
noise = keras.random.SeedGenerator(4)
mean = keras.metrics.Mean()
run = runner.attach(models, optimizers, metrics=[noise, mean])
keep = run.track
said = {}


def say(*names):
    for name in names:
        variables = [*models[name].variables, *optimizers[name].variables]
        print("RESULT", name, repr([v.numpy().tolist() for v in variables]))


# A loop over steps; the data are made from the step's number, chance is used.
train = compiled(models["plain"], optimizers["plain"])
for step in run.steps(12):
    batch = x[(step * 8) % 64 :][:8]
    loss = train(batch + np.random.normal(size=(1, 4)).astype("float32"), batch[:, :1])
    mean.update_state(loss)
    run.state["losses"] = [*run.state.get("losses", []), float(loss)]
    reach(f"plain:{step}")
    run.report(step, loss=loss)
reach("plain:over")
said["plain"] = (step, float(loss), float(mean.result()))

# Two models with two optimizers, an iterator over endless shuffled data made before the loop.
source = tf.data.Dataset.from_tensor_slices(y).shuffle(64).repeat().batch(8)
real = iter(keep(source) if track else source)
generator, critic = models["generator"], models["critic"]


@tf.function
def duel(batch):
    latent = keras.random.normal((8, 3), seed=noise)
    with tf.GradientTape(persistent=True) as tape:
        fake = generator(latent, training=True)
        loss = tf.reduce_mean(critic(fake)) - tf.reduce_mean(critic(batch, training=True))
    for model, name, sign in ((critic, "critic", 1.0), (generator, "generator", -1.0)):
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizers[name].apply([sign * one for one in gradients], model.trainable_variables)
    return loss


for step in run.steps(12):
    loss = duel(next(real))
    reach(f"duel:{step}")
said["duel"] = float(loss)
if not track:
    say("plain", "critic")
    sys.exit()

# Epochs over shuffled batches, validated after each.
train = compiled(models["epochs"], optimizers["epochs"])
source = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64).batch(16).prefetch(2)
data, others = keep(source), keep(tf.data.Dataset.from_tensor_slices((x, y)).shuffle(9).batch(32))
for epoch in run.epochs(4):
    for inputs, targets in run.batches(data):
        loss = train(inputs, targets)
        reach(f"epochs:{epoch}")
    parts = [float(tf.reduce_mean(models["epochs"](inputs) * targets)) for inputs, targets in others]
    reach(f"epochs:{epoch}:validated")
    run.report(run.step, loss=loss, val_loss=sum(parts))
said["epochs"] = (float(loss), parts)

# A buffer to play from, a queue, a generator of one's own.
train = compiled(models["agent"], optimizers["agent"])
buffer, rng, recent = (
    keep(np.zeros((16, 4), np.float32)), keep(np.random.default_rng(2)), keep(deque(maxlen=3))
)  # fmt: skip
for step in run.steps(12):
    buffer[step % 16] = rng.random(4)
    chosen = buffer[rng.integers(0, 16, 8)]
    loss = train(chosen, chosen[:, :1])
    recent.append(float(loss))
    if step == 5:
        run.checkpoint()
    reach(f"agent:{step}")
said["agent"] = (buffer.tolist(), list(recent))

# Epochs, each in an order that is drawn at its start.
train = compiled(models["orders"], optimizers["orders"])
words = keep(iter(x[i : i + 1] for i in range(64)))
for epoch in run.epochs(3):
    order = rng.permutation(64) + np.random.randint(2)
    for step in run.steps(4):
        chosen = order[step * 16 :][:16] % 64
        loss = train(x[chosen] + next(words), y[chosen])
        reach(f"orders:{epoch}:{step}")
        if epoch == 2 and step == 2:
            break
said["orders"] = (order.tolist(), float(loss))

say(*names)
print("RESULT rest", repr((said, dict(run.state), mean.result().numpy(), noise.state.numpy(), run.step)))
print("RESULT chance", repr((np.random.rand(), tf.random.normal((1,)).numpy(), rng.random())))
