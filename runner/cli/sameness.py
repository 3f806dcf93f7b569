"""Did two jobs end the same, bit for bit? What their fits left behind, and the metrics of each epoch.

Of a job without a fit (a loop of its own) it is the newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

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
    one, other = (finals(home.job(name)) for name in (first, second))
    if not one and not other:
        return Verdict(True, "neither kept a checkpoint: there is nothing to compare but how they ended")
    if [path.name for path in one] != [path.name for path in other]:
        names = [", ".join(path.name for path in found) or "nothing" for found in (one, other)]
        return Verdict(False, f"NOT the same: one ended with {names[0]}, the other with {names[1]}")
    arrays = [array_digests(found) for found in (one, other)]
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
            f"the same, bit for bit: {len(keys)} arrays of {', '.join(path.name for path in one)} "
            f"(sha256 {digests[first][:16]} and {digests[second][:16]}), metrics of {len(epochs[0])} epochs"
        )
    return Verdict(not differing, text, len(keys), len(epochs[0]), digests, differing)


def finals(paths: JobPaths) -> list[Path]:
    """List the files that hold how the job ended."""
    return [path for _, path in paths.list_fits()] or [path for _, path in paths.list_checkpoints()[-1:]]


def array_digests(files: list[Path]) -> dict[str, str]:
    """Return a digest of every array in checkpoints, over its dtype, shape and bytes."""
    from runner.storage import checkpoint  # numpy: only where models are read

    found = {}
    for path in files:
        for key, array in checkpoint.read(path).arrays.items():
            head = f"{array.dtype.str} {array.shape}\n".encode()
            found[f"{path.name.partition('.')[0]}/{key}"] = hashlib.sha256(head + array.tobytes()).hexdigest()
    return found


def whole(digests: dict[str, str]) -> str:
    """Return one digest for all arrays."""
    text = "".join(f"{key} {digests[key]}\n" for key in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


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
