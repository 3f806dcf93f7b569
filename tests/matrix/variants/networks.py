"""Optimizers, precision, layers and training steps that keep state of their own."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, optimizers
from stage import IMAGES, SEQUENCES, WORDS, X, Y, mlp, run, stream, variant

LABELS = (SEQUENCES.mean((1, 2)) > 0.5).astype("float32")


def compiled(*parts, optimizer="adam", loss="mse", **options):
    model = keras.Sequential(list(parts))
    model.compile(optimizer, loss, **options)
    return model


@variant("optimizer-ema")
def _(stage):
    stage.fit(mlp(optimizer=optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9)), X, Y, batch_size=8)


@variant("optimizer-accumulates")
def _(stage):
    stage.fit(mlp(optimizer=optimizers.Adam(0.01, gradient_accumulation_steps=3)), X, Y, batch_size=8)


@variant("optimizer-loss-scale")
def _(stage):
    inner = optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    optimizer = optimizers.LossScaleOptimizer(inner, initial_scale=64.0, dynamic_growth_steps=4)
    stage.fit(mlp(optimizer=optimizer), X, Y, batch_size=8)


@variant("optimizer-schedule")
def _(stage):
    rate = optimizers.schedules.CosineDecay(0.0, 12, warmup_target=0.05, warmup_steps=4)
    stage.fit(mlp(optimizer=optimizers.RMSprop(rate, clipnorm=1.0)), X, Y, batch_size=8)


@variant("optimizer-piecewise")
def _(stage):
    rate = optimizers.schedules.PiecewiseConstantDecay([5, 11], [0.1, 0.01, 0.001])
    stage.fit(mlp(optimizer=optimizers.Nadam(rate, global_clipnorm=0.5)), X, Y, batch_size=8)


@variant("optimizer-lion-decay")
def _(stage):
    stage.fit(mlp(optimizer=optimizers.Lion(0.01, weight_decay=0.01)), X, Y, batch_size=8)


@variant("optimizer-ftrl")
def _(stage):
    stage.fit(mlp(optimizer=optimizers.Ftrl(0.1)), X, Y, batch_size=8)


@variant("precision-float16")
def _(stage):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    stage.fit(model, X, Y, batch_size=8)


@variant("precision-bfloat16")
def _(stage):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = mlp(layers.BatchNormalization(), layers.Dropout(0.1))
    finally:
        keras.config.set_dtype_policy("float32")
    stage.fit(model, X, Y, batch_size=8)


class Counted(layers.Layer):
    """Counts its calls, and blurs by its own seed generator."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(4)

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs, training=False):
        if training:
            self.calls.assign_add(1.0)
            self.add_loss(ops.mean(ops.square(inputs)) * 0.01)
            inputs = inputs + keras.random.normal(ops.shape(inputs), seed=self.seeds) / (1.0 + self.calls)
        return inputs


@variant("layer-with-state")
def _(stage):
    stage.fit(mlp(Counted()), X, Y, batch_size=8)


@variant("layer-batch-norm")
def _(stage):
    stage.fit(mlp(layers.BatchNormalization(momentum=0.8)), X, Y, batch_size=8, validation_split=0.2)


@variant("layer-spectral-norm")
def _(stage):
    stage.fit(mlp(layers.SpectralNormalization(layers.Dense(5))), X, Y, batch_size=8)


@variant("layer-global-dropout")
def _(stage):
    stage.fit(mlp(layers.AlphaDropout(0.2), layers.GaussianDropout(0.2, seed=3)), X, Y, batch_size=8)


@variant("layer-adapted")
def _(stage):
    normal = layers.Normalization()
    normal.adapt(X)
    model = compiled(keras.Input((6,)), normal, layers.Dense(4), layers.Dropout(0.2), layers.Dense(1))
    stage.fit(model, X, Y, batch_size=8)


@variant("net-lstm-recurrent-dropout")
def _(stage):
    lstm = layers.LSTM(4, dropout=0.2, recurrent_dropout=0.3)
    stage.fit(compiled(keras.Input((5, 3)), lstm, layers.Dense(1)), SEQUENCES, LABELS, batch_size=8)


@variant("net-stateful-gru")
def _(stage):
    gru = layers.GRU(4, stateful=True)
    model = compiled(keras.Input((5, 3), batch_size=8), gru, layers.Dense(1))
    stage.fit(model, SEQUENCES, LABELS, batch_size=8, shuffle=False)


@variant("net-bidirectional")
def _(stage):
    both = layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True, dropout=0.2))
    model = compiled(
        keras.Input((5, 3)), both, layers.TimeDistributed(layers.Dense(2)), layers.Flatten(), layers.Dense(1)
    )
    stage.fit(model, SEQUENCES, LABELS, batch_size=8)


@variant("net-attention")
def _(stage):
    inputs = keras.Input((6,), dtype="int32")
    words = layers.Embedding(20, 4)(inputs)
    mixed = layers.MultiHeadAttention(2, 2, dropout=0.2)(words, words)
    out = layers.Dense(1)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(words + mixed)))
    model = keras.Model(inputs, out)
    model.compile("adam", "mse")
    stage.fit(model, WORDS, LABELS, batch_size=8)


@variant("net-augmented-images")
def _(stage):
    model = compiled(
        keras.Input((8, 8, 3)),
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.Conv2D(3, 3),
        layers.BatchNormalization(),
        layers.SpatialDropout2D(0.2),
        layers.GlobalMaxPooling2D(),
        layers.Dense(1),
    )
    stage.fit(model, IMAGES, LABELS[:32], batch_size=8)


