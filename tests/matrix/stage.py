"""What the scripts of the matrix share: variants by name, deaths at drawn moments, what a training leaves.

An ordinary script could do all this: nothing here knows of the runner but where its checkpoints lie. Deaths
are planned in `plan.json`, each variant's in their order; how many it has died stands in a file.
"""

import hashlib
import io
import json
import os
import random
import sys
import threading
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf
import victim
from keras.src.backend.common import global_state

_VARIANTS = {}


def variant(name, *, seeded=False, inexact="", warns=""):
    """Register a variant; what it returns belongs to what must be the same. See `tests.matrix.registry`."""

    def register(function):
        _VARIANTS[name] = function
        return function

    return register


def run():
    """Run the variants that the command line names."""
    if "--seeded" in sys.argv:
        keras.utils.set_random_seed(11)
    for name in sys.argv[1:]:
        if not name.startswith("--"):
            print("BEGIN", name, flush=True)
            stage = Stage(name)
            stage.say(_VARIANTS[name](stage))


class Stage:
    """One variant: its folder, its fits."""

    def __init__(self, name):
        self.name = name
        self.clock = Clock(name)
        self.folder = Path("out", name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.models = []
        self.histories = []

    def mortal(self, callbacks):
        """Return callbacks among which it can die: before the others at each moment, and after them."""
        if "--hot" in sys.argv:  # nothing of the script's acts before the first step: a spare may try it
            return [*callbacks, Ended(self.clock)]
        return [Mortal(self.clock), *callbacks, Late(self.clock)]

    def fit(self, model, *data, callbacks=(), **options):
        """Fit a model; it may die in it."""
        options = {"verbose": 0, "epochs": 3, **options}
        history = model.fit(*data, callbacks=self.mortal(callbacks), **options)
        if not any(one is model for one in self.models):
            self.models.append(model)
        self.histories.append((history.epoch, history.history, sorted(history.params)))
        return history

    def say(self, more):
        """Say what the variant has left behind, each kind of it in a few letters."""
        die_after(self.name)
        variables = [
            variable
            for model in self.models
            for part in (model, model.optimizer)
            for variable in (part.variables if part is not None else ())
        ]
        metrics = [variable for model in self.models for variable in model.metrics_variables]
        parts = {
            "variables": digest(variables),
            "metrics": digest(metrics),
            "history": digest(self.histories),
            "more": digest(more),
            "files": {str(path.relative_to(self.folder)): digest(v) for path, v in files(self.folder)},
            "chance": digest(chance()),
        }
        told = {"fits": len(self.histories), "moments": self.clock.told, "parts": parts}
        print(f"\nRESULT {self.name} {json.dumps(told)}", flush=True)


class Clock:
    """The moments of one variant so far, over all its fits."""

    def __init__(self, name):
        self.name = name
        self.told = []


class Mortal(victim.Mortal):
    """Tells the moments, and dies at the one that is planned."""

    def __init__(self, clock):
        super().__init__(clock.name)
        self.clock = clock

    def reach(self, kind):
        tell(self.clock, kind)


class Telling(keras.callbacks.Callback):
    """Tells the clock of its moments."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock


class Late(Telling):
    """The last of the callbacks: at an epoch's end all others have done their work."""

    def on_epoch_end(self, epoch, logs=None):
        tell(self.clock, "late")

    def on_test_end(self, logs=None):
        tell(self.clock, "tested")


class Ended(Telling):
    """Tells only of steps that are completed."""

    def on_train_batch_end(self, batch, logs=None):
        tell(self.clock, "train")


def tell(clock, kind):
    clock.told.append(kind)
    death = next_death(clock.name)
    if death is None or death["kind"] == "after":
        return
    if kind == "start" if death["kind"] == "start" else len(clock.told) > death["at"]:
        if death["kind"] == "save":
            die_while_saving(clock.name)
        else:
            if death.get("saved"):
                victim.until_saved(int(os.environ["SAVED_BEFORE"]) + 1)
            die(clock.name, death["dying_s"])


def die_after(name):
    """Die after the last fit where deaths are left, or wait for the one that is under way."""
    for thread in threading.enumerate():
        if thread.name == "assassin":
            thread.join(1)
    death = next_death(name)
    if death is not None:
        die(name, death["dying_s"])


def next_death(name):
    plan = Path("plan.json")
    deaths = json.loads(plan.read_text()).get(name, []) if plan.exists() else []
    lived = Path(f"lived-{name}")
    count = len(lived.read_text()) if lived.exists() else 0
    return deaths[count] if count < len(deaths) else None


def await_spare():
    """Wait until there is who takes over."""
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        try:
            if json.loads(Path(os.environ["RUNNER_STATE"], "spare", "shim.json").read_text())["ready"]:
                break
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.01)


