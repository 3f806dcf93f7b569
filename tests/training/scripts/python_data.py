"""Data that Python code makes: a generator, a PyDataset."""

import sys

import keras
import numpy as np
from victim import Mortal, say

x = np.random.RandomState(1).rand(50, 4).astype("float32")


def endless():
    while True:
        chosen = np.random.randint(0, 50, 10)
        yield x[chosen], x[chosen, :1]


class Pieces(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        piece = x[10 * index : 10 * index + 10]
        return piece, piece[:, :1]


model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
name = sys.argv[1]
if name == "generator":
    history = model.fit(endless(), steps_per_epoch=5, epochs=3, verbose=0, callbacks=[Mortal(name)])
else:
    history = model.fit(Pieces(), epochs=3, verbose=0, callbacks=[Mortal(name)])
say(name, model, history)
