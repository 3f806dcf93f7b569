"""Two fits, each on data of its own that lie in files."""

import keras
import numpy as np
from victim import Mortal, say


def train(name):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.load(f"{name}.npy")
    history = model.fit(x, x[:, :1], epochs=2, batch_size=5, verbose=0, callbacks=[Mortal(name)])
    say(name, model, history)


train("first")
train("second")
