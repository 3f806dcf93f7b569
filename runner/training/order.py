"""The order of arrays that are shuffled without a seed: the job's seed decides it, not the process."""

from __future__ import annotations

from typing import Any

import numpy as np

from runner.training.datasets import OURS


class Order:
    """The order of unseeded arrays: each iterator's depends on (seed, fit, its number) alone.

    It is worked out here and handed over in a variable: within Keras's dataset, whose graph TensorFlow
    prepares anew for each iterator, it is then one operation.
    """

    def __init__(self, tensorflow: Any, seed: int, fit: int, within_batches: bool):
        """Prepare the order of one fit's arrays.

        Args:
            tensorflow: the module.
            seed: the job's.
            fit: which call of `fit`, from 0.
            within_batches: only each batch is shuffled (`shuffle="batch"`).
        """
        self._tensorflow = tensorflow
        self._seed = seed
        self._fit = fit
        self._within_batches = within_batches
        self._variable: Any = None

    def shuffle(self, value: Any, seed: Any = None, name: Any = None) -> Any:  # noqa: ARG002 - tf's signature
        """Stand in for `tf.random.shuffle` while Keras makes its dataset: of all indices, or a batch's."""
        tf = self._tensorflow
        if not self._within_batches:
            return self._variable_of([int(value.shape[0])]).read_value()
        number = self._variable_of([]).read_value()
        key = tf.stack([(self._seed * 1000003 + self._fit) % 2**31, number * 2**32 + value[0]])
        return tf.random.experimental.stateless_shuffle(value, seed=key)

    def _variable_of(self, shape: list[int]) -> Any:
        tf = self._tensorflow
        if self._variable is None:
            with tf.init_scope():
                zeros = np.zeros(shape, np.int64)
                self._variable = tf.Variable(zeros, trainable=False, name=OURS)
        return self._variable

    def begin(self, number: int) -> None:
        """Prepare the order of the iterator of this number, from 1."""
        if self._variable is None:
            return
        if self._within_batches:
            self._variable.assign(number)
            return
        bits = np.random.Philox(key=[self._seed % 2**64, self._fit << 32 | number])
        self._variable.assign(np.random.Generator(bits).permutation(int(self._variable.shape[0])))
