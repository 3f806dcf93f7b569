"""Keeping the best model: `best/FILE`, and beside it `best/best.json`, which says which it is and by what.

Promises:

- A worse model never replaces a better one, also after a resume from an older checkpoint: the floor is what
  lies on the disk, and it counts only while its file verifies.
- The model's file is durable and verified before `best.json` names it; "best" is reported after both (P3).
- Killed between the two: the model's file itself says by what it is best (in its state, or in the zip's
  comment), and the next start takes it up.

Limits: writing a best model pauses training, as Keras's own callback does. What fails is reported as
"save-failed" and does not stop training; the model is then saved at the next improvement over the old floor.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core import best as rules
from runner.core.best import Best, Monitor, Refusal
from runner.core.spec import CheckpointSpec, Mode
from runner.errors import BadCheckpointError, StorageError
from runner.storage import checkpoint, digests, durable
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training import whole
from runner.training.identity import best_from, identity, identity_in, said_by
from runner.training.quarantine import Report, set_aside
from runner.training.report import now_text

#: The identity of the best model, beside it.
RECORD = "best.json"
VERSION = 1

_RECORD_BYTES_MAX = 65536
# A file or a folder being written, or a folder being removed.
_TEMPORARY = re.compile(r"\..+\.(\d+-)?[0-9a-f]{8}\.tmp")
# What Keras may raise while it saves a whole model: layers that cannot be serialized, and the disk's errors.
_FAILURES = (
    OSError,
    StorageError,
    MemoryError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    KeyError,
)


#: Makes a durable, verified file of a snapshot.
Write = Callable[[Path, Snapshot], Any]


@dataclass(frozen=True)
class _Committed:
    best: Best
    digest: str  #: of the model, see `_digest`


class BestKeeper:
    """Judges each epoch's metrics, and keeps the best model under the job's template."""

    def __init__(
        self, paths: JobPaths, spec: CheckpointSpec, report: Report, write: Write | None = None
    ) -> None:
        """Begin, with what the disk has.

        Args:
            paths: the job's.
            spec: how the best is told and named.
            report: takes facts.
            write: makes a durable, verified file of a snapshot; by default here.
        """
        self._write_weights = write or _write
        self._paths = paths
        self._spec = spec
        self._report = report
        self._warned: set[str] = set()
        self._best: Best | None = None
        self._unsettled: tuple[Best, Best | None] | None = None  # saved, but best.json could not be written
        self._sweep()
        self._reconcile()

    @property
    def best(self) -> Best | None:
        """The best model so far; its file is on the disk."""
        return self._best

    def consider(
        self,
        epoch: int,
        step: int,
        logs: Mapping[str, Any],
        make_snapshot: Callable[[], Snapshot],
        save_whole: Callable[[Path], None],
    ) -> str | None:
        """Judge an epoch; save the model if it is the best, and return the line to announce it with.

        Args:
            epoch: counted from 0.
            step: completed steps.
            logs: what was reported at the epoch's end.
            make_snapshot: takes the snapshot; called only when the model is to be saved.
            save_whole: saves the whole model at the path it gets (Keras's `model.save`); for `*.keras`.
        """
        self._settle()
        values = _numbers(logs)
        monitor = rules.choose(self._spec.monitor, self._spec.mode, values, self._best)
        if not isinstance(monitor, Monitor):
            self._warn(monitor)
            return None
        value = values[monitor.metric]
        is_best = rules.improves(monitor, value, self._best)
        if not is_best and not self._ranks(monitor, value):
            return None
        name = rules.file_name(self._spec.best, epoch, step, values)
        if isinstance(name, Refusal):
            self._warn(name)
            return None
        found = Best(monitor.metric, monitor.mode, value, epoch, step, name)
        if is_best:
            message = self._save(found, make_snapshot, save_whole)
        else:
            message = self._save_runner_up(found, make_snapshot, save_whole)
        if message:
            self._thin_out(monitor)
        return message

    def take(self, snapshot: Snapshot) -> bool:
        """Save a model that was found the best and not saved before; its state says by what (`identity`).

        Returns: whether the disk has it now, or a better one.

        Raises:
            ValueError, TypeError, KeyError: its state does not say it.
        """
        found = best_from(snapshot.state["best"])
        if rules.improves(found.monitor, found.value, self._best):
            return self._save(found, lambda: snapshot, _never) is not None
        return True

    def _save(
        self, found: Best, make_snapshot: Callable[[], Snapshot], save_whole: Callable[[Path], None]
    ) -> str | None:
        previous = self._best
        try:
            self._write(found, make_snapshot, save_whole)
            self._best, self._unsettled = found, (found, previous)  # on the disk: from now on it is the floor
            self._commit(found, previous)
            self._unsettled = None
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            self._tell({"event": "save-failed", "path": self._relative(found.file), "reason": reason})
            return None
        where = self._relative(found.file)
        return rules.announcement(found.monitor, found.value, previous, found.epoch, where)

    def _write(
        self, found: Best, make_snapshot: Callable[[], Snapshot], save_whole: Callable[[Path], None]
    ) -> None:
        path = self._paths.best / found.file
        durable.make_folder(self._paths.best, self._paths.dir)
        snapshot = make_snapshot()
        if found.file.endswith(whole.SUFFIX):
            whole.save(path, snapshot, save_whole, comment=identity(found))
        else:
            if snapshot.state.get("best") != identity(found):
                snapshot = replace(snapshot, state={**snapshot.state, "best": identity(found)})
            self._write_weights(path, snapshot)

    # The others of a series, where the best few are to be kept: their files say by what.

    def _ranks(self, monitor: Monitor, value: float) -> bool:
        """Tell whether a model that is not the best is to be kept besides it."""
        keep = self._spec.best_keep
        return keep is not None and rules.ranks(monitor, value, self._models(monitor), keep)

    def _models(self, monitor: Monitor) -> list[Best]:
        found = [one for path in self._files() if (one := identity_in(path)) is not None]
        return [one for one in found if one.monitor == monitor]

    def _save_runner_up(
        self, found: Best, make_snapshot: Callable[[], Snapshot], save_whole: Callable[[Path], None]
    ) -> str | None:
        where = self._relative(found.file)
        try:
            self._write(found, make_snapshot, save_whole)
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            self._tell({"event": "save-failed", "path": where, "reason": reason})
            return None
        told = {key: getattr(found, key) for key in ("step", "epoch", "metric", "value")}
        self._tell({"event": "runner-up", "path": where, **told})
        return rules.runner_up(found, where)

    def _thin_out(self, monitor: Monitor) -> None:
        """Remove the models of a series that are no longer among the best few."""
        if self._spec.best_keep is not None:
            for one in rules.surplus(self._models(monitor), self._spec.best_keep):
                if self._best is None or one.file != self._best.file:
                    with contextlib.suppress(OSError):
                        durable.remove(self._paths.best / one.file)

    def _settle(self) -> None:
        """Record a saved model whose record could not be written before."""
        if self._unsettled is not None:
            with contextlib.suppress(OSError):
                self._commit(*self._unsettled)
                self._unsettled = None

    def _commit(self, best: Best, previous: Best | None) -> None:
        """Make `best` the recorded one, and report it."""
        path = self._paths.best / best.file
        record = {
            "version": VERSION,
            **identity(best),
            "digest": _digest(path),
            "size_bytes": path.stat().st_size,
        }
        durable.write(self._paths.best / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        comparable = previous is not None and previous.monitor == best.monitor
        self._tell(
            {
                "event": "best",
                "path": self._relative(best.file),
                "step": best.step,
                "epoch": best.epoch,
                "metric": best.metric,
                "value": best.value,
                "previous": previous.value if comparable and previous is not None else None,
            }
        )

    # What a start finds on the disk.

    def _reconcile(self) -> None:
        """Find the best model that is really there; a better one that was not recorded yet is taken up."""
        committed = self._recorded()
        self._best = committed.best if committed is not None and self._intact(committed) else None
        for candidate in self._unrecorded():
            verified = self._verified(candidate)
            if verified is None:
                continue
            previous, self._best = self._best, verified
            self._unsettled = (verified, previous)
            self._settle()
            return

    def _recorded(self) -> _Committed | None:
        path = self._paths.best / RECORD
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(_RECORD_BYTES_MAX))
            return _Committed(best_from(raw), str(raw["digest"] if "digest" in raw else raw["sha256"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            set_aside(self._paths, path, f"{path}: not a record of a best model: {error}", self._tell)
            return None
        except OSError as error:
            self._pass_over(path, error)
            return None

    def _intact(self, committed: _Committed) -> bool:
        path, record = self._paths.best / committed.best.file, self._paths.best / RECORD
        try:
            if committed.digest in _verified_digests(path):
                said = said_by(path)
                if said is None or said == committed.best:
                    return True
                reason = f"{record}: says {committed.best} where the model says {said}; the model is believed"
                set_aside(self._paths, record, reason, self._tell)
                return False
        except BadCheckpointError:
            pass
        except FileNotFoundError:
            self._tell(
                {"event": "warning", "message": f"{path} is gone; the next best model takes its place"}
            )
            return False
        except OSError as error:
            self._pass_over(path, error)
            return False
        claimed = identity_in(path)
        if claimed is None or (path.name.endswith(whole.SUFFIX) and claimed == committed.best):
            reason = f"{path}: its bytes do not match the digest in {RECORD}; delete it or restore a copy"
            set_aside(self._paths, path, reason, self._tell)
        return False

    def _unrecorded(self) -> list[Best]:
        """List the models that claim to be better than the recorded one, the best first."""
        found = [identity for path in self._files() if (identity := identity_in(path)) is not None]
        if self._best is not None:
            best = self._best
            found = [one for one in found if one.monitor == best.monitor]
            found = [one for one in found if rules.improves(best.monitor, one.value, best)]
        wanted = self._spec.monitor or (
            "val_loss" if any(one.metric == "val_loss" for one in found) else None
        )
        if wanted is not None:
            found = [one for one in found if one.metric == wanted]
        return sorted(found, key=lambda one: (-one.value if one.mode is Mode.MAX else one.value, one.step))

    def _files(self) -> Iterable[Path]:
        if not self._paths.best.is_dir():
            return []
        return [p for p in sorted(self._paths.best.iterdir()) if p.name.endswith(rules.SUFFIXES)]

    def _verified(self, claimed: Best) -> Best | None:
        path = self._paths.best / claimed.file
        try:
            if claimed.file.endswith(whole.SUFFIX):
                whole.verify(path)
                return claimed
            return replace(best_from(checkpoint.read(path).state["best"]), file=claimed.file)
        except (BadCheckpointError, ValueError, TypeError, KeyError) as error:
            set_aside(self._paths, path, str(error), self._tell)
        except OSError as error:
            self._pass_over(path, error)
        return None

    def _pass_over(self, path: Path, error: OSError) -> None:
        """Report what the disk does not give."""
        message = f"{path} cannot be read and is passed over: {error}"
        self._tell({"event": "warning", "message": message})

    def _sweep(self) -> None:
        """Remove what a killed writer left."""
        with contextlib.suppress(OSError):
            for path in list(self._paths.best.iterdir()):
                if not _TEMPORARY.fullmatch(path.name):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _warn(self, refusal: Refusal | None) -> None:
        """Report a refusal, once."""
        if refusal is not None and refusal.reason not in self._warned:
            self._warned.add(refusal.reason)
            self._tell({"event": "warning", "message": refusal.reason})

    def _relative(self, name: str) -> str:
        return str((self._paths.best / name).relative_to(self._paths.dir))

    def _tell(self, fact: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._report(fact)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Take the plain numbers out of an epoch's logs."""
    numbers = {}
    for name, value in logs.items():
        with contextlib.suppress(TypeError, ValueError):
            numbers[str(name)] = float(value)
    return numbers


def _digest(path: Path) -> str:
    """Return the digest of a model that was just written: of weights what the header names."""
    if path.name.endswith(whole.SUFFIX):
        return digests.of_file(path, "sha256")
    return checkpoint.describe(path).digest


def _verified_digests(path: Path) -> Iterator[str]:
    """Yield the same for a file that was found, once it is known to be true; and as older records have it."""
    if not path.name.endswith(whole.SUFFIX):
        yield checkpoint.verify(path, hdf5=False).digest
    whole_file = digests.of_file(path, "sha256")
    yield whole_file
    yield whole_file.removeprefix("sha256:")


def _write(path: Path, snapshot: Snapshot) -> None:
    checkpoint.write(path, snapshot, created=now_text())


def _never(_path: Path) -> None:
    raise AssertionError("only whole models are saved by Keras")
