"""Metrics as plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.training.report import plain


def of_logs(logs: Any) -> dict[str, Any]:
    """Return a step's logs."""
    return {str(name): plain(value) for name, value in logs.items()} if isinstance(logs, Mapping) else {}


def of_epoch(model: Any, logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the epoch's metrics as History has them: what callbacks added is among them."""
    values = {str(name): value for name, value in (logs or {}).items()}
    history = getattr(model, "history", None)
    if history is not None:
        for name, series in history.history.items():
            if len(series) == len(history.epoch) and series:
                values[name] = series[-1]
    return {name: plain(value) for name, value in values.items()}


def listed(array: np.ndarray) -> dict[str, Any]:
    """Return a small array as JSON."""
    return {"dtype": array.dtype.name, "values": array.tolist()}


def unlisted(node: Mapping[str, Any]) -> np.ndarray:
    """Return the array that `listed` gave."""
    return np.array(node["values"], np.dtype(node["dtype"]))
