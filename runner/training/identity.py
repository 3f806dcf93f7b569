"""By what a model is the best: what its file says of itself, so that a lost record can be made again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.core import best as rules
from runner.core.best import Best
from runner.core.spec import Mode
from runner.errors import StorageError
from runner.storage import checkpoint
from runner.training import whole


def identity(best: Best) -> dict[str, Any]:
    """Return what a model's file says of itself, in its state under "best"."""
    return {
        "metric": best.metric,
        "mode": str(best.mode),
        "value": best.value,
        "epoch": best.epoch,
        "step": best.step,
        "file": best.file,
    }


def best_from(raw: dict[str, Any]) -> Best:
    """Read an identity.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    best = Best(
        metric=str(raw["metric"]),
        mode=Mode(raw["mode"]),
        value=float(raw["value"]),
        epoch=int(raw["epoch"]),
        step=int(raw["step"]),
        file=str(raw["file"]),
    )
    if "/" in best.file or not best.file.endswith(rules.SUFFIXES) or not math.isfinite(best.value):
        raise ValueError(f"no best model can be {best.file!r} with the value {best.value!r}")
    return best


def identity_in(path: Path) -> Best | None:
    """Read by what a model's file claims to be best, cheaply; None where it claims nothing or is damaged."""
    try:
        if path.name.endswith(whole.SUFFIX):
            return replace(best_from(json.loads(whole.comment_of(path))), file=path.name)
        info = checkpoint.describe(path)
        if info.metric is None or info.mode is None or info.value is None:
            return None
        return Best(info.metric, Mode(info.mode), info.value, info.epoch, info.step, path.name)
    except (StorageError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def said_by(path: Path) -> Best | None:
    """Read by what an intact model is best, all of it; None where it does not say so."""
    if path.name.endswith(whole.SUFFIX):
        return identity_in(path)
    try:
        return replace(best_from(checkpoint.read_state(path)["best"]), file=path.name)
    except (ValueError, TypeError, KeyError):
        return None
