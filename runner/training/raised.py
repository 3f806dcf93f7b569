"""What ended a script, as a fact: the exception, where in the script's own code, after how many steps."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.training.worker import Worker

#: Phases before training: what fails there fails as the script starts.
_STARTING = {"import", "build", "trace"}
_FRAMES = 3


def describe(error: BaseException, worker: Worker) -> dict[str, Any]:
    """Return what the supervisor is told of an uncaught exception.

    Args:
        error: that ends the script, our own frames taken out of its traceback.
        worker: this process's.
    """
    lines = str(error).strip().splitlines()
    return {
        "kind": type(error).__name__,
        "message": lines[0] if lines else "",
        "where": _where(error, worker.launch.cwd),
        "step": worker.step,
        "started": has_begun(worker),
    }


def has_begun(worker: Worker) -> bool:
    """Tell whether training has begun; what is resumed has, though its first step is traced yet."""
    return worker.put_back or worker.progress.values["phase"] not in _STARTING


@contextlib.contextmanager
def noticed(worker: Worker) -> Iterator[None]:
    """Notice an exception that leaves the block, a fit: if the script catches it, what follows is its own.

    That may take as long as it likes; no step is waited for.
    """
    try:
        yield
    except BaseException:
        if has_begun(worker):
            worker.phase("after")
        raise


def _where(error: BaseException, folder: Path) -> list[str]:
    """Name the innermost frames of the script's own code; where there is none, the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename, folder)] or list(frames[-1:])
    return [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in own[-_FRAMES:]]


def _is_own(file: str, folder: Path) -> bool:
    return Path(file).is_relative_to(folder) and "site-packages" not in Path(file).parts
