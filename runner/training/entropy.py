"""Where a script draws chance from the operating system, the job's own seed stands in.

A script that seeds nothing gets a different random state in every process; then a resume could never be
exact. So `random`, NumPy's legacy generator and the entropy pool behind unseeded NumPy generators start from
the job's seed, and every unseeded TensorFlow operation that runs eagerly (a `tf.data` shuffle among them)
gets an operation seed from a counter. Scripts that seed are not affected: their seeds replace ours.

`tf.random.set_seed` is never called for a script: it would change how `fit` shuffles (the same permutation
in every epoch). Random operations inside traced functions are left alone for the same reason.

Limits: `os.urandom`, `uuid`, `secrets` and the clock stay as they are.
"""

from __future__ import annotations

import random
from typing import Any

import runner.training.imports as imports


class Entropy:
    """The job's stand-in for the operating system's entropy; two counters are its whole state."""

    def __init__(self, seed: int):
        self.seed = seed
        self.pool_draws = 0
        self.op_draws = 0

    def install(self) -> None:
        """Seed what is there, and arrange for the rest to be seeded when the script imports it."""
        random.seed(self.seed)
        imports.after("numpy.random", self._seed_numpy)
        imports.after("tensorflow.python.framework.random_seed", self._seed_tensorflow)

    def bits(self, count: int) -> int:
        """Stand in for `secrets.randbits` behind unseeded NumPy generators: a new value at every call."""
        self.pool_draws += 1
        return random.Random(f"{self.seed}/{self.pool_draws}").getrandbits(count)

    def _seed_numpy(self, module: Any) -> None:
        from numpy.random import bit_generator

        if hasattr(bit_generator, "randbits"):
            bit_generator.randbits = self.bits
        module.seed(self.seed % 2**32)

    def _seed_tensorflow(self, module: Any) -> None:
        from tensorflow.python.eager import context

        original = module.get_seed

        def get_seed(op_seed: Any) -> Any:
            if op_seed is None and context.executing_eagerly() and context.global_seed() is None:
                self.op_draws += 1
                op_seed = random.Random(f"{self.seed}/op/{self.op_draws}").getrandbits(31)
            return original(op_seed)

        get_seed.__doc__ = original.__doc__
        module.get_seed = get_seed


class Unseeded(Entropy):
    """Outside the runner: nothing is replaced."""

    def __init__(self) -> None:
        super().__init__(0)

    def install(self) -> None:
        """Leave everything alone."""
