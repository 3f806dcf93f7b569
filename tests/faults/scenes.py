"""What the campaign disturbs: commits through the product's own doors, and how each is judged afterwards.

A scene is prepared once, acted out in a child any number of times, each time upon a copy, and judged by
starting anew as a worker does. It tells what the product tells; the judge holds the product to it:

- what is found is the old or the new, bit by bit, and nothing was torn: nothing is quarantined at the start;
- what was told to be saved is there (P3), also where the child was killed, or the power cut, right after;
- nobody else's file has gone or changed, and what a killed writer left half-done is swept.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from runner.core.spec import CheckpointSpec, Mode
from runner.errors import StorageError
from runner.storage import blocks, checkpoint, memory
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.storage.slots import Kind, Slots
from runner.training import keeper, launch, whole
from runner.training.best import BestKeeper
from runner.training.report import Facts
from runner.training.saver import Saver
from tests.storage.snapshots import CREATED, assert_same, small

Tell = Callable[[dict[str, Any]], None]
#: What an act may be told of: everything else is a crash.
TOLD_OF = (OSError, StorageError, MemoryError)
OLD, NEW = 10, 20
SPEC = CheckpointSpec(keep=2, monitor="val_loss", mode=Mode.MIN)


@functools.cache
def large(step: int) -> Snapshot:
    """A snapshot whose file passes the page cache by, its end within a block; the older ones are small."""
    if step != NEW:
        return small(step)
    size = blocks.DIRECT_BYTES_MIN + 12_345
    filling = np.random.default_rng(step).integers(256, size=size, dtype=np.uint8)
    return replace(small(step), arrays={**small(step).arrays, "variables/2": filling})


@dataclass
class Run:
    """What one disturbed act has told, and how it ended."""

    told: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""  #: "returned", "raised", "killed" or "died (CODE)"
    folder: Path = Path()
    disturbed: bool = True
    before: dict[str, str] = field(default_factory=dict)  #: digests of the files that were there

    def told_of(self, event: str) -> list[dict[str, Any]]:
        return [fact for fact in self.told if fact["event"] == event]

    @property
    def returned(self) -> bool:
        return self.ended == "returned"


class Scene:
    """One commit; the simplest is a checkpoint under a new name."""

    name = "write a checkpoint"
    retries = False  #: whether one failure alone must end well
    snapshot: Callable[[int], Snapshot] = staticmethod(small)
    #: Beginnings of the names of files that were there and may go, or change, when all goes well.
    may_go: tuple[str, ...] = ()
    #: Whether its files' plans are known already, as they are from the second save on.
    known = False

    def prepare(self, folder: Path) -> None:
        """Make the state folder that the act finds."""
        paths = JobPaths(folder)
        paths.checkpoints.mkdir(parents=True)
        checkpoint.write(paths.checkpoint(OLD), self.snapshot(OLD), created=CREATED)
        (folder / "bystander").write_text("not ours")

    def before(self, folder: Path) -> None:
        """Be called before each act, in the campaign's process."""

    def act(self, folder: Path, tell: Tell) -> None:
        """Commit, in the child; raise what it is told of."""
        checkpoint.write(JobPaths(folder).checkpoint(NEW), self.snapshot(NEW), created=CREATED)
        tell({"event": "checkpoint", "step": NEW})

    def after(self) -> list[dict[str, Any]]:
        """Return what was told on other ways, in the campaign's process."""
        return []

    def judge(self, run: Run) -> Iterator[str]:
        """Yield what is wrong with what the act has left and told."""
        if not run.disturbed and not run.returned:
            yield f"undisturbed, it {run.ended}"
        yield from self.others(run)
        facts: list[dict[str, Any]] = []
        yield from self.found(run, facts)
        for fact in facts:
            if fact["event"] in {"quarantined", "warning"}:
                yield f"torn or unreadable: {fact}"
        yield from leftovers(run.folder)

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        """Start as a worker does, and yield what is wrong with what it finds."""
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        if step not in {OLD, NEW}:
            yield f"step {step} was found"
        if step != NEW and (run.returned or run.told_of("checkpoint")):
            yield f"it was told to be saved, but step {step} was found"

    def others(self, run: Run) -> Iterator[str]:
        """Yield which files of before are gone or changed that should not be."""
        now = digests(run.folder)
        for name, digest in run.before.items():
            if not name.startswith(self.may_go) and now.get(name) != digest:
                yield f"{name} is {'changed' if name in now else 'gone'}"


