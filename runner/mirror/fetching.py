"""From a mirror to a job without checkpoints: the newest one that verifies, and what it needs.

Promises:

- The mirror has to be this job's, and becomes this home's: what else used it keeps off from then on.
- What is fetched appears here whole and verified, under its own name. The status says that a fetch has begun
  until all of it is here, so that one that was killed is done again; the checkpoint comes last.
- Of the checkpoints the newest good one is taken; a bad one is passed over and told, and stays where it is.
- A mirror that cannot be read is never taken for an empty one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core.best import SUFFIXES
from runner.core.mirroring import Identity
from runner.errors import BadCheckpointError, StorageError
from runner.mirror.account import Account
from runner.mirror.copying import drop_rejected
from runner.mirror.examine import check_name, examine
from runner.mirror.medium import Medium
from runner.storage import blocks, durable, mirrored
from runner.storage.mirrored import BEST, CHECKPOINTS, METRICS, Held
from runner.storage.userblock import Info

_RECORD = f"{BEST}/best.json"
_RECORD_BYTES_MAX = 65536


@dataclass(frozen=True)
class Fetched:
    """A file that is here now."""

    name: str
    size_bytes: int
    info: Info | None


def fetch(account: Account, medium: Medium) -> Fetched | None:
    """Fetch what there is; return the checkpoint to go on from, None where there is none.

    Raises:
        MirrorError: the mirror failed, or is another's.
        OSError: this machine's disk failed.
    """
    began_s = time.monotonic()
    whose = account.claim(medium, anew=not account.status.fetching, to_fetch=True)
    account.set(replace(account.status, fetching=True))
    drop_rejected(account, medium)
    there = [
        *(f"{CHECKPOINTS}/{file}" for file in medium.sizes(CHECKPOINTS)),
        *(f"{BEST}/{file}" for file in medium.sizes(BEST)),
    ]
    steps = sorted((name for name in there if mirrored.step_of(name) is not None), reverse=True)
    others = [name for name in (*there, METRICS) if mirrored.belongs(name) and name not in steps]
    fetched = [found for name in others if (found := _try(account, medium, name))]
    newest = next((found for name in steps if (found := _try(account, medium, name))), None)
    found = newest or max(filter(_is_end, fetched), key=_step, default=None)
    if whose is not None and (found is not None or fetched):
        _tell(account, found, whose, [*fetched, *filter(None, [newest])], began_s)
    account.set(replace(account.status, fetching=False, strange=False))
    account.worked()
    return found


def _is_end(found: Fetched) -> bool:
    return mirrored.is_checkpoint(found.name)


def _step(found: Fetched) -> int:
    return found.info.step if found.info is not None else 0


def _tell(
    account: Account, found: Fetched | None, whose: Identity, files: list[Fetched], began_s: float
) -> None:
    """Report what was fetched, and what makes the job the one that the mirror knows."""
    place = {}
    if found is not None and found.info is not None:
        place = {"path": found.name, "step": found.info.step, "epoch": found.info.epoch}
    best = _best(account.paths.dir / _RECORD)
    account.tell(
        "restored",
        **place,
        seed=whose.seed,
        threads=whose.threads,
        **({"best": best} if best else {}),
        files=len(files),
        size_bytes=sum(one.size_bytes for one in files),
        took_s=round(time.monotonic() - began_s, 3),
        mirror=account.orders.place,
    )


def _try(account: Account, medium: Medium, name: str) -> Fetched | None:
    """Fetch one file; one that is bad is passed over, and told."""
    try:
        return _fetch(account, medium, name)
    except FileNotFoundError:
        return None  # there are no metrics yet, or it was removed there just now
    except StorageError as error:
        account.tell("warning", message=f"{account.orders.place}/{name} is passed over: {error}")
        return None


def _fetch(account: Account, medium: Medium, name: str) -> Fetched:
    path = account.paths.dir / name
    durable.make_folder(path.parent, account.paths.dir)
    infos: list[Info | None] = []
    with durable.replacing(path, verify=lambda temporary: infos.append(_verify(temporary, name))) as fd:
        for piece in medium.read(name):
            durable.write_all(fd, piece)
    status = path.lstat()
    epoch = infos[0].epoch if infos[0] is not None else None
    held = Held(status.st_size, mirrored.stamp_of(status), epoch)
    account.set(replace(account.status, files={**account.status.files, name: held}))
    return Fetched(name, status.st_size, infos[0])


def _verify(path: Path, name: str) -> Info | None:
    """Examine a file that was fetched, as far as its kind lets.

    Raises:
        BadCheckpointError: it is damaged.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = examine(blocks.read(fd, 0, os.fstat(fd).st_size), name).info
        check_name(info, mirrored.step_of(name), name)
        if name.endswith(".json"):
            json.loads(path.read_bytes())
        if name.endswith(SUFFIXES[1]):
            _verify_whole(path)
    except ValueError as error:
        raise BadCheckpointError(f"{name}: not what it should be: {error}") from None
    finally:
        os.close(fd)
    return info


def _verify_whole(path: Path) -> None:
    """Read a whole model's file to its end; raises ValueError where a member does not match its CRC."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from None
    if broken is not None:
        raise ValueError(f"{broken} does not match its CRC")


def _best(record: Path) -> dict[str, Any] | None:
    """Return what the best model's record says, for the job's; None where it says nothing."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with record.open("rb") as file:
            value = json.loads(file.read(_RECORD_BYTES_MAX))
        if (record.parent / value["file"]).is_file():
            return {"path": f"{BEST}/{value['file']}"} | {
                name: value[name] for name in ("step", "epoch", "metric", "value")
            }
    return None
