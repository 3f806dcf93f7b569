"""How tests wait: for a condition, never for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How soon it is looked again: at once at first; of what takes long, after a fiftieth of that, so that those
#: who wait leave the processors to those who are waited for.
_SOON_S, _LATE_S, _SHARE = 0.005, 0.05, 0.02


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 90.0) -> T:
    """Wait until `condition` gives something true, and return that."""
    began_s, waited_s = time.monotonic(), 0.0
    while not (result := condition()):
        before_s, waited_s = waited_s, time.monotonic() - began_s
        if before_s > timeout_s:  # who was held up for that long himself looks once more
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(min(_LATE_S, max(_SOON_S, _SHARE * waited_s)))
    return result
