"""Keras loads a checkpoint as it loads its own weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from tests.storage.snapshots import CREATED

MODELS = ["sequential", "shared", "batchnorm", "nested", "bfloat16", "recurrent"]


def build(keras: Any, name: str) -> Any:
    layers = keras.layers
    inputs = keras.Input((4,))
    match name:
        case "sequential":
            hidden = [layers.Dense(5, "relu"), layers.Dropout(0.3), layers.Dense(1)]
            model = keras.Sequential([inputs, *hidden])
        case "shared":
            shared = layers.Dense(4, name="twice")
            model = keras.Model(inputs, layers.Dense(1)(shared(shared(inputs))))
        case "batchnorm":
            model = keras.Model(inputs, layers.Dense(1)(layers.BatchNormalization()(inputs)))
        case "nested":
            inner = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.1)], name="inner")
            model = keras.Model(inputs, layers.Dense(1)(keras.Sequential([inner, layers.Dense(2)])(inputs)))
        case "bfloat16":
            model = keras.Sequential([inputs, layers.Dense(3, dtype="bfloat16"), layers.Dense(1)])
        case _:
            model = keras.Sequential([inputs, layers.Reshape((2, 2)), layers.LSTM(3), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


def snapshot_like_keras(own: Path) -> Snapshot:
    """Take arrays, names and attributes out of a file that Keras wrote."""
    arrays: dict[str, Any] = {}
    links: dict[str, str] = {}
    attributes: dict[str, dict[str, str]] = {}

    def visit(path: str, found: Any) -> None:
        if found.attrs:
            attributes[path] = dict(found.attrs)
        if isinstance(found, h5py.Dataset):
            links[path] = f"variables/{len(arrays):05d}"
            value = found[()]
            if found.attrs.get("dtype") == "bfloat16":
                import ml_dtypes

                value = value.view(ml_dtypes.bfloat16)
            arrays[links[path]] = value
        elif not found.attrs and not len(found):
            attributes[path] = {}

    with h5py.File(own, "r") as file:
        file.visititems(visit)
    return Snapshot(7, 1, {}, arrays, links, attributes)


def built(keras: Any, name: str, seed: int) -> Any:
    """A model with optimizer, all of its values drawn at random: nothing equals a fresh one by chance."""
    model, chance = build(keras, name), np.random.default_rng(seed)
    model.optimizer.build(model.trainable_variables)
    for variable in model.variables + model.optimizer.variables:
        if str(variable.dtype).startswith(("float", "bfloat")):
            variable.assign(chance.normal(size=variable.shape))
    return model


def values(model: Any) -> list[bytes]:
    variables = model.weights + model.optimizer.variables
    return [np.asarray(variable.value).tobytes() for variable in variables]


@pytest.mark.parametrize("name", MODELS)
def test_load_weights_takes_it_as_its_own(name: str, tmp_path: Path) -> None:
    import keras

    trained, fresh = built(keras, name, 1), built(keras, name, 2)
    trained.optimizer.iterations.assign(77)
    own = tmp_path / "own.weights.h5"
    trained.save_weights(own)
    path = tmp_path / "step-000000000007.weights.h5"
    checkpoint.write(path, snapshot_like_keras(own), created=CREATED)

    assert values(fresh) != values(trained)
    fresh.load_weights(path)
    assert values(fresh) == values(trained)
