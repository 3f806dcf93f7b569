"""Datasets of tf.data: shuffled, repeated, filtered, cached, augmented, in any order."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from stage import WEIGHTS, X, Y, mlp, run, stream, variant


@variant("stream-plain")
def _(stage):
    stage.fit(mlp(), stream().batch(8))


@variant("stream-shuffled")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).batch(8).prefetch(tf.data.AUTOTUNE))


@variant("stream-seed")
def _(stage):
    stage.fit(mlp(), stream().shuffle(20, seed=4).batch(8))


@variant("stream-seed-same-order")
def _(stage):
    stage.fit(mlp(), stream().shuffle(20, seed=4, reshuffle_each_iteration=False).batch(8))


@variant("stream-same-order")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52, reshuffle_each_iteration=False).batch(8))


@variant("stream-endless")
def _(stage):
    stage.fit(mlp(), stream().shuffle(30).repeat().batch(8).prefetch(2), steps_per_epoch=5, epochs=4)


@variant("stream-repeat-then-shuffle")
def _(stage):
    stage.fit(mlp(), stream().repeat().shuffle(80).batch(8), steps_per_epoch=6)


@variant("stream-filter")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).filter(lambda a, b: a[0] > 0.3).batch(6))


@variant("stream-shuffle-under-shuffle")
def _(stage):
    mixed = stream().shuffle(52).map(lambda a, b: (a + 1, b)).shuffle(9).batch(8)
    held = stream().take(20).shuffle(20).batch(2).shuffle(5)
    stage.fit(mlp(), mixed, epochs=4, validation_data=held)
    stage.fit(mlp(), mixed, epochs=1)


@variant("stream-shuffle-under-shuffle-of-cached")
def _(stage):
    stage.fit(mlp(), stream().cache().shuffle(52).map(lambda a, b: (a + 1, b)).shuffle(9).batch(8), epochs=4)


@variant("stream-interleave")
def _(stage):
    parts = tf.data.Dataset.range(4).shuffle(4)

    def opened(part):
        return stream().shard(4, part)

    stage.fit(mlp(), parts.interleave(opened, cycle_length=2, num_parallel_calls=2).batch(8))


@variant("stream-parallel-map")
def _(stage):
    mapped = stream().shuffle(52).map(lambda a, b: (a * 2 - 1, b), num_parallel_calls=2)
    stage.fit(mlp(), mapped.batch(8, num_parallel_calls=2))


@variant("stream-cache-then-shuffle")
def _(stage):
    stage.fit(mlp(), stream().cache().shuffle(52).batch(8))


@variant("stream-shuffle-then-cache")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).batch(8).cache())


@variant("stream-cache-remainder-dropped")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).cache().batch(8, drop_remainder=True), epochs=4)


@variant("stream-batch-then-shuffle")
def _(stage):
    stage.fit(mlp(), stream().batch(8).shuffle(7).map(lambda a, b: (a + 1, b)).prefetch(1))


@variant("stream-generator-augmented")
def _(stage):
    chance = tf.random.Generator.from_seed(5)
    noisy = stream().map(lambda a, b: (a + chance.normal((6,), stddev=0.1), b))
    stage.fit(mlp(), noisy.shuffle(20).batch(8))


@variant("stream-stateless-augmented")
def _(stage):
    def noisy(index, pair):
        return pair[0] + tf.random.stateless_normal((6,), [index, 7], stddev=0.1), pair[1]

    stage.fit(mlp(), stream().enumerate().shuffle(52).map(noisy, num_parallel_calls=2).batch(8))


@variant("stream-counter-augmented")
def _(stage):
    seeds = tf.data.Dataset.counter()
    noisy = tf.data.Dataset.zip(stream().shuffle(52).repeat(), seeds).map(
        lambda pair, seed: (pair[0] + tf.random.stateless_normal((6,), [seed, 1]), pair[1])
    )
    stage.fit(mlp(), noisy.batch(8), steps_per_epoch=6)


@variant("stream-layer-augmented")
def _(stage):
    noise = keras.layers.GaussianNoise(0.2, seed=3)
    stage.fit(mlp(), stream().shuffle(52).batch(8).map(lambda a, b: (noise(a, training=True), b)))


@variant("stream-ragged-several-steps")
def _(stage):
    stage.fit(mlp(steps_per_execution=4), stream().shuffle(52).batch(9), epochs=4)


@variant("stream-validated")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).batch(8), validation_data=stream().take(20).shuffle(20).batch(6))


@variant("stream-validated-steps")
def _(stage):
    held = stream().take(30).batch(6)
    stage.fit(mlp(), stream().shuffle(52).batch(8), validation_data=held, validation_steps=3)


@variant("stream-split")
def _(stage):
    mixed = stream().shuffle(52, reshuffle_each_iteration=False)
    stage.fit(mlp(), mixed.skip(12).shuffle(40).batch(8), validation_data=mixed.take(12).batch(6))


@variant("stream-shared")
def _(stage):
    mixed = stream().shuffle(52)
    stage.fit(mlp(), mixed.skip(12).batch(8), epochs=4, validation_data=mixed.take(12).batch(6))


@variant("stream-shared-seed")
def _(stage):
    mixed = stream().cache().shuffle(52, seed=4)
    rows, held = mixed.skip(12).shuffle(9).batch(8), mixed.take(12).batch(6)
    stage.fit(mlp(), rows, epochs=4, validation_data=held, validation_freq=2)
    stage.fit(mlp(), rows, epochs=1)


@variant("stream-shared-steps")
def _(stage):
    mixed = stream().shuffle(52)
    stage.fit(mlp(), mixed.batch(4), epochs=4, steps_per_epoch=5, validation_data=mixed.take(12).batch(6))


@variant("stream-shared-whole")
def _(stage):
    data = stream().shuffle(52).batch(8)
    stage.fit(mlp(), data, epochs=4, validation_data=data, validation_steps=3)


@variant("stream-shared-augmented")
def _(stage):
    chance = tf.random.Generator.from_seed(5)
    mixed = stream().shuffle(52)
    noisy = mixed.skip(12).map(lambda a, b: (a + chance.normal((6,), stddev=0.1), b)).batch(8)
    held = mixed.take(12).shuffle(12).batch(6).prefetch(1)
    stage.fit(mlp(), noisy, validation_data=held, class_weight={0: 1.0, 1: 2.0})


@variant("stream-random-anew")
def _(stage):
    seeds = tf.data.Dataset.random(seed=3, rerandomize_each_iteration=True)
    rows = tf.data.Dataset.zip(stream(), seeds).map(
        lambda pair, seed: (pair[0] + tf.random.stateless_normal((6,), [seed, 1], stddev=0.1), pair[1])
    )
    stage.fit(mlp(), rows.batch(8), validation_data=rows.take(12).batch(6))


class Looking(keras.callbacks.Callback):
    """Looks at data while training goes on."""

    def __init__(self, data, held):
        super().__init__()
        self.data, self.held, self.seen = data, held, []

    def on_train_begin(self, logs=None):
        self.look(self.data.take(1))

    def on_epoch_begin(self, epoch, logs=None):
        self.look(self.held.take(1))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.look(self.data.unbatch().take(2))

    def on_epoch_end(self, epoch, logs=None):
        self.seen += self.model.evaluate(self.data, verbose=0)
        self.seen.append(float(self.data.reduce(0.0, lambda total, row: 0.5 * total + row[0][0, 0])))

    def look(self, data):
        self.seen += [rows.numpy().sum().item() for rows, _ in data]


@variant("stream-shared-with-callback")
def _(stage):
    data, held = stream().shuffle(52).batch(8), stream().shuffle(20).batch(9)
    looking = Looking(data, held)
    stage.fit(mlp(), data, epochs=4, validation_data=held, callbacks=[looking])
    stage.fit(mlp(), data, epochs=1)
    return looking.seen


@variant("stream-looked-at-in-validation")
def _(stage):
    held = stream().shuffle(20).batch(9)
    looking = Looking(held, held)
    stage.fit(mlp(), X, Y, validation_data=held, callbacks=[looking])
    return looking.seen


@variant("stream-dictionaries")
def _(stage):
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    model = keras.Model([left, right], keras.layers.Dense(1)(keras.layers.Concatenate()([left, right])))
    model.compile("adam", "mse", weighted_metrics=["mae"])
    rows = ({"left": X[:, :3], "right": X[:, 3:]}, Y, WEIGHTS)
    stage.fit(model, tf.data.Dataset.from_tensor_slices(rows).shuffle(52).batch(8))


@variant("stream-zip")
def _(stage):
    rows = tf.data.Dataset.zip(
        tf.data.Dataset.from_tensor_slices(X).shuffle(52), tf.data.Dataset.from_tensor_slices(Y).shuffle(9)
    )
    stage.fit(mlp(), rows.batch(8))


@variant("stream-sampled")
def _(stage):
    mixed = tf.data.Dataset.sample_from_datasets(
        [stream().shuffle(52).repeat(), stream().take(9).repeat()], weights=[0.7, 0.3], seed=8
    )
    stage.fit(mlp(), mixed.batch(8), steps_per_epoch=6)


@variant("stream-sampled-unseeded")
def _(stage):
    mixed = tf.data.Dataset.sample_from_datasets([stream().repeat(), stream().take(9).repeat()])
    stage.fit(mlp(), mixed.batch(8), steps_per_epoch=6)


@variant("stream-windows")
def _(stage):
    steps = tf.data.Dataset.from_tensor_slices(X).window(3, shift=1, drop_remainder=True)
    rows = steps.flat_map(lambda w: w.batch(3)).map(lambda w: (w[0], w[2, :1]))
    stage.fit(mlp(), rows.shuffle(30).batch(8))


@variant("stream-rebatched")
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).batch(16).unbatch().batch(9, drop_remainder=True).prefetch(2))


@variant("stream-begun-anew")
def _(stage):
    stage.fit(mlp(), stream().take(20).shuffle(20).repeat(2).batch(8))


@variant("stream-files")
def _(stage):
    folder = Path("records")
    folder.mkdir(exist_ok=True)
    for part in range(3):
        with tf.io.TFRecordWriter(str(folder / f"{part}.tfrecord")) as file:
            for row in X[part::3]:
                file.write(row.tobytes())

    def parsed(record):
        row = tf.reshape(tf.io.decode_raw(record, tf.float32), (6,))
        return row, row[:1]

    names = tf.data.Dataset.list_files(str(folder / "*.tfrecord"))
    rows = names.interleave(tf.data.TFRecordDataset, cycle_length=2).map(parsed, num_parallel_calls=2)
    stage.fit(mlp(), rows.shuffle(20).batch(8))


@variant("stream-buckets")
def _(stage):
    rows = tf.data.Dataset.from_tensor_slices(np.arange(1, 41)).shuffle(40)
    rows = rows.map(
        lambda n: (tf.ones((n % 5 + 1, 3)) * tf.cast(n, tf.float32) / 40, tf.cast(n % 2, tf.float32))
    )
    rows = rows.bucket_by_sequence_length(lambda a, b: tf.shape(a)[0], [3, 5], [6, 5, 4])
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(3), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    stage.fit(model, rows)


@variant("stream-seeded", seeded=True)
def _(stage):
    stage.fit(mlp(), stream().shuffle(52).repeat().batch(8), steps_per_epoch=6)


@variant("stream-seeded-augmented", seeded=True)
def _(stage):
    noisy = stream().shuffle(52).map(lambda a, b: (a + tf.random.normal((6,), stddev=0.1), b))
    stage.fit(mlp(), noisy.batch(8))


@variant("stream-shared-cached", inexact="a shuffle that training and validation share is cached")
def _(stage):
    mixed = stream().shuffle(52)
    stage.fit(mlp(), mixed.skip(12).cache().batch(8), validation_data=mixed.take(12).cache().batch(6))


@variant("stream-shared-endless", inexact="a shuffle that training and validation share is begun anew")
def _(stage):
    mixed = stream().shuffle(52)
    rows, held = mixed.skip(12).repeat().batch(8), mixed.take(12).batch(6)
    stage.fit(mlp(), rows, steps_per_epoch=5, validation_data=held)


@variant("stream-shared-shuffled-again", inexact="a shuffle that others read too is shuffled again")
def _(stage):
    data = stream().shuffle(52).map(lambda a, b: (a + 1, b)).shuffle(9).batch(8)
    stage.fit(mlp(), data, callbacks=[Looking(data, data)])


@variant("stream-unseeded-augmented", inexact="RandomStandardNormal in the dataset has no seed")
def _(stage):
    noisy = stream().shuffle(52).map(lambda a, b: (a + tf.random.normal((6,), stddev=0.1), b))
    stage.fit(mlp(), noisy.batch(8))


@variant("stream-parallel-augmented", seeded=True, inexact="in a parallel map is not reproducible")
def _(stage):
    noisy = stream().map(lambda a, b: (a + tf.random.normal((6,)), b), num_parallel_calls=2)
    stage.fit(mlp(), noisy.batch(8))


@variant("stream-parallel-generator", inexact="a random generator in a parallel map is not reproducible")
def _(stage):
    chance = tf.random.Generator.from_seed(5)
    noisy = stream().map(lambda a, b: (a + chance.normal((6,)), b), num_parallel_calls=2)
    stage.fit(mlp(), noisy.batch(8))


@variant("stream-not-deterministic", inexact="the dataset's option deterministic is off")
def _(stage):
    options = tf.data.Options()
    options.deterministic = False
    stage.fit(mlp(), stream().shuffle(52).batch(8).with_options(options))


@variant("stream-unordered-map", inexact="is given deterministic=False")
def _(stage):
    rows = stream().map(lambda a, b: (a + 1, b), num_parallel_calls=2, deterministic=False)
    stage.fit(mlp(), rows.batch(8))


@variant("stream-unordered-batch", inexact="is given deterministic=False")
def _(stage):
    held = stream().batch(8, num_parallel_calls=2, deterministic=False)
    stage.fit(mlp(), stream().batch(8), validation_data=held)


@variant("stream-unordered-interleave", inexact="is given deterministic=False")
def _(stage):
    rows = tf.data.Dataset.range(4).interleave(
        lambda part: stream().shard(4, part), num_parallel_calls=2, deterministic=False
    )
    stage.fit(mlp(), rows.batch(8))


@variant("stream-unordered-inside", inexact="is given deterministic=False")
def _(stage):
    def opened(part):
        rows = stream().shard(4, part)
        return rows.map(lambda a, b: (a + 1, b), num_parallel_calls=2, deterministic=False)

    stage.fit(mlp(), tf.data.Dataset.range(4).flat_map(opened).batch(8))


@variant("stream-parallel-layer", inexact="changes in a parallel map: not reproducible")
def _(stage):
    noise = keras.layers.GaussianNoise(0.2, seed=3)
    noisy = stream().batch(8).map(lambda a, b: (noise(a, training=True), b), num_parallel_calls=2)
    stage.fit(mlp(), noisy)


@variant("stream-ordered-by-word")
def _(stage):
    parts = tf.data.Dataset.range(4).interleave(
        lambda part: stream().shard(4, part), num_parallel_calls=2, deterministic=True
    )
    rows = parts.map(lambda a, b: (a + 1, b), num_parallel_calls=2, deterministic=True)
    stage.fit(mlp(), rows.shuffle(30).batch(8, num_parallel_calls=2, deterministic=True))


@variant("stream-shuffle-inside", inexact="a shuffle inside a dataset's function")
def _(stage):
    parts = tf.data.Dataset.range(4)
    stage.fit(mlp(), parts.flat_map(lambda part: stream().shard(4, part).shuffle(13)).batch(8))


@variant("stream-validated-unread", inexact="the validation data are shuffled, then repeated")
def _(stage):
    endless = stream().shuffle(20).repeat().batch(6)
    stage.fit(mlp(), stream().shuffle(52).batch(8), validation_data=endless, validation_steps=2)


run()
