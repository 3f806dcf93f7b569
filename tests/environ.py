"""The environment of what tests start: scikit-learn, which Keras imports where it is there, is left out."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PYTHONPATH"
_LEAN = str(Path(__file__).parent / "lean")


def leave_out() -> None:
    """Have this process's children leave it out: a fifth of the time of their imports."""
    os.environ[VARIABLE] = os.pathsep.join([_LEAN, *_others()])


def whole() -> dict[str, str]:
    """Return the environment with nothing left out."""
    return {**os.environ, VARIABLE: os.pathsep.join(_others())}


def _others() -> list[str]:
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path not in {"", _LEAN}]