def newest(folder: Path, facts: list[dict[str, Any]], expected: Callable[[int], Snapshot]) -> Any:
    """Start as a worker does; return the step that it resumes from (0: none), and what is wrong with it."""
    try:
        latest = Saver(JobPaths(folder), SPEC, facts.append).latest()
    except StorageError as error:
        return 0, [f"nothing can be read: {error}"]
    if latest is None:
        return 0, []
    path, snapshot = latest
    try:
        assert_same(snapshot, expected(snapshot.step))
        checkpoint.verify(path)
    except (AssertionError, StorageError) as error:
        return snapshot.step, [f"{path.name} was loaded with other contents: {error}"]
    return snapshot.step, []


def leftovers(folder: Path) -> Iterator[str]:
    """Yield the temporary files that outlived a start."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".tmp"):
            yield f"left behind after the next start: {path.relative_to(folder)}"


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of each file in a folder, by its place."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Replace(Scene):
    """The file is there already, with other contents."""

    name = "replace a checkpoint"
    known = True
    may_go = ("checkpoints/step-000000000020",)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        older = replace(self.snapshot(NEW), state={"older": True})
        checkpoint.write(JobPaths(folder).checkpoint(NEW), older, created=CREATED)

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        latest = Saver(JobPaths(run.folder), SPEC, facts.append).latest()
        if latest is None or latest[1].step != NEW:
            yield "the file that was to be replaced is lost"
            return
        is_new = latest[1].state != {"older": True}
        if is_new:
            assert_same(latest[1], self.snapshot(NEW))
        if (run.returned or run.told_of("checkpoint")) and not is_new:
            yield "it was told to be replaced, and was not"


class Save(Scene):
    """Save, evict what the retention lets go; one is pinned."""

    name = "save and evict"
    may_go = ("checkpoints/step-000000000005",)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        paths = JobPaths(folder)
        for step in (2, 5):
            checkpoint.write(paths.checkpoint(step), small(step), created=CREATED)
        paths.pin(2).touch()

    def act(self, folder: Path, tell: Tell) -> None:
        saver = Saver(JobPaths(folder), SPEC, tell)
        saver.latest()  # as a worker does: what it knows to be good it does not give up for room
        saver.save_now(self.snapshot(NEW))

    def others(self, run: Run) -> Iterator[str]:
        yield from super().others(run)
        there = JobPaths(run.folder).checkpoint(5).exists()
        pruned = run.told_of("pruned")  # to make room
        if not there and not pruned and not JobPaths(run.folder).checkpoint(NEW).exists():
            yield "a checkpoint went before a newer one was there"


class SaveLarge(Save):
    """The same with a file that is written past the page cache."""

    name = "save a large one"
    known = True
    snapshot = staticmethod(large)


class WriteLarge(Scene):
    """The same without a saver, which looks for room first."""

    name = "write a large one"
    known = True
    snapshot = staticmethod(large)


class SaveAgain(Save):
    """As training does: a save that failed is tried again."""

    name = "save, failed, again"
    known = True
    retries = True

    def act(self, folder: Path, tell: Tell) -> None:
        saver = Saver(JobPaths(folder), SPEC, tell)
        try:
            saver.latest()
        except TOLD_OF:
            saver.latest()
        try:
            saver.save_now(self.snapshot(NEW))
        except TOLD_OF:
            saver.save_now(self.snapshot(NEW))


class First(Scene):
    """The first checkpoint of a job: the folder comes into being, too."""

    name = "save the first"
    known = True

    def prepare(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "bystander").write_text("not ours")

    def act(self, folder: Path, tell: Tell) -> None:
        Saver(JobPaths(folder), SPEC, tell).save_now(self.snapshot(NEW))

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        if step not in {0, NEW}:
            yield f"step {step} was found"
        if step != NEW and (run.returned or run.told_of("checkpoint")):
            yield "it was told to be saved, and is not there"


class EndOfFit(Scene):
    """What is kept of the end of a fit, beside the checkpoints."""

    name = "the end of a fit"
    known = True

    def act(self, folder: Path, tell: Tell) -> None:
        checkpoint.write(JobPaths(folder).fit(0), self.snapshot(NEW), created=CREATED)
        tell({"event": "fit"})

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        if step != OLD:
            yield f"step {step} was found"
        path = JobPaths(run.folder).fit(0)
        if path.exists():
            assert_same(checkpoint.read(path), self.snapshot(NEW))
        elif run.returned or run.told_of("fit"):
            yield "it was told to be saved, and is not there"


class Quarantine(Scene):
    """The newest checkpoint is damaged: the one before is resumed from, and that one is set aside."""

    name = "quarantine"
    known = True
    may_go = ("checkpoints/step-000000000020",)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        path = JobPaths(folder).checkpoint(NEW)
        checkpoint.write(path, self.snapshot(NEW), created=CREATED)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")

    def act(self, folder: Path, tell: Tell) -> None:
        latest = Saver(JobPaths(folder), SPEC, tell).latest()
        tell({"event": "resumed", "step": 0 if latest is None else latest[1].step})
        if latest is not None:
            assert_same(latest[1], self.snapshot(OLD))

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        for fact in run.told_of("resumed"):
            if fact["step"] != OLD:
                yield f"step {fact['step']} was resumed from"
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        if step != OLD:
            yield f"step {step} was found"
        paths = JobPaths(run.folder)
        name = paths.checkpoint(NEW).name
        if paths.checkpoint(NEW).exists():
            yield "the damaged file is where it was"
        aside = [path for path in paths.quarantine.iterdir() if path.name.endswith(name)]
        if len(aside) != 1 or not aside[0].with_name(f"{aside[0].name}.reason").read_text().strip():
            yield "the damaged file is not in quarantine with its reason"
        facts[:] = [fact for fact in facts if fact["event"] != "quarantined"]


class Best(Scene):
    """A better model replaces the best one and its record."""

    name = "best model"
    spec = SPEC
    may_go = ("best/",)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.consider(folder, OLD, 0.5, lambda _: None)

    def act(self, folder: Path, tell: Tell) -> None:
        if self.consider(folder, NEW, 0.25, tell) is None:
            raise StorageError("told to have failed")

    def consider(self, folder: Path, step: int, value: float, tell: Tell) -> str | None:
        paths = JobPaths(folder)
        logs = {"loss": 1.0, "val_loss": value}
        return BestKeeper(paths, self.spec, tell).consider(
            step // 10, step, logs, lambda: self.snapshot(step), lambda path: self.save_whole(path, step)
        )

    def save_whole(self, path: Path, step: int) -> None:
        """Do what Keras does where the whole model is wanted."""
        raise AssertionError("only weights are saved here")

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        if step != OLD:
            yield f"step {step} was found"
        value = yield from self.best_after(run, facts)
        if value != 0.25 and (run.returned or run.told_of("best")):
            yield f"a best of 0.25 was told to be saved, {value} was found"

    def best_after(self, run: Run, facts: list[dict[str, Any]]) -> Any:
        """Return the value of the best model that a start finds, and yield what is wrong with it."""
        paths = JobPaths(run.folder)
        best = BestKeeper(paths, self.spec, facts.append).best
        if best is None:
            yield "the best model is lost"
            return None
        found = checkpoint.read(paths.best / best.file)
        claimed = found.state["best"]["value"]
        if (best.value, found.step) not in {(0.5, OLD), (0.25, NEW)} or claimed != best.value:
            yield f"the best has the value {best.value}, step {found.step}, and says {claimed}"
        for key, array in self.snapshot(found.step).arrays.items():
            if found.arrays[key].tobytes() != array.tobytes():
                yield f"{key} of the best model is another"
        record = json.loads((paths.best / "best.json").read_text())
        if (record["value"], record["file"]) != (best.value, best.file):
            yield f"best.json names {record['file']} with {record['value']}"
        return best.value


class BestSeries(Best):
    """The same, each best model under a name of its own."""

    name = "best model, series"
    known = True
    spec = replace(SPEC, best="weights-{epoch:02d}-{val_loss:.2f}.weights.h5")
    may_go = ("best/best.json",)


class BestFew(BestSeries):
    """The same where the best two are kept: a third one goes, when the new one is there."""

    name = "best models, two kept"
    spec = replace(BestSeries.spec, best_keep=2)
    may_go = ("best/best.json", "best/weights-01-0.75")

    def prepare(self, folder: Path) -> None:
        (folder / "best").mkdir(parents=True)
        assert self.consider(folder, 5, 0.75, lambda _: None)
        super().prepare(folder)

    def others(self, run: Run) -> Iterator[str]:
        yield from super().others(run)
        if len(list((run.folder / "best").glob("weights-*.weights.h5"))) < 2:
            yield "a model went before a better one was there"


class BestWhole(Best):
    """The same with whole models, a zip file each, which is not ours to write."""

    name = "best model, whole"
    known = True
    spec = replace(SPEC, best="best.keras")

    def save_whole(self, path: Path, step: int) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", weights(step))

    def best_after(self, run: Run, facts: list[dict[str, Any]]) -> Any:
        paths = JobPaths(run.folder)
        best = BestKeeper(paths, self.spec, facts.append).best
        if best is None:
            yield "the best model is lost"
            return None
        path = paths.best / best.file
        whole.verify(path)
        claimed = json.loads(whole.comment_of(path))["value"]
        with zipfile.ZipFile(path) as archive:
            found = archive.read("model.weights.h5")
        if claimed != best.value or found != weights(OLD if best.value == 0.5 else NEW):
            yield f"the best has the value {best.value}, says {claimed}, and holds something else"
        return best.value


@functools.cache
def weights(step: int) -> bytes:
    """Return a weights file of Keras's, about."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for link, key in small(step).links.items():
            file[link] = small(step).arrays[key]
    return memory.getvalue()


