"""What may be made ready of a training step before it is known what is resumed, and what not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runner.training import warmup
from runner.training.entropy import Entropy
from runner.training.warmup import Warmup

X, Y = np.ones((64, 3), np.float32), np.ones((64, 2), np.float32)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Tries a fit, with the two places in Keras stood before as the instrumentation has them."""
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer, TFEpochIterator
    from keras.src.callbacks.callback_list import CallbackList

    trial = Warmup(Entropy(1))
    init, begin = TFEpochIterator.__init__, CallbackList.on_train_begin

    def saw(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        trial.saw(self)

    def leave(self: Any, logs: Any = None) -> None:
        trial.leave()
        begin(self, logs)

    monkeypatch.setattr(TFEpochIterator, "__init__", saw)
    monkeypatch.setattr(CallbackList, "on_train_begin", leave)

    def run(model: Any, **arguments: Any) -> str:
        given = {"self": model, "x": X, "y": Y, "batch_size": 8, **arguments}
        why = trial.run(TensorFlowTrainer.fit, model, given)
        assert trial._iterator is None, "it has a copy of the data"
        return why

    return run


def model_of(*layers: Any) -> Any:
    import keras

    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def test_a_step_is_traced_and_executed_and_nothing_is_left_of_it(tried: Callable[..., str]) -> None:
    import keras

    model = model_of(keras.layers.Dropout(0.5, seed=3))
    model.optimizer.build(model.trainable_variables)
    before = [one.numpy() for one in model.variables]
    random.seed(1), np.random.seed(1)
    chance = random.getstate(), np.random.get_state()[1].tolist()
    assert tried(model) == ""
    assert all(map(np.array_equal, before, [one.numpy() for one in model.variables]))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == chance
    assert len(warmup.traced_step(model.train_function)._list_all_concrete_functions()) == 1


class Acts:
    """What a callback may be that changes what is traced."""

    def __init__(self, name: str):
        self.name = name

    def make(self) -> Any:
        import keras

        return type("Acting", (keras.callbacks.Callback,), {self.name: lambda *_, **__: None})()


@pytest.mark.parametrize("name", sorted(warmup._BEFORE))
def test_no_step_is_tried_that_a_callback_may_change_first(tried: Callable[..., str], name: str) -> None:
    model = model_of()
    assert "callback" in tried(model, callbacks=[Acts(name).make()])
    assert model.train_function is None


def test_functions_that_keras_callbacks_are_given_act_too(tried: Callable[..., str]) -> None:
    import keras

    given = keras.callbacks.LambdaCallback(on_train_begin=lambda _: None)
    assert "callback" in tried(model_of(), callbacks=given)
    harmless = [keras.callbacks.EarlyStopping(), Acts("on_train_batch_end").make()]
    assert tried(model_of(), callbacks=harmless) == ""


def test_state_that_only_tensorflow_knows_keeps_a_step_from_being_executed(tried: Callable[..., str]) -> None:
    import keras
    import tensorflow as tf

    class Writes(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.count = tf.Variable(0.0, trainable=False)

        def call(self, x: Any) -> Any:
            self.count.assign(self.count.read_value() + 1.0, read_value=False)
            return x

    layer = Writes()
    why = tried(model_of(layer))
    assert float(layer.count) == 0.0, why
