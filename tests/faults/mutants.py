"""The part of the campaign that damages files at rest: random mutants, and every truncation of a small file.

No mutant is ever read as good, nor loaded by a start: it is set aside with its reason, and the generation
before is taken. One that verifies must hold the very bytes that were written.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from runner.errors import BadCheckpointError
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
from runner.storage.layout import JobPaths
from runner.training.best import BestKeeper
from runner.training.saver import Saver
from tests.faults import calls, scenes
from tests.faults.scenes import NEW, OLD
from tests.faults.table import Rules, Table
from tests.storage.snapshots import CREATED, assert_same, small

DATA = Path(__file__).parents[1] / "data"
_SECTOR = 512
MUTANTS = 3000
#: Of the files that end early each so manieth is met by a start, too.
STARTED = 16


@dataclass(frozen=True)
class Original:
    """A good file, and an older one of the same places."""

    name: str
    data: bytes
    older: bytes
    snapshot: Snapshot


def flipped(data: bytearray, _older: bytes, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def zeroed(data: bytearray, _older: bytes, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice((1, 8, 100, _SECTOR, 4096, 1 << 20)))
    data[begin:end] = bytes(end - begin)


def scribbled(data: bytearray, _older: bytes, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice((1, 8, 100, _SECTOR)))
    data[begin:end] = chance.randbytes(end - begin)


def sectors(data: bytearray, chance: random.Random) -> tuple[slice, slice]:
    """Return two places of blocks of one size."""
    size = chance.choice((_SECTOR, 4096))
    first, second = (chance.randrange(len(data) // size) * size for _ in range(2))
    return slice(first, first + size), slice(second, second + size)


def exchanged(data: bytearray, _older: bytes, chance: random.Random) -> None:
    one, other = sectors(data, chance)
    data[one], data[other] = data[other], data[one]


def doubled(data: bytearray, _older: bytes, chance: random.Random) -> None:
    one, other = sectors(data, chance)
    data[one] = data[other]


def truncated(data: bytearray, _older: bytes, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def extended(data: bytearray, _older: bytes, chance: random.Random) -> None:
    more = chance.choice((1, 8, _SECTOR, 4096))
    data += chance.choice((bytes(more), chance.randbytes(more), bytes(data[:more])))


def shifted(data: bytearray, _older: bytes, chance: random.Random) -> None:
    begin = chance.randrange(len(data))
    if chance.random() < 0.5:
        del data[begin]
    else:
        data.insert(begin, chance.randrange(256))


def lost_writes(data: bytearray, older: bytes, chance: random.Random) -> None:
    """Some sectors are the older version's."""
    for _ in range(chance.choice((1, 2, 5))):
        one, _other = sectors(data, chance)
        data[one] = older[one]


def misplaced(data: bytearray, older: bytes, _chance: random.Random) -> None:
    """The older version under the newer one's name."""
    data[:] = older


MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    flipped, flipped, zeroed, scribbled, exchanged, doubled, truncated, extended, shifted, lost_writes,
    lost_writes, misplaced,
)  # fmt: skip


def chance_of(rules: Rules, name: str, number: int) -> random.Random:
    """Return the chance of one mutant, which can be made again by itself."""
    return random.Random(f"{rules.seed} {name} {number}")


def originals(work: Path) -> list[Original]:
    """Return good files: of both formats, and large."""
    found = []
    for name, make in {"format 2": small, "format 2, large": scenes.large}.items():
        snapshot = make(NEW)
        arrays = {key: (array + 1).astype(array.dtype) for key, array in snapshot.arrays.items()}
        older = replace(snapshot, step=OLD, arrays=arrays)
        data = []
        for number, one in enumerate((snapshot, older)):
            checkpoint.write(work / f"original-{number}", one, created=CREATED)
            data.append((work / f"original-{number}").read_bytes())
        found.append(Original(name, data[0], data[1], snapshot))
    frozen = (DATA / "checkpoint.v1.weights.h5").read_bytes()
    older_1 = bytearray(frozen)
    older_1[600::97] = bytes(len(older_1[600::97]))
    found.append(Original("format 1", frozen, bytes(older_1), small()))
    return found


