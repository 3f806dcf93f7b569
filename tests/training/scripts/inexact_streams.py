"""tf.data in forms of which a resume is not exact, and some (the first three) of which it is."""

import keras
import numpy as np
import tensorflow as tf

x = np.ones((20, 2), "float32")
source = tf.data.Dataset.from_tensor_slices((x, x[:, :1]))
plain = source.batch(10)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return x[:10], x[:10, :1]


def variant(dataset, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(dataset, verbose=0, epochs=1, **options)


variant(source.shuffle(20).repeat(2).batch(10))
variant(source.shuffle(20).concatenate(source).batch(10))
variant(source.shuffle(20).repeat().batch(10), steps_per_epoch=2, validation_data=source.shuffle(9).batch(5))
variant(plain, validation_data=source.shuffle(20).repeat().batch(10), validation_steps=3)
variant(plain, validation_data=source.shuffle(20).cache().batch(5), validation_steps=2)
variant(plain, validation_data=Batches())
variant(plain, validation_data=(Batches(),))  # in a tuple it is not seen for what it is


def noise(a, b):
    noisy = tf.numpy_function(lambda one: one + np.random.rand(2).astype("float32"), [a], tf.float32)
    return tf.ensure_shape(noisy, (2,)), b


def by_hidden():
    next(orders)
    yield from zip(x, x[:, :1], strict=True)


orders = iter(range(99))
hidden = tf.data.Dataset.from_generator(
    by_hidden, output_signature=(tf.TensorSpec((2,), tf.float32), tf.TensorSpec((1,), tf.float32))
)
variant(source.map(noise, num_parallel_calls=2).batch(10))
variant(plain, validation_data=hidden.batch(10))
