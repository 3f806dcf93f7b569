"""What this worker was started with: `launch.json`, as values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.cadence import NO_PAST, Past
from runner.core.failure import Retreat
from runner.core.spec import CadenceUnit, CheckpointSpec, Every, Mode, Nan
from runner.storage.layout import AttemptPaths, JobPaths

#: In the environment: the descriptors that the shim hands to the worker and to its keeper.
KEEPER = "RUNNER_KEEPER"
#: The same: the descriptor of the socket to the shim that waits, in a process that does.
SPARE = "RUNNER_SPARE"


@dataclass(frozen=True)
class Launch:
    """One attempt's orders (see ARCHITECTURE.md, launch.json)."""

    job: str
    attempt: int
    paths: JobPaths
    cwd: Path
    entry: str | None
    args: tuple[str, ...]
    seed: int
    threads: int
    grace_s: float
    checkpoint: CheckpointSpec
    start_from: Path | None
    past: Past = NO_PAST  #: what earlier attempts have lived through
    memory_bytes: int | None = None  #: what the job may take; None: no limit of its own
    #: Descriptors of the socket to the keeper, and of the memory for snapshots.
    keeper: tuple[int, int] | None = None
    nan: Nan = Nan.IGNORE  #: what follows a loss that is not finite, or beyond `loss_max`
    loss_max: float | None = None
    retreat: Retreat | None = None  #: how to resume, if not from the newest checkpoint
    spare: bool = False  #: what is imported is noted, for a spare
    rehearse: bool = False  #: look at each fit, and do not train (see `runner.training.rehearsal`)

    @property
    def attempt_paths(self) -> AttemptPaths:
        """The folder of this attempt."""
        return self.paths.attempt(self.attempt)


def load(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the orders that RUNNER_STATE and RUNNER_ATTEMPT point at.

    Raises:
        KeyError: this process was not started by the runner, or a key is missing.
        OSError, ValueError: the file cannot be read.
    """
    return read(
        JobPaths(Path(environ["RUNNER_STATE"])).attempt(int(environ["RUNNER_ATTEMPT"])).launch, environ
    )


def read(path: Path, environ: Mapping[str, str]) -> Launch:
    """Read orders from a file; raises as `load`."""
    value = json.loads(path.read_bytes())
    return Launch(
        job=str(value["job"]),
        attempt=int(environ["RUNNER_ATTEMPT"]),
        paths=JobPaths(Path(environ["RUNNER_STATE"])),
        cwd=Path(value["cwd"]),
        entry=value["entry"],
        args=tuple(value["args"]),
        seed=int(value["seed"]),
        threads=int(value["threads"]),
        grace_s=float(value["grace_s"]),
        checkpoint=_checkpoint(value["checkpoint"]),
        start_from=Path(value["from"]) if value.get("from") else None,
        past=Past(**value.get("past", {})),
        memory_bytes=value.get("memory_bytes"),
        keeper=_keeper(environ.get(KEEPER)),
        nan=Nan(value["nan"]["mode"]) if value.get("nan") else Nan.IGNORE,
        loss_max=value["nan"]["loss_max"] if value.get("nan") else None,
        retreat=Retreat(**value["retreat"]) if value.get("retreat") else None,
        spare=value.get("spare", "none") != "none",
        rehearse=bool(value.get("rehearse")),
    )


def _keeper(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    channel, memory = (int(number) for number in text.split(","))
    try:
        for fd in (channel, memory):
            os.set_inheritable(fd, False)
    except OSError:
        return None  # what started this process has closed them
    return channel, memory


def _checkpoint(value: Mapping[str, Any]) -> CheckpointSpec:
    return CheckpointSpec(
        every=_every(value["every"]),
        keep=int(value["keep"]),
        monitor=value["monitor"],
        mode=Mode(value["mode"]),
        best=str(value["best"]),
        mirror=value.get("mirror"),
        best_keep=value.get("best_keep"),
        archive=_every(value["archive"]) if value.get("archive") else None,
    )


def _every(value: Mapping[str, Any]) -> Every:
    return Every(CadenceUnit(value["unit"]), float(value["count"]))
