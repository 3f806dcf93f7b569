"""What a decision wants done, as values; the supervisor applies them after the record is durable.

Each is idempotent: applied twice, or after a crash in between, it does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Ask(StrEnum):
    """What the shim is asked to do to its attempt."""

    STOP = "stop"  #: SIGTERM, and SIGKILL of the tree after the grace
    KILL = "kill"  #: SIGKILL of the tree
    HANG = "hang"  #: take evidence, then as STOP but with a short grace


@dataclass(frozen=True)
class Start:
    """Start attempt `number`."""

    number: int


@dataclass(frozen=True)
class Signal:
    """Ask the shim of the present attempt."""

    ask: Ask


@dataclass(frozen=True)
class Wait:
    """Raise BACKOFF_OVER after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True)
class Remove:
    """Delete the job's folder and its state."""


Action: TypeAlias = Start | Signal | Wait | Remove
