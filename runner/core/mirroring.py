"""Whose a mirror is: what two jobs must have in common to be one, and which home may write.

A mirror outlives its home. So it says itself whose it is: by `work`, a digest of what is run, and by
`owner`, a random name that the home which uses it has given it. A home that takes a mirror over gives it a
new owner; one that finds another owner than its own was left behind, and keeps its hands off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True)
class Identity:
    """What a mirror says of itself."""

    job: str
    work: str  #: see `work_of`
    owner: str
    seed: int
    threads: int


def work_of(spec: Mapping[str, Any]) -> bytes:
    """Return what makes a job's work its own, but for the script's text: to be digested.

    Args:
        spec: a `JobSpec`, as JSON has it, and the `source` that the job started from.
    """
    kept = {name: spec.get(name) for name in ("entry", "command", "args", "env", "seed", "source")}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def refusal(mine: str, work: str, found: Identity | None, seed: int | None = None) -> str | None:
    """Say why a mirror must not be used; None where it may.

    Args:
        mine: the owner by which this home knows the mirror; "" where it never used it.
        work: of this home's job.
        found: what the mirror says; None where it is unclaimed.
        seed: what this home has trained with; None where it goes on from what the mirror has.
    """
    if found is None or found.owner == mine:
        return None
    if mine:
        return "another home has taken it over"
    if found.work != work:
        return "it is another job's: its script, command, args, env, seed or source is not this one's"
    if seed is not None and found.seed != seed:
        return "another home has trained this job there, with another seed"
    return None


def parse(value: Mapping[str, Any]) -> Identity:
    """Read an identity.

    Raises:
        ValueError, TypeError, KeyError: it is none, or of a newer version.
    """
    if value["version"] != VERSION:
        raise ValueError(f"version {value['version']!r}, expected {VERSION}")
    texts = [value[name] for name in ("job", "work", "owner")]
    counts = [value[name] for name in ("seed", "threads")]
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError("a text is missing")
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        raise TypeError("a count is missing")
    return Identity(*texts, *counts)