class _Facts(Facts):
    """The keeper's facts: what it says is heard, also where it cannot be written down."""

    def __init__(self, path: Path, tell: Tell):
        super().__init__(path)
        self._heard = tell

    def append(self, fact: Mapping[str, Any]) -> None:
        super().append(fact)
        self._heard(dict(fact))


class KeeperLast(Best):
    """The worker has died: its keeper makes the newest snapshot in memory and a best model into files."""

    name = "keeper, worker dead"
    known = True
    may_go = ("best/", "attempts/")
    asks = False

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        attempt = JobPaths(folder).attempt(1)
        attempt.dir.mkdir(parents=True)
        every = {"unit": "auto", "count": 1}
        best = {"monitor": self.spec.monitor, "mode": str(self.spec.mode), "best": self.spec.best}
        orders = {"job": "j", "attempt": 1, "cwd": "/", "entry": None, "args": [], "seed": 1, "threads": 1}
        orders |= {"grace_s": 1, "checkpoint": {"every": every, "keep": self.spec.keep, **best}}
        attempt.launch.write_text(json.dumps(orders))

    def before(self, folder: Path) -> None:
        self._worker, self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._memory = memory.create()
        slots = Slots(self._memory)
        if not self.asks:
            self._put(slots, self._best_snapshot(), Kind.BEST)
        slot = self._put(slots, self.snapshot(NEW), Kind.SNAPSHOT)
        if self.asks:
            asked = {"write": slot.index, "number": slot.committed, "created": CREATED}
            asked["path"] = str(JobPaths(folder).checkpoint(NEW))
            for message in ({"digests": "xxh3_128"}, asked):
                self._worker.send(json.dumps(message).encode())
        self._worker.shutdown(socket.SHUT_WR)

    @staticmethod
    def _put(slots: Slots, snapshot: Snapshot, kind: Kind) -> Any:
        assert slots.lend(sum(array.nbytes for array in snapshot.arrays.values()))
        slots.note_digest(slots.commit(snapshot, kind))
        return slots.newest(kind)[0]

    def _best_snapshot(self) -> Snapshot:
        identity = {"metric": "val_loss", "mode": "min", "value": 0.25, "epoch": 2, "step": NEW}
        state = {**self.snapshot(NEW).state, "best": {**identity, "file": "best.weights.h5"}}
        return replace(self.snapshot(NEW), state=state)

    def act(self, folder: Path, tell: Tell) -> None:
        os.environ["RUNNER_STATE"], os.environ["RUNNER_ATTEMPT"] = str(folder), "1"
        os.environ[launch.KEEPER] = f"{os.dup(self._channel.fileno())},{self._memory}"
        keeper.Facts = lambda path: _Facts(path, tell)  # type: ignore[misc,assignment]
        keeper.main()

    def after(self) -> list[dict[str, Any]]:
        told = []
        self._channel.close()
        with suppress(ConnectionError):
            while message := self._worker.recv(65536):
                if "size_bytes" in (answer := json.loads(message)):
                    told.append({"event": "checkpoint", "step": NEW, **answer})
        self._worker.close()
        os.close(self._memory)
        return told

    def found(self, run: Run, facts: list[dict[str, Any]]) -> Iterator[str]:
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        value = yield from self.best_after(run, facts)
        if step != NEW and (step != OLD or run.told_of("checkpoint")):
            yield f"step {step} was found; told: {run.told}"
        if value != 0.25 and run.told_of("best"):
            yield f"a best of 0.25 was told to be saved, {value} was found"
        yield from self.together(step, value)
        if not run.disturbed and step != NEW:
            yield f"undisturbed, but step {step} was found"

    def together(self, step: int, value: float | None) -> Iterator[str]:
        """Yield whether a snapshot was kept that is later than a best model that was lost."""
        if step == NEW and value != 0.25:
            yield f"the snapshot was kept, the best model before it not: {value}"