class Own(keras.Model):
    """A training step of its own: two losses, a metric and a counter that Keras does not know."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop, self.out = layers.Dense(4), layers.Dropout(0.3), layers.Dense(1)
        self.tracker = keras.metrics.Mean(name="loss")
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64)

    @property
    def metrics(self):
        return [self.tracker]

    def call(self, inputs, training=False):
        return self.out(self.drop(self.dense(inputs), training=training))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            blurred = x + tf.random.normal(tf.shape(x), stddev=0.1, seed=4)
            loss = ops.mean(ops.square(self(blurred, training=True) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.tracker.update_state(loss)
        self.steps.assign_add(1)
        return {"loss": self.tracker.result(), "steps": self.steps}


@variant("step-of-its-own", inexact="whose state TensorFlow hides")
def _(stage):
    model = Own()
    model.compile("adam")
    stage.fit(model, X, Y, batch_size=8)


class Keyed(Own):
    """The same; its chance is Keras's."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(9)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            blurred = x + keras.random.normal(ops.shape(x), stddev=0.1, seed=self.seeds)
            loss = ops.mean(ops.square(self(blurred, training=True) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.tracker.update_state(loss)
        self.steps.assign_add(1)
        return {"loss": self.tracker.result(), "steps": self.steps}


@variant("step-with-keras-chance")
def _(stage):
    model = Keyed()
    model.compile("adam")
    stage.fit(model, X, Y, batch_size=8)
    return model.steps


class Duel(keras.Model):
    """Two networks, each with an optimizer."""

    def __init__(self):
        super().__init__()
        self.maker = keras.Sequential([keras.Input((2,)), layers.Dense(4), layers.Dense(6)])
        self.judge = keras.Sequential(
            [keras.Input((6,)), layers.Dense(4), layers.Dropout(0.2), layers.Dense(1)]
        )
        self.seeds = keras.random.SeedGenerator(3)
        self.loss_of = {"maker": keras.metrics.Mean(name="maker"), "judge": keras.metrics.Mean(name="judge")}

    def compile(self, maker, judge):
        super().compile()
        self.maker_optimizer, self.judge_optimizer = maker, judge

    def train_step(self, real):
        latent = keras.random.normal((ops.shape(real)[0], 2), seed=self.seeds)
        with tf.GradientTape(persistent=True) as tape:
            made = self.maker(latent)
            wrong = ops.mean(self.judge(made, training=True)) - ops.mean(self.judge(real, training=True))
            right = -ops.mean(self.judge(made))
        for optimizer, net, loss in (
            (self.judge_optimizer, self.judge, wrong), (self.maker_optimizer, self.maker, right)
        ):  # fmt: skip
            optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        self.loss_of["maker"].update_state(right)
        self.loss_of["judge"].update_state(wrong)
        return {name: metric.result() for name, metric in self.loss_of.items()}


@variant("step-duel")
def _(stage):
    model = Duel()
    model.compile(optimizers.Adam(0.01), optimizers.RMSprop(0.01))
    stage.fit(model, X, batch_size=8)
    return [model.maker_optimizer.variables, model.judge_optimizer.variables]


@variant("eagerly-a-duel")
def _(stage):
    model = Duel()
    model.compile(optimizers.Adam(0.01), optimizers.RMSprop(0.01))
    model.run_eagerly = True
    stage.fit(model, X, batch_size=26, epochs=2)
    return [model.maker_optimizer.variables, model.judge_optimizer.variables]


class Looking(keras.Model):
    """A step that can only run eagerly: it looks at numbers, and keeps them in Python."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)

    def train_step(self, data):
        logs = super().train_step(data)
        return {**logs, "largest": float(data[0].numpy().max())}


@variant("eagerly-a-step-of-its-own")
def _(stage):
    model = Looking()
    model.compile("adam", "mse", run_eagerly=True)
    stage.fit(model, X, Y, batch_size=13, epochs=2)


@variant("several-models-share-layers")
def _(stage):
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(4, activation="tanh")(inputs))
    first, second = keras.Model(inputs, layers.Dense(1)(hidden)), keras.Model(inputs, layers.Dense(6)(hidden))
    first.compile("adam", "mse")
    second.compile("sgd", "mse")
    for _ in range(2):
        stage.fit(first, X, Y, batch_size=13, epochs=2)
        stage.fit(second, X, X, batch_size=13, epochs=1)


@variant("metrics-with-state")
def _(stage):
    metrics = [keras.metrics.AUC(), keras.metrics.Precision(), keras.metrics.MeanMetricWrapper(blurred)]
    model = mlp(loss="binary_crossentropy", metrics=metrics)
    stage.fit(model, X, Y, batch_size=8, validation_split=0.2)


def blurred(y, predicted):
    return ops.abs(y - predicted)


@variant("eagerly")
def _(stage):
    stage.fit(mlp(run_eagerly=True), X, Y, batch_size=13, epochs=2, validation_split=0.2)


@variant("eagerly-a-stream")
def _(stage):
    stage.fit(mlp(run_eagerly=True), stream().shuffle(52).batch(13), epochs=2)


@variant("compiled-by-xla")
def _(stage):
    stage.fit(mlp(jit_compile=True), X, Y, batch_size=13)


@variant("net-subclassed-traced-chance")
def _(stage):
    class Noisy(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs) * np.random.uniform(0.5, 1.5)

    model = Noisy()
    model.compile("sgd", "mse")
    stage.fit(model, X, Y, batch_size=8, validation_data=(X[:10], Y[:10]))


run()