def die(name, dying_s):
    if "--hot" in sys.argv:
        await_spare()
    with Path(f"lived-{name}").open("a") as file:
        file.write("x")
    time.sleep(dying_s)
    os.kill(os.getpid(), 9)


def die_while_saving(name):
    """Die as soon as a checkpoint is being written."""
    if not any(thread.name == "assassin" for thread in threading.enumerate()):
        threading.Thread(target=lie_in_wait, args=(name,), name="assassin", daemon=True).start()


def lie_in_wait(name):
    folder = Path(os.environ["RUNNER_STATE"], "checkpoints")
    while True:
        if folder.exists() and any(entry.endswith(".tmp") for entry in os.listdir(folder)):
            die(name, 0)
        time.sleep(0.0003)


def chance():
    """Return the state of all shared generators, and what unseeded ones draw."""
    generator = global_state.get_global_attribute("global_seed_generator")
    return [
        random.getstate(),
        np.random.get_state(legacy=False),
        None if generator is None else np.asarray(generator.state),
        tf.random.uniform((2,)),
        np.random.default_rng().random() if "--seeded" not in sys.argv else None,
    ]


def files(folder):
    """Yield each file, and what in it must be the same: arrays, the values of events, or all bytes."""
    events = {}
    for path in sorted(folder.rglob("*")):
        if "tfevents" in path.name:
            events.setdefault(path.parent, []).append(path)
        elif path.name.endswith(".h5"):
            yield path, arrays(path)
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path) as whole:
                yield path, arrays(io.BytesIO(whole.read("model.weights.h5")))
        elif path.is_file():
            yield path, path.read_bytes()
    for parent, paths in events.items():
        yield parent / "events", list(told_events(paths))


def arrays(path):
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, one: found.append((name, one[()])) if hasattr(one, "dtype") else None)
    return found


def told_events(paths):
    """Yield step, tag and value of each event; none may be told twice."""
    seen = set()
    for path in paths:
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "keras":  # the model's picture: Keras draws it whenever a model is set
                    continue
                assert (event.step, value.tag) not in seen, f"{path}: {value.tag} of {event.step} twice"
                seen.add((event.step, value.tag))
                yield event.step, value.tag, value.tensor.SerializeToString()


def digest(value):
    sha = hashlib.sha256()
    for piece in pieces(value):
        sha.update(piece)
    return sha.hexdigest()[:12]


def pieces(value):
    """Yield the bytes of anything that a variant may leave behind."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from pieces((str(key), value[key]))
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        yield f"({len(list(value))}".encode()
        for one in value:
            yield from pieces(one)
    else:
        yield repr(value).encode()


# What many variants are made of.

_data = np.random.RandomState(1)
X = _data.rand(52, 6).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 3).astype("float32")
WEIGHTS = _data.rand(52).astype("float32")
SEQUENCES = _data.rand(40, 5, 3).astype("float32")
IMAGES = _data.rand(32, 8, 8, 3).astype("float32")
WORDS = _data.randint(0, 20, (40, 6))


def mlp(*layers, optimizer="adam", loss="mse", **options):
    """Return a compiled little network with dropout and a metric."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="relu"),
            *(layers or [keras.layers.Dropout(0.3)]),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, loss, **{"metrics": ["mae"], **options})
    return model


def stream():
    """Return a dataset of examples."""
    return tf.data.Dataset.from_tensor_slices((X, Y))
