"""Did two jobs end the same, bit for bit? Their last checkpoints' arrays, and the metrics of each epoch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.cli import facts
from runner.storage import jsontext
from runner.storage.layout import Home, JobPaths

_NAMES_SHOWN = 5
#: What may differ between two equal runs: when something happened and how long it took.
_CLOCK_KEYS = frozenset({"time", "attempt", "epoch_s", "duration_s", "steps_per_s"})


@dataclass(frozen=True)
class Verdict:
    """What the comparison found; `digests` are of the final arrays, by job."""

    same: bool
    text: str
    arrays: int = 0
    epochs: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    differing: tuple[str, ...] = ()


def compare(home: Home, first: str, second: str) -> Verdict:
    """Compare how two jobs ended."""
    one, other = (facts.gather(home, name)["checkpoint"] for name in (first, second))
    if one is None and other is None:
        return Verdict(True, "neither kept a checkpoint: there is nothing to compare but how they ended")
    if one is None or other is None or one["step"] != other["step"]:
        steps = [found["step"] if found else None for found in (one, other)]
        return Verdict(False, f"NOT the same: the last checkpoints are of steps {steps[0]} and {steps[1]}")
    arrays = [array_digests(Path(found["path"])) for found in (one, other)]
    digests = {name: whole(found) for name, found in zip((first, second), arrays, strict=True)}
    epochs = [_epochs(home.job(name)) for name in (first, second)]
    keys = sorted(arrays[0].keys() | arrays[1].keys())
    differing = tuple(key for key in keys if arrays[0].get(key) != arrays[1].get(key))
    if epochs[0] != epochs[1]:
        differing = (*differing, "metrics.jsonl")
    if differing:
        some = ", ".join(differing[:_NAMES_SHOWN]) + (" ..." if len(differing) > _NAMES_SHOWN else "")
        text = f"NOT the same: {len(differing)} of {len(keys)} arrays and the metrics differ ({some})"
    else:
        text = (
            f"the same, bit for bit: {len(keys)} arrays at step {one['step']} "
            f"(sha256 {digests[first][:16]} and {digests[second][:16]}), metrics of {len(epochs[0])} epochs"
        )
    return Verdict(not differing, text, len(keys), len(epochs[0]), digests, differing)


def array_digests(path: Path) -> dict[str, str]:
    """Return a digest of every array in a checkpoint, over its dtype, shape and bytes."""
    from runner.storage import checkpoint  # numpy: only where models are read

    found = {}
    for key, array in checkpoint.read(path).arrays.items():
        head = f"{array.dtype.str} {array.shape}\n".encode()
        found[key] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return found


def whole(digests: dict[str, str]) -> str:
    """Return one digest for all arrays."""
    text = "".join(f"{key} {digests[key]}\n" for key in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(job: dict[str, Any]) -> str:
    """Return the digest of the arrays in the job's last checkpoint; empty where there is none."""
    return whole(array_digests(Path(job["checkpoint"]["path"]))) if job["checkpoint"] else ""


def _epochs(paths: JobPaths) -> list[str]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    try:
        lines = paths.metrics.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    values = (jsontext.decode(line) for line in lines)
    return [
        json.dumps({key: value[key] for key in value if key not in _CLOCK_KEYS}, sort_keys=True)
        for value in values
    ]
