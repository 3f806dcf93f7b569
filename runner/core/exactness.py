"""How exactly a fit can be resumed, in one word and in a sentence."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a resume of a fit gives."""

    EXACT = "exact"  #: what an undisturbed run gives, to the bit
    BY_REPLAY = "by-replay"  #: the same, at the cost of reading data again
    NOT_EXACT = "not-exact"  #: something else; the reason says why


def text(kind: str, reason: str) -> str:
    """Write kind and reason as people read them."""
    if kind == Kind.BY_REPLAY and reason.startswith("by replay"):
        return f"exact {reason}"
    words = {Kind.BY_REPLAY: "exact by replay", Kind.NOT_EXACT: "not exact"}.get(Kind(kind), "exact")
    return f"{words}: {reason}" if reason else words
