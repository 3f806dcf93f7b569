"""Checkpoints: what is written comes back bit by bit, and nothing hostile or damaged does."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from runner.errors import BadCheckpointError, StorageError
from runner.storage import blocks, checkpoint, digests, hdf5layout, manifest, userblock
from runner.storage.checkpoint import Snapshot
from tests.storage.snapshots import CREATED, assert_same, every_kind, small

DATA = Path(__file__).parents[1] / "data"
FORMATS = (1, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000000000012.weights.h5"


def test_what_is_written_comes_back_bit_by_bit(path: Path) -> None:
    state = {"loss": [float("nan"), float("inf"), 0.1], "z": 1, "a": {"ü": [None, True, 2**70]}}
    written = replace(small(), arrays=every_kind(), links={"a/vars/0": "foreign/bfloat16"}, state=state)
    size = checkpoint.write(path, written, created=CREATED)
    assert size == path.stat().st_size
    assert checkpoint.verify(path) == checkpoint.describe(path)
    found = checkpoint.read(path)
    assert_same(found, written)
    assert all(array.flags.writeable and array.flags.owndata for array in found.arrays.values())


def test_a_short_read_of_the_header_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(path, small(), created=CREATED)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 1000), offset))
    assert_same(checkpoint.read(path), small())


def test_the_state_alone_is_read_without_the_arrays(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    assert checkpoint.read_state(path) == small().state
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(BadCheckpointError):
        checkpoint.read_state(path)


def test_an_empty_snapshot_comes_back(path: Path) -> None:
    written = Snapshot(0, 0, {}, {})
    checkpoint.write(path, written, created="")
    assert_same(checkpoint.read(path), written)
    assert checkpoint.verify(path).step == 0


def test_equal_snapshots_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.write(tmp_path / name, small(), created=CREATED)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("version", FORMATS)
def test_a_frozen_file_of_each_format_is_read_for_ever(version: int) -> None:
    frozen = DATA / f"checkpoint.v{version}.weights.h5"
    info = checkpoint.verify(frozen)
    assert (info.step, info.epoch, info.format, info.created) == (12, 3, version, CREATED)
    assert checkpoint.describe(frozen) == info
    assert_same(checkpoint.read(frozen), small())


def test_the_newest_format_is_frozen() -> None:
    assert max(FORMATS) == checkpoint.FORMAT


def test_a_person_can_read_the_header_and_check_the_digest(path: Path) -> None:
    best = {"metric": "val_loss", "mode": "min", "value": 0.25}
    checkpoint.write(path, replace(small(), state={"best": best}), created=CREATED)
    magic, line = path.read_bytes()[:4096].decode("ascii").splitlines()[:2]
    assert magic == "training-runner checkpoint 2"
    header = json.loads(line)
    assert header["digest"] == f"xxh3_128:{xxhash.xxh3_128_hexdigest(path.read_bytes()[4096:])}"
    assert (header["step"], header["epoch"], header["created"]) == (12, 3, CREATED)
    info = checkpoint.describe(path)
    assert (info.metric, info.mode, info.value) == ("val_loss", "min", 0.25)


@pytest.mark.parametrize(
    "best",
    [1, {}, {"metric": "m" * 500, "mode": "min", "value": 0.1}, {"metric": "m", "value": float("nan")}],
)
def test_a_best_that_does_not_fit_the_header_is_left_out_of_it(path: Path, best: object) -> None:
    checkpoint.write(path, replace(small(), state={"best": best}), created=CREATED)
    assert checkpoint.describe(path).metric is None
    assert repr(checkpoint.read(path).state["best"]) == repr(best)


def test_keras_names_are_other_names_of_the_same_bytes(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    with h5py.File(path, "r") as file:
        assert file["layers/dense/vars/0"] == file["runner/arrays/variables/0"]
        assert file["layers/dense/vars"].attrs["name"] == "dense"
        assert list(file["layers/dropout/vars"]) == []
        np.testing.assert_array_equal(file["layers/dense/vars/0"][()], small().arrays["variables/0"])


def test_reading_needs_no_hdf5_library(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    code = (
        "import sys; sys.modules['h5py'] = None; from pathlib import Path;"
        "from runner.storage import checkpoint;"
        "print(checkpoint.read(Path(sys.argv[1])).step)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "12\n"


@pytest.mark.parametrize(
    "snapshot",
    [
        replace(small(), state={"a": object()}),
        replace(small(), state={"a": {1, 2}}),
        replace(small(), links={"a": "missing"}),
        replace(small(), links={"runner/arrays/x": "variables/0"}),
        replace(small(), links={"runner/manifest": "variables/0"}),
        replace(small(), links={"a/b": "variables/0", "a": "variables/0"}),
        Snapshot(1, 1, {}, {"a": np.array(["text"])}),
        Snapshot(1, 1, {}, {"a": np.array([object()])}),
        Snapshot(1, 1, {}, {"a": np.array([1], "M8[s]")}),
        Snapshot(1, 1, {}, {"a": np.zeros(2, [("x", "f4")])}),
        Snapshot(1, 1, {}, {"a": np.zeros(1), "a/b": np.zeros(1)}),
        Snapshot(1, 1, {}, {"": np.zeros(1)}),
    ],
)
def test_what_cannot_be_stored_is_said_and_the_old_file_stays(path: Path, snapshot: Snapshot) -> None:
    checkpoint.write(path, small(), created=CREATED)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="cannot be stored"):
        checkpoint.write(path, snapshot, created=CREATED)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_is_written_one_after_the_other_is_told_apart(tmp_path: Path) -> None:
    """Plans of files are kept: a manifest that grows, other arrays, other names, and the first ones again."""
    grown = replace(small(), state={"history": list(range(2000))})
    given = [
        small(),
        replace(small(13), state={}),
        grown,
        replace(small(), arrays={**small().arrays, "variables/1": np.zeros(2, ">i8")}),
        replace(small(), arrays={**small().arrays, "variables/0": np.zeros((3, 2), np.float32)}),
        replace(small(), links={}),
        replace(small(), attributes={}),
        *(Snapshot(n, n, {}, {str(n): np.ones(n)}) for n in range(20)),
        small(14),
        grown,
    ]
    for number, snapshot in enumerate(given):
        checkpoint.write(tmp_path / str(number), snapshot, created=CREATED)
    for number, snapshot in enumerate(given):
        checkpoint.verify(tmp_path / str(number))
        assert_same(checkpoint.read(tmp_path / str(number)), snapshot)


def test_what_does_not_change_is_told_as_anything_else(tmp_path: Path) -> None:
    names = {"variables": [{"path": "ä", "shape": [2]}, {}], "other": {"none": None}}
    links, attributes = small().links, small().attributes
    usual = replace(small(), state={"first": [1.5, math.nan], **names})
    constant = replace(
        usual,
        state={**usual.state, "variables": manifest.ConstantList(names["variables"])},
        links=manifest.Constant(links),
        attributes=manifest.Constant(attributes),
    )
    checkpoint.write(tmp_path / "usual", usual, created=CREATED)
    for _ in range(2):
        checkpoint.write(tmp_path / "constant", constant, created=CREATED)
        assert (tmp_path / "constant").read_bytes() == (tmp_path / "usual").read_bytes()


LARGE = {
    "whole blocks": {"a": np.arange(3 << 20), "b": np.arange(1 << 10)},
    "odd sizes": {"a": np.arange(9_000_001, dtype=np.uint8), "b": np.arange(5), "c": np.arange(3_000_001.0)},
    "one large array": {"a": np.random.default_rng(1).random(4_000_003)},
}


@pytest.mark.parametrize("arrays", LARGE.values(), ids=LARGE)
def test_large_files_pass_the_page_cache_by(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    snapshot = replace(small(), arrays={**small().arrays, **arrays})
    size = checkpoint.write(path, snapshot, created=CREATED)
    assert size == path.stat().st_size > blocks.DIRECT_BYTES_MIN
    found = checkpoint.read(path)
    assert_same(found, snapshot)
    assert all(array.flags.writeable and array.flags.aligned for array in found.arrays.values())
    with h5py.File(path) as file:
        for key, array in arrays.items():
            np.testing.assert_array_equal(file[f"runner/arrays/{key}"][()], array)
    for offset in (4095, 4096, size // 2, size - 1):
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        (damaged := path.with_name("damaged")).write_bytes(data)
        for use in (checkpoint.read, checkpoint.verify):
            with pytest.raises(BadCheckpointError):
                use(damaged)


def test_where_the_file_system_has_no_direct_io_large_files_are_written_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = replace(small(), arrays={**small().arrays, **LARGE["odd sizes"]})
    checkpoint.write(path, snapshot, created=CREATED)
    expected = path.read_bytes()
    monkeypatch.setattr(blocks, "memory", lambda size: memoryview(bytearray(size + blocks.BLOCK + 1))[1:])
    for _ in range(2):  # the calls are refused, for memory that is not aligned; then the flag is
        checkpoint.write(path, snapshot, created=CREATED)
        assert path.read_bytes() == expected
        assert_same(checkpoint.read(path), snapshot)
        monkeypatch.setattr(blocks, "_set_direct", lambda _fd, **_: False)


def test_a_large_file_for_which_the_disk_has_no_room_leaves_the_old_one(path: Path) -> None:
    """The limit lies within a block: a short write first, and the rest is refused."""
    checkpoint.write(path, small(), created=CREATED)
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from runner.storage import blocks, checkpoint
from runner.storage.checkpoint import Snapshot
path, limit = Path(sys.argv[1]), blocks.DIRECT_BYTES_MIN + 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    arrays = {"a": np.zeros(2 * blocks.DIRECT_BYTES_MIN, np.uint8)}
    checkpoint.write(path, Snapshot(13, 0, {}, arrays), created="")
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert_same(checkpoint.read(path), small())
    assert list(path.parent.iterdir()) == [path]


def test_without_xxhash_the_digest_is_sha256_and_xxh3_is_asked_for(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    code = """
import sys
sys.modules["xxhash"] = None
from pathlib import Path
from runner.errors import BadCheckpointError, StorageError
from runner.storage import checkpoint
from tests.storage.snapshots import CREATED, assert_same, small
path = Path(sys.argv[1])
try:
    checkpoint.read(path)
