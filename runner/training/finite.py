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
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_finite(snapshot: Snapshot) -> bool:
    """Tell whether all variables of a snapshot are finite numbers."""
    return all(
        bool(np.isfinite(array).all())
        for key, array in snapshot.arrays.items()
        if key.startswith("variables/") and array.dtype.kind in "fc"
    )
