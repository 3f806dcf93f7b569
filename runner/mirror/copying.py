"""From a job's state to its mirror: what is committed is copied, what retention lets go is removed.

Promises:

- Only committed files are read, through a descriptor: one that is evicted while it is copied is copied whole.
- A local file is examined before it is sent; what does not verify is not mirrored, and that is said.
- A file counts as mirrored once the medium has given back what was sent. Nothing is removed there before.
- The files that a checkpoint needs (metrics, ends of fits) are there before it is.
- What was put aside here because of what it holds goes there, once what is good is there.

Limits: of what is not a step's checkpoint only marks of checkpoints that are no longer pinned are removed,
and models of a series of which this home keeps the best few.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from runner.core import retention
from runner.core.best import SUFFIXES
from runner.core.spec import CadenceUnit
from runner.errors import StorageError
from runner.mirror.account import Account
from runner.mirror.examine import Found, check_name, examine
from runner.mirror.medium import BadCopyError, Medium
from runner.storage import blocks, durable, mirrored
from runner.storage.mirrored import BEST, CHECKPOINTS, METRICS, Held


def pending(account: Account) -> list[str]:
    """List what is to be copied, in order."""
    names = mirrored.behind(account.paths, account.status)
    now, held = mirrored.local(account.paths), account.status.files
    grown = METRICS in now and (METRICS not in held or held[METRICS].stamp != now[METRICS])
    if grown and (names or not account.orders.active):
        names.append(METRICS)
    return sorted(names, key=_turn)


def _turn(name: str) -> tuple[int, int, str]:
    """Order files: what others need first, then the newest checkpoint first, a best model's record last."""
    step = mirrored.step_of(name)
    if name == METRICS:
        return 0, 0, name
    if step is not None:
        return 2, -step, name
    if name.startswith(f"{CHECKPOINTS}/"):
        return 1, 0, name
    return (4 if name == f"{BEST}/best.json" else 3), 0, name


def has_work(account: Account) -> bool:
    """Tell, without asking the mirror, whether it is behind, or holds more than it should."""
    if mirrored.rejected(account.paths, account.status):
        return True
    return _has_any(account) and bool(pending(account) or _surplus(account, set(account.status.files)))


def _has_any(account: Account) -> bool:
    """Tell whether there is anything here to copy from; where not, a fetch comes first, if anything does."""
    names = mirrored.local(account.paths)
    return any(mirrored.is_checkpoint(name) or name.endswith(SUFFIXES) for name in names)


def copy_all(account: Account, medium: Medium) -> None:
    """Bring the mirror up to date.

    Raises:
        MirrorError: the mirror failed, or is another's.
        OSError: this machine's disk failed.
        StorageError: a local file does not verify; the others were copied.
    """
    account.claim(medium)
    present = _compare(account, medium)
    problem: StorageError | None = None
    has_any = _has_any(account)
    for name in pending(account) if has_any else []:
        try:
            if _copy(account, medium, name):
                present.add(name)
        except StorageError as error:
            problem = error
    present -= drop_rejected(account, medium)
    if has_any:
        _unpin(account, medium, present)
        for name in _surplus(account, present):
            _remove(account, medium, name)
    if problem is not None:
        raise problem
    account.worked()


def _compare(account: Account, medium: Medium) -> set[str]:
    """List what the mirror has; forget what it was thought to have, and say so where it should have it."""
    sizes: dict[str, int] = {}
    medium.sweep("")
    for folder in (CHECKPOINTS, BEST):
        medium.sweep(folder)
        sizes |= {f"{folder}/{file}": size for file, size in medium.sizes(folder).items()}
    held = dict(account.status.files)
    for name, known in account.status.files.items():
        if name == METRICS or sizes.get(name) == known.size_bytes:
            continue
        del held[name]
        if name not in mirrored.local(account.paths):
            continue  # it was to go
        what = "is gone" if name not in sizes else f"has {sizes[name]} bytes, not {known.size_bytes}"
        account.tell("mirror-damaged", path=name, reason=f"{account.orders.place}/{name} {what}")
    strange = any(mirrored.is_checkpoint(name) and name not in held for name in sizes)
    account.set(replace(account.status, files=held, strange=strange))
    return {name for name in sizes if mirrored.belongs(name)}