except BadCheckpointError as error:
    sys.exit(f"called damaged: {error}")
except StorageError as error:
    print(error)
checkpoint.write(path, small(), created=CREATED)
assert_same(checkpoint.read(path), small())
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "needs the package xxhash" in done.stdout
    info = checkpoint.verify(path)
    assert info.digest == f"sha256:{hashlib.sha256(path.read_bytes()[4096:]).hexdigest()}"
    assert_same(checkpoint.read(path), small())


# Hostile files: every digest is right, what they say is not.


def forge(
    path: Path, change: Callable[[dict[str, Any]], object], version: int = checkpoint.FORMAT, **header: Any
) -> None:
    """Write a checkpoint whose manifest (or header) was changed, with all digests made right again."""
    data = (DATA / f"checkpoint.v{version}.weights.h5").read_bytes()
    info = userblock.parse(data[:4096], path)
    start, algorithm = userblock.SIZES[version], info.digest.partition(":")[0]
    manifest = json.loads(data[info.manifest_offset : info.manifest_offset + info.manifest_size])
    text = change(manifest)
    new = text if isinstance(text, bytes) else json.dumps(manifest).encode()
    rest = data[start:] + new
    fields = {
        "size_bytes": start + len(rest),
        "digest": digests.of(rest, algorithm),
        "manifest_offset": len(data),
        "manifest_size": len(new),
        "manifest_digest": digests.of(new, algorithm),
    } | header
    info = replace(info, **fields)
    path.write_bytes((render_1(info) if version == 1 else userblock.render(info)) + rest)


