"""The state of every random generator that a Keras script shares: captured and put back."""

from __future__ import annotations

import random
import sys
from typing import Any, NamedTuple

import numpy as np

from runner.training.codec import Encoder, Node
from runner.training.decode import Decoder
from runner.training.entropy import Entropy


def capture(encoder: Encoder, entropy: Entropy) -> dict[str, Node]:
    """Return the state of Python's, NumPy's, TensorFlow's and Keras's shared generators."""
    state: dict[str, Node] = {
        "python": _pack(encoder, "python", random.getstate()),
        "numpy": encoder.encode(np.random.get_state(legacy=False)),
        "pool_draws": entropy.pool_draws,
        "op_draws": entropy.op_draws,
        "eager": None,
        "keras": None,
        "global": None,
    }
    context = _context()
    if context is not None and getattr(context, "_rng", None) is not None:
        state["eager"] = _pack(encoder, "eager", context._rng.getstate())
    generator = keras_generator()
    if generator is not None:
        state["keras"] = encoder.encode(np.asarray(generator.state))
    shared = _shared_generator()
    if shared is not None:
        state["global"] = encoder.encode(shared.state.numpy())
    return state


def restore(decoder: Decoder, state: dict[str, Node], entropy: Entropy, *, host: bool = True) -> None:
    """Put all generators back to `state`; those that are no variables only if `host`."""
    if state["keras"] is not None:
        make_keras_generator().state.assign(decoder.merge(None, state["keras"]))
    shared = _shared_generator()
    if shared is not None and state["global"] is not None:
        shared.state.assign(decoder.merge(None, state["global"]))
    if host:
        restore_host(decoder, state, entropy)


def restore_host(decoder: Decoder, state: dict[str, Node], entropy: Entropy) -> None:
    """Put back the generators that are no variables."""
    _restore_ops(decoder, state, entropy)
    _restore_python(decoder, state, entropy)


def restore_unused(decoder: Decoder, state: dict[str, Node], entropy: Entropy, used: Use) -> None:
    """Put back those of them that have not been used."""
    if not used.ops:
        _restore_ops(decoder, state, entropy)
    if not used.python:
        _restore_python(decoder, state, entropy)


def _restore_ops(decoder: Decoder, state: dict[str, Node], entropy: Entropy) -> None:
    """Put back what TensorFlow's operations get their seeds from."""
    context = _context()
    if context is not None and state["eager"] is not None and getattr(context, "_rng", None) is not None:
        context._rng.setstate(_unpack(decoder, state["eager"]))
    entropy.op_draws = state["op_draws"]


def _restore_python(decoder: Decoder, state: dict[str, Node], entropy: Entropy) -> None:
    """Put back Python's and NumPy's shared generators and the entropy pool."""
    np.random.set_state(decoder.merge(None, state["numpy"]))
    random.setstate(_unpack(decoder, state["python"]))
    entropy.pool_draws = state["pool_draws"]


class Use(NamedTuple):
    """How far the generators that are no variables have been used; or whether they have."""

    python: Any  #: Python's and NumPy's shared generators, the entropy pool
    ops: Any  #: what TensorFlow's operations get their seeds from


def use(entropy: Entropy) -> Use:
    """Return how far the job's generators that are no variables have been used: it differs after each use."""
    rng = getattr(_context(), "_rng", None)
    ops = (None if rng is None else _mark(rng.getstate()), entropy.op_draws)
    return Use((*shared(), entropy.pool_draws), ops)


def used_since(before: Use, entropy: Entropy) -> Use:
    """Return which of them have been used since `before`."""
    now = use(entropy)
    return Use(now.python != before.python, now.ops != before.ops)


def differs(decoder: Decoder, state: dict[str, Node], entropy: Entropy, which: Use) -> bool:
    """Tell whether one of these is not as in `state`."""
    rng, numpy = getattr(_context(), "_rng", None), np.random.get_state(legacy=False)
    wanted = decoder.merge(None, state["numpy"])
    python = (
        random.getstate() == _unpack(decoder, state["python"])
        and np.array_equal(numpy["state"].pop("key"), wanted["state"].pop("key"))
        and numpy == wanted
        and entropy.pool_draws == state["pool_draws"]
    )
    same_rng = rng is None or state["eager"] is None or rng.getstate() == _unpack(decoder, state["eager"])
    ops = same_rng and entropy.op_draws == state["op_draws"]
    return (which.python and not python) or (which.ops and not ops)


def shared() -> tuple[Any, ...]:
    """Return something that differs whenever Python's or NumPy's shared generator has been used."""
    _, key, position, has_gauss, gauss = np.random.get_state()
    return (*_mark(random.getstate()), position, int(key[0]), has_gauss, gauss)


def _mark(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a few of the words of a Mersenne Twister: its place, one that changes with the rest."""
    _, words, gauss = state
    return words[-1], words[0], gauss


def keras_generator() -> Any:
    """Return Keras's global seed generator; None while nothing has needed it."""
    from keras.src.backend.common import global_state

    return global_state.get_global_attribute("global_seed_generator")


def make_keras_generator() -> Any:
    """Return Keras's global seed generator, made if need be (as an eager variable)."""
    generator = keras_generator()
    if generator is None:
        from keras.src.random import seed_generator

        tensorflow = sys.modules["tensorflow"]
        with tensorflow.init_scope():
            generator = seed_generator.global_seed_generator()
    return generator


def _context() -> Any:
    module = sys.modules.get("tensorflow.python.eager.context")
    return None if module is None else module.context()


def _shared_generator() -> Any:
    module = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
    return None if module is None else getattr(module, "global_generator", None)


#: What each shared `random.Random` had when it was captured last, and its words as an array.
_packed: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}


def _pack(encoder: Encoder, name: str, state: tuple[Any, ...]) -> Node:
    """Shorten a state of `random.Random`: its 625 words as an array, made anew only where they differ."""
    version, words, gauss = state
    before = _packed.get(name)
    if before is None or before[0] != words:
        before = _packed[name] = words, np.array(words, np.uint32)
    return [version, encoder.array(before[1]), encoder.encode(gauss)]


def _unpack(decoder: Decoder, node: Node) -> tuple[Any, ...]:
    version, words, gauss = node
    return (version, tuple(int(w) for w in decoder.merge(None, words)), decoder.merge(None, gauss))
