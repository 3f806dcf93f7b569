"""One job and its mirror, for as long as a process works on them: the lock, the status, the facts.

The status is durable before anything is built upon it; a fact is written once it is true. That a mirror fails
is told once, and so is that it works again, however many processes try in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.core import mirroring
from runner.core.mirroring import Identity
from runner.core.spec import CadenceUnit, Every
from runner.errors import ForeignMirrorError, MirrorError, UnreadableRecordError
from runner.mirror.medium import BadCopyError, Medium
from runner.storage import durable, jsontext, lock, mirrored, records
from runner.storage.layout import Home, JobPaths
from runner.storage.mirrored import Status

IDENTITY = "identity.json"
_IDENTITY_BYTES_MAX = 65536
#: So often a small file is published at most, where its temporary is swept away.
_PUTS_MAX = 5


@dataclass(frozen=True)
class Orders:
    """What a job's record says of its mirror."""

    name: str
    url: str
    keep: int
    archive: Every | None
    thins_best: bool  #: of a series of best models some go again
    seed: int
    threads: int
    active: bool  #: an attempt may be writing
    work: str  #: see `core.mirroring`

    @property
    def place(self) -> str:
        """Where the job's files lie."""
        return mirrored.place(self.url, self.name)


def orders(home: Home, name: str) -> Orders | None:
    """Read them; None where the job has no mirror.

    Raises:
        OSError, UnreadableRecordError: there is no record, or it cannot be read.
    """
    record = records.load_json(home.job(name).record)
    try:
        spec = record["spec"]
        url = spec["checkpoint"].get("mirror")
        if not url:
            return None
        return Orders(
            name=name,
            url=str(url),
            keep=int(spec["checkpoint"]["keep"]),
            archive=_every(spec["checkpoint"].get("archive")),
            thins_best=spec["checkpoint"].get("best_keep") is not None,
            seed=int(record["seed"]),
            threads=int(record["threads"]),
            active=record["state"] in ("running", "stopping"),
            work=_work({**spec, "source": record.get("source")}, home.folder(name)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableRecordError(f"{home.job(name).record}: cannot be understood ({error!r})") from None


def _every(value: dict[str, Any] | None) -> Every | None:
    return None if value is None else Every(CadenceUnit(value["unit"]), float(value["count"]))


def _work(spec: dict[str, Any], folder: Path) -> str:
    """Digest what the job runs: its settings as far as they matter, and the text of its script."""
    digest = hashlib.sha256(mirroring.work_of(spec))
    if spec.get("entry"):
        with contextlib.suppress(OSError):  # a script that cannot be read will not run either
            digest.update((folder / spec["entry"]).read_bytes())
    return f"sha256:{digest.hexdigest()}"


class Account:
    """A job's mirror, held by this process."""

    def __init__(self, paths: JobPaths, orders: Orders, facts: Path) -> None:
        self.paths = paths
        self.orders = orders
        status = mirrored.load(paths)
        self.status = status if status.place == orders.place else Status(place=orders.place)
        self._facts = facts

    @property
    def is_in_use(self) -> bool:
        """Whether the mirror is known to be this home's."""
        return bool(self.status.owner)

    def set(self, status: Status) -> None:
        """Make a new status the present one, durably."""
        if status != self.status:
            mirrored.save(self.paths, status)
            self.status = status

    def tell(self, event: str, **fields: Any) -> None:
        """Report a fact."""
        durable.append(self._facts, jsontext.encode({"event": event, **fields}) + b"\n")

    def claim(self, medium: Medium, *, anew: bool = False, to_fetch: bool = False) -> Identity | None:
        """Make sure that the mirror is this home's; return whose it was, None where it was nobody's.

        Args:
            medium: the job's place on it.
            anew: give it a new owner, so that a home that used it before keeps off.
            to_fetch: this home goes on from what it holds, as the one that it knows.

        Raises:
            ForeignMirrorError: it is another's.
            MirrorError: it cannot be told.
        """
        orders, found = self.orders, identity(medium, self.orders.place)
        why = mirroring.refusal(self.status.owner, orders.work, found, None if to_fetch else orders.seed)
        if why:
            raise ForeignMirrorError(
                f"{orders.place}: {why}; name another mirror or job, or remove that folder, or, to use what "
                f"it holds all the same, only its {IDENTITY}"
            )
        owner = self.status.owner
        if anew or not owner:
            owner = secrets.token_hex(8)
        mine = Identity(orders.name, orders.work, owner, orders.seed, orders.threads)
        if to_fetch and found is not None:
            mine = replace(mine, seed=found.seed, threads=found.threads)
        if mine != found:
            put_bytes(medium, IDENTITY, json.dumps({"version": mirroring.VERSION, **asdict(mine)}).encode())
        strange = self.status.strange or (found is not None and found.owner != self.status.owner)
        self.set(replace(self.status, owner=owner, strange=strange))
        return found

    def failed(self, error: Exception) -> None:
        """Take in that the mirror could not be used; the first of a spell is told."""
        reason = " ".join(str(error).split()) or type(error).__name__
        before = self.status
        if before.failing_since is None:
            self.tell("mirror-failed", reason=reason)
        since = before.failing_since or now()
        self.set(replace(before, error=reason, failing_since=since))

    def worked(self) -> None:
        """Take in that the mirror is as it should be."""
        if self.status.failing_since is not None:
            self.tell("mirror-recovered", failing_since=self.status.failing_since)
            self.set(replace(self.status, error="", failing_since=None))


@contextlib.contextmanager
def held(paths: JobPaths, *, wait: bool) -> Iterator[bool]:
    """Hold a job's mirror; yield False where another process does, unless this one is to wait for it."""
    mirrored.make_folder(paths)
    fd = lock.try_lock(paths.mirror_lock)
    if fd is None and wait:
        fd = os.open(paths.mirror_lock, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def identity(medium: Medium, place: str) -> Identity | None:
    """Read what a mirror says of itself; None where it says nothing.

    Raises:
        MirrorError: it cannot be read or understood.
    """
    text = b""
    try:
        for piece in medium.read(IDENTITY):
            text += piece
            if len(text) > _IDENTITY_BYTES_MAX:
                break
        return mirroring.parse(json.loads(text))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MirrorError(
            f"{place}/{IDENTITY}: cannot be understood ({error!r}); remove it or restore it"
        ) from None


def put_bytes(medium: Medium, name: str, data: bytes) -> None:
    """Publish a small file; again where its temporary is gone: another home that was still at work swept it.

    Raises:
        MirrorError: the mirror failed.
        FileNotFoundError: it was gone each time.
    """
    fd = os.memfd_create("mirror")
    try:
        durable.write_all(fd, data)

        def check(pieces: Iterator[bytes | memoryview]) -> None:
            if b"".join(bytes(piece) for piece in pieces) != data:
                raise BadCopyError(f"{name}: what the mirror gives back is not what was sent")

        for turn in range(1, _PUTS_MAX + 1):
            try:
                medium.put(name, fd, check)
                break
            except FileNotFoundError:
                if turn == _PUTS_MAX:
                    raise
    finally:
        os.close(fd)


def now() -> str:
    """Return the time as the records spell it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