def render_1(info: userblock.Info) -> bytes:
    """Return a user block as format 1 had it."""
    fields = {name: value for name, value in asdict(info).items() if value is not None}
    if isinstance(info.manifest_digest, str):  # it had none: only a forged one is kept
        del fields["manifest_digest"]
    del fields["format"]
    fields["sha256"] = fields.pop("digest").removeprefix("sha256:")
    body = f"training-runner checkpoint 1\n{json.dumps(fields)}\n".encode().ljust(446) + b"\n"
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def entry(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["arrays"]["variables/0"].update({key: value})


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a huge shape": entry("shape", [2**40, 2**20]),
    "an overflowing shape": entry("shape", [2**62, 2**62]),
    "a hollow huge shape": entry("shape", [0, 2**62, 2**62]),
    "a negative shape": entry("shape", [-1, -6]),
    "too many dimensions": entry("shape", [1] * 100),
    "a shape of floats": entry("shape", [6.0]),
    "a shape of booleans": entry("shape", [True]),
    "a shape of text": entry("shape", "23"),
    "no shape": entry("shape", None),
    "an offset behind the end": entry("offset", 2**40),
    "a negative offset": entry("offset", -8),
    "an offset elsewhere": entry("offset", 700),
    "objects": entry("dtype", "|O"),
    "text": entry("dtype", "<U9"),
    "records": entry("dtype", [["x", "<f4"]]),
    "a module's attribute": entry("dtype", "finfo"),
    "a foreign type that is none": entry("dtype", "float8_nonsense"),
    "many names of the same bytes": lambda m: m["arrays"].update(
        {str(n): {"dtype": "|u1", "shape": [9000], "offset": 512, "sha256": ""} for n in range(200)}
    ),
    "a link to nothing": lambda m: m["links"].update({"a": "missing"}),
    "a link to a list": lambda m: m["links"].update({"a": []}),
    "links that are no object": lambda m: m.update(links=[]),
    "arrays that are no objects": lambda m: m.update(arrays={"a": 1}),
    "a state that is no object": lambda m: m.update(state=[]),
    "another step": lambda m: m.update(step=13),
    "another version": lambda m: m.update(version=3),
    "no arrays": lambda m: m.pop("arrays"),
    "a list": lambda _: b"[]",
    "no JSON": lambda _: b"\x80\x04\x95 pickle",
    "deep nesting": lambda _: b"[" * 500_000,
    "a huge number": lambda _: b'{"version":' + b"9" * 5000 + b"}",
}