def _copy(account: Account, medium: Medium, name: str) -> bool:
    """Copy one file; False where it has been evicted."""
    began_s = time.monotonic()
    try:
        fd = os.open(account.paths.dir / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        stamp = mirrored.stamp_of(os.fstat(fd))
        if name == METRICS:
            fd = _kept_still(fd)
        sent = examine(_pieces(fd), name)
        check_name(sent.info, mirrored.step_of(name), name)
        medium.put(name, fd, lambda pieces: _check(pieces, name, sent))
    finally:
        os.close(fd)
    epoch = sent.info.epoch if sent.info is not None else None
    if sent.info is not None or name.endswith(SUFFIXES):
        account.tell(
            "mirrored",
            path=name,
            step=sent.info.step if sent.info is not None else None,
            size_bytes=sent.size_bytes,
            took_s=round(time.monotonic() - began_s, 3),
        )
    held = {**account.status.files, name: Held(sent.size_bytes, stamp, epoch)}
    account.set(replace(account.status, files=held))
    return True


def _pieces(fd: int) -> Iterator[memoryview]:
    return blocks.read(fd, 0, os.fstat(fd).st_size)


def _kept_still(fd: int) -> int:
    """Return a copy of a file that is being written, in memory; closes it."""
    try:
        copy = os.memfd_create("mirror")
        for piece in _pieces(fd):
            durable.write_all(copy, piece)
        return copy
    finally:
        os.close(fd)


def _check(pieces: Iterator[bytes | memoryview], name: str, sent: Found) -> None:
    """Compare what the medium gives back with what was sent."""
    try:
        back = examine(pieces, name)
    except StorageError as error:
        raise BadCopyError(f"what the mirror gives back is damaged: {error}") from None
    if (back.digest, back.size_bytes) != (sent.digest, sent.size_bytes):
        raise BadCopyError(f"{name}: what the mirror gives back is not what was sent")


def _unpin(account: Account, medium: Medium, present: set[str]) -> None:
    """Remove the marks of checkpoints that are no longer pinned here."""
    local = mirrored.local(account.paths)
    for name in sorted(present):
        if mirrored.pinned_step(name) is not None and name not in local:
            _remove(account, medium, name)
            present.discard(name)


def _surplus(account: Account, present: set[str]) -> list[str]:
    """List what retention lets go of what the mirror has; nothing where none of it is known to be good.

    What this home still has stays there too: it would only be copied again.
    """
    held, here = account.status.files, mirrored.local(account.paths)
    steps = {step: name for name in present if (step := mirrored.step_of(name)) is not None}
    verified = [step for step, name in steps.items() if name in held]
    gone = []
    if verified:
        kept = retention.Kept(
            verified=max(verified),
            pinned=frozenset(step for name in present if (step := mirrored.pinned_step(name)) is not None),
            archived=_archived(account, steps),
            sources=frozenset(step for name in here if (step := mirrored.step_of(name)) is not None),
        )
        gone = [steps[step] for step in retention.evicted(steps, account.orders.keep, kept)]
    models = {name for name in here if _is_best(name)}
    if account.orders.thins_best and models & held.keys():
        gone += sorted(name for name in present & held.keys() if _is_best(name) and name not in models)
    return gone


def _is_best(name: str) -> bool:
    return name.startswith(f"{BEST}/") and name.endswith(SUFFIXES)


def _archived(account: Account, steps: dict[int, str]) -> frozenset[int]:
    """Return the steps that are kept for ever; one of which the place is not known counts as such."""
    period, places, unknown = account.orders.archive, dict[int, float](), set[int]()
    if period is None:
        return frozenset()
    for step, name in steps.items():
        held = account.status.files.get(name)
        if period.unit is CadenceUnit.STEPS:
            places[step] = step
        elif held is None or held.epoch is None:
            unknown.add(step)
        else:
            places[step] = held.epoch if period.unit is CadenceUnit.EPOCHS else held.stamp[1] / 1e9
    return retention.archived(places, period.count) | unknown


def drop_rejected(account: Account, medium: Medium) -> set[str]:
    """Remove the copies of what was put aside here because of what it holds; return their names.

    Raises:
        MirrorError: the mirror failed.
    """
    names = mirrored.rejected(account.paths, account.status)
    for name in names:
        _remove(account, medium, name)
    return set(names)


def _remove(account: Account, medium: Medium, name: str) -> None:
    """Remove a file from the mirror; where we die before that is recorded, the next one finds it gone."""
    medium.remove(name)
    if name in account.status.files:
        files = {held: what for held, what in account.status.files.items() if held != name}
        account.set(replace(account.status, files=files))
