"""Durable writes: old or new, never torn; no success where something failed; nothing left lying about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.storage import durable
from tests.storage import faults
from tests.storage.faults import Point

OLD, NEW = b"old" * 1000, b"new" * 1000

#: All calls that write or publish something: each fails in turn.
CALLS = {"openat", "write", "fsync", "fdatasync", "rename", "close", "symlink", "mkdir"}
ERRORS = ("ENOSPC", "EIO", "EROFS")


def fresh(folder: Path) -> Path:
    """A folder with something old in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "target").write_bytes(OLD)
    (folder / "link").symlink_to("old")
    (folder / ".staged").mkdir()
    (folder / ".staged" / "train.py").write_text("whole")
    return folder


def state(scenario: str, folder: Path) -> str:
    """Say what a reader finds: old, new, or something that must never be seen."""
    match scenario:
        case "link":
            return str((folder / "link").readlink())
        case "move":
            there = (folder / "moved" / "train.py").exists()
            return ("both" if (folder / ".staged").exists() else "new") if there else "old"
        case "make_folder":
            return "new" if (folder / "a" / "b").is_dir() else "old"
    return {OLD: "old", NEW: "new"}.get((folder / "target").read_bytes(), "torn")


def litter(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"target", "link", ".staged", "moved", "a"}


def failures(scenario: str, folder: Path) -> Iterator[tuple[Point, str, int]]:
    """Fail every call in turn, once and from then on, with each error."""
    for point in faults.trace(scenario, fresh(folder)):
        if point.name in CALLS:
            for error in ERRORS:
                for times in ("{when}", "{when}+"):
                    fault = f"error={error}:when={times}"
                    code = faults.disturb(scenario, fresh(folder), point, fault)
                    yield point, fault, code


def deaths(scenario: str, folder: Path) -> Iterator[Point]:
    """Die at every call in turn."""
    for point in faults.trace(scenario, fresh(folder)):
        code = faults.disturb(scenario, fresh(folder), point, "signal=SIGKILL:when={when}")
        assert code == -9
        yield point


@pytest.mark.parametrize("scenario", ["write", "publish", "link", "move", "make_folder"])
def test_a_failure_is_told_and_leaves_the_old_or_the_new(scenario: str, tmp_path: Path) -> None:
    tried = set()
    for point, fault, code in failures(scenario, tmp_path / "folder"):
        tried.add(point.name)
        assert code == 3, f"{point} failed ({fault}) and success was reported"
        assert state(scenario, tmp_path / "folder") in {"old", "new"}, (point, fault)
        assert litter(tmp_path / "folder") == set(), (point, fault)
    assert tried, "the harness saw no call"


def test_only_the_folders_sync_may_fail_after_the_new_is_in_place(tmp_path: Path) -> None:
    renamed = False
    for point, fault, _ in failures("write", tmp_path / "folder"):
        expected = "new" if renamed and point.name != "rename" else "old"
        assert state("write", tmp_path / "folder") == expected, (point, fault)
        renamed = renamed or point.name == "rename"
    assert renamed


@pytest.mark.parametrize("scenario", ["write", "publish", "link", "move", "make_folder"])
def test_death_at_any_call_leaves_the_old_or_the_new(scenario: str, tmp_path: Path) -> None:
    seen = []
    for point in deaths(scenario, tmp_path / "folder"):
        seen.append(state(scenario, tmp_path / "folder"))
        assert seen[-1] in {"old", "new"}, point
        assert len(litter(tmp_path / "folder")) <= 1, point
    assert seen == sorted(seen, reverse=True), "from the old to the new, once"
    assert seen[0] == "old"


def test_a_write_syncs_the_file_then_renames_then_syncs_the_folder(tmp_path: Path) -> None:
    calls = [point.name for point in faults.trace("write", fresh(tmp_path / "folder"))]
    wanted = ["openat", "write", "fsync", "close", "rename", "openat", "fsync", "close"]
    assert [name for name in calls if name in CALLS] == wanted