HOSTILE_FORMAT_1 = {
    "another digest": entry("sha256", "0" * 64),
    "a digest of another type": entry("sha256", None),
    "no digest": lambda m: m["arrays"]["variables/0"].pop("sha256"),
}


@pytest.mark.parametrize(
    ("version", "change"),
    [
        *((version, change) for version in FORMATS for change in HOSTILE.values()),
        *((1, change) for change in HOSTILE_FORMAT_1.values()),
    ],
    ids=[*(f"{version} {name}" for version in FORMATS for name in HOSTILE), *HOSTILE_FORMAT_1],
)
def test_a_hostile_manifest_is_refused(
    path: Path, version: int, change: Callable[[dict[str, Any]], object]
) -> None:
    forge(path, change, version)
    for use in (checkpoint.read, checkpoint.verify):
        with pytest.raises(BadCheckpointError) as caught:
            use(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        {"manifest_offset": 2**62, "manifest_size": 2**62},
        {"manifest_size": 2**40},
        {"manifest_size": True},
        {"step": -1},
        {"step": "12"},
        {"step": 12.0},
        {"epoch": None},
        {"metric": 7},
        {"value": "0.5"},
        {"created": 5},
        {"manifest_digest": 5},
    ],
)
@pytest.mark.parametrize("version", FORMATS)
def test_a_hostile_header_is_refused(path: Path, version: int, header: dict[str, Any]) -> None:
    forge(path, lambda _: None, version, **header)
    for use in (checkpoint.read, checkpoint.verify, checkpoint.describe):
        with pytest.raises(BadCheckpointError):
            use(path)


