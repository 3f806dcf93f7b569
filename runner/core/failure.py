"""What ended an attempt, in the worker's own words, and whether it is the same thing again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The kind of a failure that is no exception: the loss was not finite, or over its limit.
NOT_FINITE = "not-finite"
#: Exceptions, by Python, NumPy, TensorFlow and PyTorch, of an allocation that failed.
OUT_OF_MEMORY = frozenset({"MemoryError", "_ArrayMemoryError", "ResourceExhaustedError", "OutOfMemoryError"})
#: Exceptions that no second start avoids, where they come before training.
_NEVER_PASS = frozenset(
    {
        *("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"),
        *("NameError", "AttributeError", "TypeError"),
    }
)
#: The same failure so many times in a row, and the job is given up; the last time from an older checkpoint.
TIMES_MAX = 3


@dataclass(frozen=True)
class Failure:
    """What a worker told of its own end; two that are equal are the same failure."""

    kind: str  #: the class of the exception, or NOT_FINITE
    where: tuple[str, ...]  #: the script's innermost frames, the innermost last
    step: int  #: completed steps
    started: bool  #: training had begun in that attempt
    message: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The failure on one line."""
        place = f" ({self.where[-1]})" if self.where else ""
        what = self.message if self.kind == NOT_FINITE else f"{self.kind}: {self.message}".rstrip(": ")
        return f"{what}{place}"

    @property
    def times_max(self) -> int:
        """How many times in a row it may happen."""
        return 2 if not self.started and self.kind in _NEVER_PASS else TIMES_MAX


@dataclass(frozen=True)
class Retreat:
    """How the next attempt resumes, where to go on as usual would end as before."""

    before: int | None = None  #: from a checkpoint of an earlier step than this, where there is one
    learning_rate: float = 1.0  #: with learning rates times this
    reason: str = ""
    attempt: int = 0  #: whose end it follows; 0 in older records

    @property
    def mark(self) -> dict[str, Any]:
        """What is in the state of each snapshot that was taken after it."""
        return {"retreat": self.attempt}

    def is_behind(self, state: Mapping[str, Any]) -> bool:
        """Tell whether a snapshot with that state was taken after it: it must not be made again."""
        return state.get("retreat") == self.attempt
