"""How `checkpoint.v1.weights.h5` was made; it is never made again: later readers must read that very file."""

from __future__ import annotations

from pathlib import Path

from runner.storage import checkpoint
from tests.storage.snapshots import CREATED, small

if __name__ == "__main__":
    checkpoint.write(Path(__file__).with_name("checkpoint.v1.weights.h5"), small(), created=CREATED)