@pytest.mark.parametrize("field", ["digest", "manifest_digest"])
@pytest.mark.parametrize("digest", ["xxh3_128:00", "xxh3_128:", "sha256:00", "md5:d41d8cd9", "", "00"])
def test_another_digest_is_noticed(path: Path, field: str, digest: str) -> None:
    forge(path, lambda _: None, **{field: digest})
    for use in (checkpoint.read, checkpoint.verify):
        with pytest.raises(BadCheckpointError):
            use(path)


def test_a_manifest_that_hdf5_contradicts_is_noticed(path: Path) -> None:
    forge(path, lambda manifest: manifest["links"].update({"layers/dense/vars/1": "variables/0"}))
    with pytest.raises(BadCheckpointError, match="HDF5 does not see it"):
        checkpoint.verify(path)


def test_a_newer_format_is_named(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    info = replace(checkpoint.describe(path), format=3)
    path.write_bytes(userblock.render(info) + path.read_bytes()[4096:])
    with pytest.raises(BadCheckpointError, match="format 3 is not known here"):
        checkpoint.read(path)


def test_what_is_no_checkpoint_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"", b"x", os.urandom(5000), b"training-runner checkpoint 1\n", b"\x89HDF\r\n\x1a\n" * 100):
        path.write_bytes(data)
        for use in (checkpoint.read, checkpoint.verify, checkpoint.describe):
            with pytest.raises(BadCheckpointError):
                use(path)
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path / "fifo", tmp_path):
        with pytest.raises(BadCheckpointError, match="no regular file"):
            checkpoint.read(other)
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "missing")


def test_hdf5_is_followed_only_where_it_stays_in_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other", "w") as other:
        other["secret"] = np.arange(3.0)
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "x", "w") as file:
        file["plain"] = np.arange(3.0)
        file["group/soft"] = h5py.SoftLink("/plain")
        file["external"] = h5py.ExternalLink(str(tmp_path / "other"), "/secret")
        file.create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])
        file.create_dataset("chunked", data=np.zeros(1000), compression="gzip")
        layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other"), "secret", shape=(3,))
        file.create_virtual_dataset("virtual", layout)
    with h5py.File(tmp_path / "x", "r") as file:
        assert hdf5layout.dataset(file, "plain").shape == (3,)
        for name in ("group/soft", "external", "raw", "chunked", "virtual", "group", "missing", "a/b"):
            with pytest.raises(ValueError, match=name.rpartition("/")[2]):
                hdf5layout.dataset(file, name)


def test_only_the_file_s_own_size_is_ever_allocated(path: Path) -> None:
    """A forged header or manifest that asks for terabytes is refused without a page being touched."""
    import resource

    forge(path, entry("shape", [2**38]))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadCheckpointError, match="outside the file"):
        checkpoint.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


def test_writing_holds_no_second_copy_of_the_arrays(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from pathlib import Path
from runner.storage import checkpoint
from runner.storage.checkpoint import Snapshot
arrays = {str(n): np.ones(4_000_000, np.float32) for n in range(6)}
checkpoint.write(Path(sys.argv[1]) / "warm", Snapshot(1, 1, {}, {"a": np.ones(3)}), created="")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint.write(Path(sys.argv[1]) / "file", Snapshot(1, 1, {}, arrays), created="")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40 * 1024, "KiB, of 96 MB of arrays"


def test_describing_is_cheap(path: Path) -> None:
    checkpoint.write(path, small(), created=CREATED)
    began = time.thread_time()
    for _ in range(100):
        checkpoint.describe(path)
    assert time.thread_time() - began < 1.0