def mutants(rules: Rules, table: Table, work: Path) -> None:
    """Damage files in every way."""
    with calls.ground(work) as folder:
        for original in originals(folder):
            size = len(original.data)
            share = (
                (0.06, 0.02) if size > 1 << 20 else (0.55, 0.5) if original.name == "format 2" else (0.4, 0.4)
            )
            count = rules.count(int(share[0] * MUTANTS), int(share[1] * 300))
            for number in range(count):
                chance = chance_of(rules, original.name, number)
                name, data = mutated(original, chance)
                what = f"{original.name}, {name}"
                judge(original, data, folder, table, "mutants", what, number)
            if size < 1 << 20:
                lengths = range(size)
                for length in lengths if not rules.short else rules.chance.sample(lengths, 150):
                    judge(original, original.data[:length], folder, table, "cut off", original.name, length)
        in_best(rules, table, folder)
    ran = sum(row.runs for (part, _), row in table.rows.items() if part == "mutants")
    table.notes.append(f"mutants: {ran} mutants, and {'every' if not rules.short else 'some'} shorter length")
    table.require(rules.short or ran >= MUTANTS, f"mutants: {ran} are fewer than {MUTANTS}")


def mutated(original: Original, chance: random.Random) -> tuple[str, bytes]:
    """Return a mutant, and by what it came to be; zeroed zeros and the like are no mutants."""
    while True:
        mutation = chance.choice(MUTATIONS)
        data = bytearray(original.data)
        mutation(data, original.older, chance)
        if data != original.data:
            return mutation.__name__, bytes(data)


def judge(
    original: Original, data: bytes, folder: Path, table: Table, part: str, what: str, number: int
) -> None:
    """Have a damaged file read, verified and found by a start."""
    paths = JobPaths(folder / "damaged")
    fresh(paths)
    path = paths.checkpoint(original.snapshot.step)
    path.write_bytes(data)
    problems = believed(path, original)
    if part != "cut off" or number % STARTED == 0:
        problems += started(paths, path)
    table.add(part, what, end="raised", problems=problems, where=f"number {number}")


def believed(path: Path, original: Original) -> list[str]:
    """Return who takes a damaged file for good."""
    found = []
    for use in (checkpoint.read, checkpoint.verify):
        try:
            use(path)
        except BadCheckpointError:
            continue
        except Exception as error:  # noqa: BLE001 - any other is a finding
            found.append(f"{use.__name__} fails on it: {type(error).__name__}: {error}")
            continue
        if path.read_bytes() != original.older:  # which is good, but not of this name
            found.append(f"{use.__name__} takes it for good")
    return found


def fresh(paths: JobPaths) -> None:
    """Make a state folder with a good checkpoint of an older step than any damaged one's."""
    shutil.rmtree(paths.dir, ignore_errors=True)
    paths.checkpoints.mkdir(parents=True)
    good = Path(paths.dir.parent / "good")
    if not good.exists():
        checkpoint.write(good, small(1), created=CREATED)
    shutil.copyfile(good, paths.checkpoint(1))


def started(paths: JobPaths, path: Path) -> list[str]:
    """Start as a worker does; return what is wrong with what that finds."""
    facts = []
    latest = Saver(paths, scenes.SPEC, facts.append).latest()
    if latest is None or latest[1].step != 1:
        return [f"a start loads {latest and latest[0].name}"]
    assert_same(latest[1], small(1))
    aside = paths.quarantine / path.name
    reason = aside.with_name(f"{aside.name}.reason")
    found = [] if reason.exists() and reason.read_text().strip() else ["no reason is told"]
    found += [] if aside.exists() and not path.exists() else ["it was not set aside"]
    return found + ([] if [fact["event"] for fact in facts] == ["quarantined"] else [f"told: {facts}"])


def in_best(rules: Rules, table: Table, folder: Path) -> None:
    """Damage the best model, or its record: it is never taken for the best by what is not true of it."""
    scene, template = scenes.Best(), folder / "best-template"
    scene.prepare(template)
    (folder / "best-older").mkdir()
    scene.consider(folder / "best-older", OLD, 0.75, lambda _: None)
    for name in ("best.weights.h5", "best.json"):
        good = (template / "best" / name).read_bytes()
        older = (folder / "best-older" / "best" / name).read_bytes()
        for number in range(rules.count(300, 15)):
            chance = chance_of(rules, name, number)
            mutation = chance.choice(MUTATIONS)
            data = bytearray(good)
            if len(good) > 4096 or mutation not in {exchanged, doubled, lost_writes}:
                mutation(data, older, chance)
            state = folder / "best-state"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(template, state)
            (state / "best" / name).write_bytes(data)
            best = BestKeeper(JobPaths(state), scenes.SPEC, lambda _: None).best
            # The older model is a good one, and then the best that there is.
            values = {good: 0.5, older: 0.75} if name == "best.weights.h5" else {bytes(data): 0.5}
            value = values.get(bytes(data))
            right = None if value is None else ("val_loss", "min", value, 1, OLD, "best.weights.h5")
            found = None if best is None else astuple(best)
            table.add(
                "best",
                f"{name}, {mutation.__name__}",
                end="raised" if best is None else "returned",
                problems=[] if found == right else [f"{found} was believed, where {right} is so"],
                where=f"number {number}",
                reached=int(data != good),
            )