def test_after_a_failed_sync_everything_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    first = next(p for p in faults.trace("write", fresh(folder)) if p.name == "fsync")
    code = faults.disturb("write again", fresh(folder), first, "error=EIO:when={when}")
    assert (code, state("write", folder), litter(folder)) == (0, "new", set())


# --- controls: what must not pass -------------------------------------------------------------------------


def test_control_writing_in_place_is_caught_by_death(tmp_path: Path) -> None:
    assert "torn" in [state("in place", tmp_path / "folder") for _ in deaths("in place", tmp_path / "folder")]


def test_control_writing_in_place_is_caught_by_failure(tmp_path: Path) -> None:
    states = [state("in place", tmp_path / "folder") for (*_,) in failures("in place", tmp_path / "folder")]
    assert "torn" in states


def test_control_deafness_is_caught_by_failure(tmp_path: Path) -> None:
    seen = [(code, state("deaf", tmp_path / "folder")) for *_, code in failures("deaf", tmp_path / "folder")]
    assert (0, "torn") in seen


def test_control_careless_is_caught_by_its_litter(tmp_path: Path) -> None:
    assert any(litter(tmp_path / "folder") for _ in failures("careless", tmp_path / "folder"))


# --- without faults ---------------------------------------------------------------------------------------


def test_what_the_block_raises_prevents_the_publication(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, OLD)

    def interrupted() -> None:
        with durable.replacing(path) as fd:
            durable.write_all(fd, NEW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_verify_raises_prevents_the_publication(tmp_path: Path) -> None:
    seen = []

    def verify(temporary: Path) -> None:
        seen.append(temporary.read_bytes())
        raise ValueError("its digest is off")

    with pytest.raises(ValueError, match="digest"), durable.replacing(tmp_path / "file", verify=verify) as fd:
        durable.write_all(fd, NEW)
    assert seen == [NEW]
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_as_asked(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with durable.replacing(tmp_path / "file", mode=0o666) as fd:
            durable.write_all(fd, b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_temporary_files_are_out_of_sight(tmp_path: Path) -> None:
    with durable.replacing(tmp_path / "file"):
        (name,) = [path.name for path in tmp_path.iterdir()]
    assert name.startswith(".file.")
    assert name.endswith(".tmp")


@pytest.mark.parametrize("longest", [1, 7, 4096])
def test_short_writes_are_continued(longest: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:longest]))
    durable.write(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_write_that_writes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        durable.write(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


def test_other_views_are_written_byte_by_byte(tmp_path: Path) -> None:
    with durable.replacing(tmp_path / "file") as fd:
        durable.write_all(fd, memoryview(b"\x01\x00\x02\x00").cast("H"))
    assert (tmp_path / "file").read_bytes() == b"\x01\x00\x02\x00"


def test_removal(tmp_path: Path) -> None:
    durable.remove(tmp_path / "missing")
    durable.write(tmp_path / "file", NEW)
    durable.remove(tmp_path / "file")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    durable.remove_tree(tmp_path / "tree")
    durable.remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_is_never_followed_out_of(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(outside)
    (tmp_path / "tree" / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "tree" / "fifo")
    durable.sync_tree(tmp_path / "tree")
    durable.remove_tree(tmp_path / "tree")
    assert (outside / "precious").exists()


FAILING: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: durable.write(folder / "missing" / "file", b""), "No such file"),
    (lambda folder: durable.move(folder / "missing", folder / "file"), "No such file"),
    (lambda folder: durable.link(folder / "occupied", "x"), "directory"),
    (lambda folder: durable.publish(folder / "occupied", b""), "directory"),
    (lambda folder: durable.make_folder(folder / "file" / "below"), "Not a directory"),
]


@pytest.mark.parametrize(("deed", "said"), FAILING)
def test_what_cannot_be_done_is_an_error_and_leaves_nothing(
    deed: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    (tmp_path / "occupied" / "by").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=said):
        deed(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"occupied", "file"}
