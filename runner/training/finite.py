"""Whether training goes well, as far as its loss tells: finite, and within the job's bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.storage.checkpoint import Snapshot

_LOSSES = ("loss", "val_loss")


def trouble(logs: Any, loss_max: float | None) -> str:
    """Say which loss is not finite, or beyond the bound; "" where none is.

    Args:
        logs: as a step or an epoch of Keras's has them.
        loss_max: the bound; None: there is none.
    """
    for name in _LOSSES if isinstance(logs, Mapping) else ():
        value = _number(logs.get(name))
        if value is not None and not math.isfinite(value):
            return f"{name} is {value}"
        if value is not None and loss_max is not None and value > loss_max:
            return f"{name} is {value:g}, more than limits.loss_max = {loss_max:g}"
    return ""


def _number(value: Any) -> float | None:
    """Return a loss as a number; of several the sum, which is finite only where all are."""
    if value is None:
        return None
    try:
        return float(np.sum(np.asarray(value, np.float64)))
    except (TypeError, ValueError):
        return None


def has_nan(snapshot: Snapshot) -> bool:
    """Tell whether a weight, or what an optimizer keeps of it, is no number.

    Metrics may be none for a while, and a layer may hold infinities on purpose.
    """
    weights = set(snapshot.links.values()) or {key for key in snapshot.arrays if key.startswith("variables/")}
    arrays = (snapshot.arrays[key] for key in weights)
    return any(bool(np.isnan(array).any()) for array in arrays if array.dtype.kind in "fc")
