"""The memory of GPUs that an attempt had whose shim was killed: nobody else waits until it is free.

Looks as the shim does, by `vacated.py`, beside the loop: nvidia-smi may hang.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from runner.storage.layout import AttemptPaths, Home
from runner.supervisor import launch, mirrors, process
from runner.supervisor.loop import Loop

_PROGRAM = Path(__file__).resolve().with_name("vacated.py")
#: As the shim's.
GPU_S = 30.0


def had_gpus(paths: AttemptPaths) -> bool:
    """Tell whether an attempt may have had memory of a GPU, and somebody can tell."""
    shown = launch.environment_of(paths).get("CUDA_VISIBLE_DEVICES")
    return shown != "" and shutil.which("nvidia-smi") is not None


def await_vacated(home: Home, loop: Loop, pids: Iterable[int], then: Callable[[str], None]) -> None:
    """Call `then` when no GPU has memory of these processes, which are gone; or late, with a warning.

    Raises:
        OSError: no process could be made that looks.
    """
    argv = ["-I", "-S", str(_PROGRAM), *map(str, pids)]
    pidfd = os.pidfd_open(launch.start_python(home, argv))

    def tell(warning: str) -> None:
        if deadline.callback is not None:
            deadline.cancel()
            then(warning)

    def ended() -> None:
        loop.forget(pidfd)
        mirrors.reap(pidfd)
        tell("")

    def late() -> None:
        process.ask(pidfd, signal.SIGKILL)
        tell(f"GPU memory of the attempt is not free {GPU_S:g} s after its end")

    deadline = loop.after(GPU_S, late)
    loop.on_readable(pidfd, ended)
