"""What a shim leaves on the disk, each file whole or not at all; standard library only, for the shim."""

from __future__ import annotations

import json
import os
import time

#: Between two tries, for as long as the disk refuses.
RETRY_S = 1.0


def write_json(path: str, value: dict[str, object], durably: bool = False) -> None:
    """Replace a JSON file atomically."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        data = (json.dumps(value) + "\n").encode()
        while data:
            data = data[os.write(fd, data) :]
        if durably:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durably:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
            os.fstat(folder)  # as in storage.durable: on an xfs that has shut down fsync returns 0
        finally:
            os.close(folder)


def write_outcome(folder: str, outcome: dict[str, object]) -> None:
    """Write outcome.json durably, trying again for as long as the disk refuses."""
    while True:
        try:
            write_json(os.path.join(folder, "outcome.json"), outcome, durably=True)
            return
        except OSError:
            if not os.path.isdir(folder):
                return  # the job's state was removed under us: nobody will ask
            time.sleep(RETRY_S)
