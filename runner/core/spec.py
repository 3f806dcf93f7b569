"""What a job asks for, resolved: job.toml with every default filled in.

Times are seconds, sizes are bytes; `None` means "not set" where a field says so. These are plain values:
`runner.settings` makes them from a job.toml and checks it, `storage.records` keeps them in `job.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

#: Names of jobs: what a folder, a command line and a file name all take without quoting.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


#: Priorities lie between these, in job.toml and on the command line.
PRIORITY_MIN, PRIORITY_MAX = -1000, 1000


class CadenceUnit(StrEnum):
    """What a checkpoint cadence counts."""

    AUTO = "auto"  #: found by itself from the measured cost of a save
    SECONDS = "s"
    STEPS = "steps"
    EPOCHS = "epochs"


class Mode(StrEnum):
    """Which direction of the monitored quantity is better."""

    AUTO = "auto"
    MIN = "min"
    MAX = "max"


@dataclass(frozen=True)
class Every:
    """A checkpoint cadence, such as 30 seconds, 500 steps or 1 epoch; `count` is unused for AUTO."""

    unit: CadenceUnit = CadenceUnit.AUTO
    count: float = 0.0


@dataclass(frozen=True)
class CheckpointSpec:
    """`[checkpoint]`: when to save, what to keep, what is best."""

    every: Every = field(default_factory=Every)
    keep: int = 3
    monitor: str | None = None  #: None: val_loss, else loss
    mode: Mode = Mode.AUTO
    best: str = "best.weights.h5"
    best_keep: int | None = None  #: of a series the so many best models; None: each that was the best so far
    archive: Every | None = None  #: kept for ever: the first checkpoint of each such period
    mirror: str | None = None  #: where committed checkpoints are copied to, as a URL


class Spare(StrEnum):
    """What waits beside a training, ready to take over from a worker that dies."""

    NONE = "none"
    WARM = "warm"  #: a process that has imported what the job imports
    HOT = "hot"  #: one that has run the script up to its `fit`, and has executed the training step


@dataclass(frozen=True)
class RestartSpec:
    """`[restart]`: how often, how fast, and after what never."""

    budget: int = 5
    backoff_min_s: float = 1.0
    backoff_max_s: float = 60.0
    fatal_exit_codes: tuple[int, ...] = ()  #: as 78 and 125: never again; goes before the other list
    retry_exit_codes: tuple[int, ...] = ()  #: as 75: to be tried again, and never charged
    spare: Spare = Spare.NONE


class Nan(StrEnum):
    """What follows a loss that is not finite."""

    IGNORE = "ignore"
    FAIL = "fail"
    ROLLBACK = "rollback"  #: on from the last good checkpoint, more slowly


@dataclass(frozen=True)
class LimitsSpec:
    """`[limits]`: how long things may take, how much they may use."""

    hang_s: float | None = None  #: None: learned from the job itself; math.inf: never
    startup_s: float = 600.0
    grace_s: float = 30.0
    wall_s: float | None = None
    memory_bytes: int | None = None
    nan: Nan = Nan.IGNORE
    nan_rollbacks: int = 3  #: how many times at most
    nan_learning_rate: float = 0.5  #: learning rates are multiplied by this at each rollback
    loss_max: float | None = None  #: a loss beyond it counts as not finite
    pids: int | None = 32768  #: processes and threads at a time, where there are control groups
    log_bytes: int | None = 64 * 1024 * 1024  #: of an attempt's log; None: as much as comes


@dataclass(frozen=True)
class ResourcesSpec:
    """`[resources]`: what an attempt occupies while it runs, and whether others may have it stopped."""

    cpus: float = 1.0
    gpus: float = 0.0  #: whole devices, or a share of one
    memory_bytes: int | None = None  #: None: as limits.memory; 0: none is reserved
    preemptible: bool | None = None  #: None: a script that has a checkpoint is, a command is not


@dataclass(frozen=True)
class IsolationSpec:
    """`[isolation]`: what an attempt is kept from."""

    write: tuple[str, ...] | None = None  #: besides its own folders the only ones it may write in; None: any


@dataclass(frozen=True)
class JobSpec:
    """A job as submitted. Exactly one of `entry` and `command` is set."""

    entry: str | None = "train.py"
    command: tuple[str, ...] | None = None
    python: str = "auto"
    args: tuple[str, ...] = ()
    priority: int = 0
    after: tuple[str, ...] = ()  #: jobs that must have succeeded before this one starts
    env: dict[str, str] = field(default_factory=dict)
    env_file: str | None = (
        None  #: more of it, secret: read when an attempt starts; relative to the job's folder
    )
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    restart: RestartSpec = field(default_factory=RestartSpec)
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    isolation: IsolationSpec = field(default_factory=IsolationSpec)
    seed: int | None = None  #: None: chosen once per job and recorded

    def __post_init__(self) -> None:
        """Share what other jobs want, too: of ten thousand, a plan looks at what is in the cache already."""
        for name in ("checkpoint", "restart", "limits", "resources", "isolation"):
            object.__setattr__(self, name, _shared(getattr(self, name)))


@lru_cache(maxsize=1024)
def _shared(part: T) -> T:
    """Return the first of all that are equal."""
    return part