class KeeperAsked(KeeperLast):
    """The worker asks its keeper for a checkpoint, and dies before it can report it."""

    name = "keeper, asked"
    known = False
    asks = True

    def together(self, _step: int, _value: float | None) -> Iterator[str]:
        yield from ()


class Stream(Best):
    """One checkpoint and one best model after the other, until the disk is gone."""

    name = "stream of saves"
    known = True
    may_go = ("best/", "checkpoints/")
    many = 1  #: how many at most

    def act(self, folder: Path, tell: Tell) -> None:
        saver = Saver(JobPaths(folder), SPEC, tell)
        for number in range(self.many):
            saver.save_now(self.snapshot(NEW + number))
            if self.consider(folder, NEW + number, 0.25 / (1 + number), tell) is None:
                raise StorageError("told to have failed")

    def judge(self, run: Run) -> Iterator[str]:
        facts: list[dict[str, Any]] = []
        step, problems = newest(run.folder, facts, self.snapshot)
        yield from problems
        saved = max((fact["step"] for fact in run.told_of("checkpoint")), default=OLD)
        if step < saved:
            yield f"step {saved} was told to be saved, but step {step} was found"
        best = BestKeeper(JobPaths(run.folder), self.spec, facts.append).best
        value = min((fact["value"] for fact in run.told_of("best")), default=0.5)
        if best is None or best.value > value:
            yield f"a best of {value} was told to be saved, but {best} was found"
        if facts and facts[0]["event"] != "best":
            yield f"torn or unreadable: {facts}"
        yield from leftovers(run.folder)


SMALL: list[Scene] = [
    Scene(), Replace(), Save(), First(), EndOfFit(), Quarantine(), Best(), BestSeries(), BestFew(),
    BestWhole(), KeeperLast(), KeeperAsked(),
]  # fmt: skip
LARGE: list[Scene] = [SaveLarge(), WriteLarge()]
RETRIED: list[Scene] = [SaveAgain()]
ALL = SMALL + LARGE
