"""Putting a job's folder into `jobs/`: copied aside, made durable, renamed.

A submitted folder is whole or not there. What cannot be copied faithfully is refused: links that lead out of
the folder, sockets, FIFOs, devices. `__pycache__` is left out; `.venv` may link to the system's Python.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.cli.models import Model
from runner.core.spec import JobSpec
from runner.errors import BadJobError, RefusedError, StorageError, UsageError
from runner.settings import FILE, load_spec
from runner.storage import durable, records
from runner.storage.layout import START_FROM, SUBMITTED_MARK, Home, is_job_name

_LEFT_OUT = {"__pycache__", SUBMITTED_MARK, START_FROM}
_LINKS_OUT = ".venv"
_CHUNK_BYTES = 1 << 20


def check_name(name: str) -> str:
    """Return `name` if a job may have it.

    Raises:
        UsageError: it may not.
    """
    if not is_job_name(name):
        raise UsageError(
            f"{name!r} is not a name for a job: letters, digits, '.', '_' and '-', at most 64, the first a "
            "letter or digit; give one with --name"
        )
    return name


def is_taken(home: Home, name: str) -> bool:
    """Tell whether a job of that name is there."""
    return os.path.lexists(home.folder(name)) or os.path.lexists(home.job(name).record)


@dataclass(frozen=True)
class Variant:
    """A job to make of a folder: its name, and where settings were given, its job.toml and what was given."""

    name: str
    settings: str | None = None
    given: dict[str, str] = field(default_factory=dict)


def submit(home: Home, source: Path, name: str, model: Model | None = None) -> None:
    """Copy `source` into the home as job `name`; see `submit_all`."""
    submit_all(home, source, [Variant(name)], model)


def submit_all(home: Home, source: Path, variants: Sequence[Variant], model: Model | None = None) -> None:
    """Copy `source` into the home, once for each variant, to start from `model` where one is given.

    All are copied and durable before the first is published. Between the first and the last renaming an
    error, a name that somebody else takes or a power cut can leave some of them submitted; it is said which.

    Raises:
        BadJobError: its settings, or something in the folder, cannot be accepted.
        RefusedError: there is a job of one of these names already.
    """
    spec = load_spec(source)
    _check_free(home, [one.name for one in variants])
    if home.root.resolve().is_relative_to(source.resolve()):
        raise RefusedError(f"{source}: holds the home {home.root} itself; submit a folder of the job's own")
    home.create()
    staged = {one.name: home.jobs / f".{one.name}.{secrets.token_hex(4)}.tmp" for one in variants}
    try:
        for variant in variants:
            _stage(home, source, spec, variant, model, staged[variant.name])
        _publish(home, staged)
    except BaseException:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_free(home: Home, names: Sequence[str]) -> None:
    taken = [name for name in names if is_taken(home, name)]
    if not taken:
        return
    others = f" (and {len(taken) - 1} more of these {len(names)})" if len(taken) > 1 else ""
    raise RefusedError(
        f"{taken[0]}: there is a job of that name already{others}; choose another with --name, "
        f"or: runner rm {taken[0]}"
    )


def _stage(
    home: Home, source: Path, spec: JobSpec, variant: Variant, model: Model | None, staged: Path
) -> None:
    """Make the whole folder of a job under a name that nobody looks at, durably."""
    copy_tree(source, staged)
    if variant.settings is not None:
        _write_settings(staged / FILE, variant.settings)
    if model is not None:
        shutil.copyfile(model.path, staged / START_FROM)
    content = digest(source)
    if variant.settings is not None:  # `runner run` of the folder as it is must not take this job for its own
        content = hashlib.sha256(f"{content} {variant.settings}".encode()).hexdigest()
    mark: dict[str, Any] = {"version": 1, "source": model.origin if model else None, "digest": content}
    if variant.given:
        mark["set"] = variant.given
    records.save_json(staged / SUBMITTED_MARK, mark, durably=False)
    _hand_over(staged, home.jobs, spec.env_file)
    durable.sync_tree(staged)


def _write_settings(path: Path, text: str) -> None:
    """Put a job.toml in the place of the copied one, with its permissions: it may hold secrets."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(text.encode())


def _publish(home: Home, staged: dict[str, Path]) -> None:
    for number, (name, folder) in enumerate(staged.items()):
        there = f"; submitted before it: {', '.join(list(staged)[:number])}" if number else ""
        try:
            durable.move(folder, home.folder(name))
        except OSError as error:
            if home.folder(name).exists():  # another submit of the same name was quicker
                raise RefusedError(
                    f"{name}: there is a job of that name already; choose another: --name{there}"
                ) from None
            if there:
                raise StorageError(f"{name}: {error.strerror}{there}") from None
            raise error


def _hand_over(staged: Path, jobs: Path, secret: str | None) -> None:
    """Let the supervisor's user work in the folder, where that is somebody else.

    In a home that a group shares (`jobs/` has the setgid bit) the group gets what the submitter has; what
    root submits becomes the owner's. The file with secrets stays
    its owner's alone. Descriptors, not paths: others may rename
    things in `jobs/` meanwhile.
    """
    owner = jobs.stat()
    shared = bool(owner.st_mode & stat.S_ISGID)
    given = os.geteuid() == 0 and owner.st_uid != 0
    if not shared and not given:
        return
    for _, _, names, folder in os.fwalk(staged):
        os.fchmod(folder, _for_group(os.fstat(folder).st_mode))
        if given:
            os.fchown(folder, owner.st_uid, owner.st_gid)
        for name in names:
            if given:
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=folder, follow_symlinks=False)
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and not _is_secret(name, folder, staged, secret):
                os.chmod(name, _for_group(mode), dir_fd=folder)


def _is_secret(name: str, folder: int, staged: Path, secret: str | None) -> bool:
    if secret is None or not (staged / secret).exists():
        return False
    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return os.path.samestat(about, (staged / secret).stat())


def _for_group(mode: int) -> int:
    return stat.S_IMODE(mode) | (mode & stat.S_IRWXU) >> 3


def copy_tree(source: Path, target: Path) -> None:
    """Copy everything that belongs to a job.

    Raises:
        BadJobError: something in it cannot be copied faithfully.
    """
    _copy(_walk(source), target)


def copy_to_try(source: Path, target: Path, bytes_max: int) -> list[Path]:
    """Copy a job's folder to try things in, its virtual environment as a link.

    Of files that are too much together the biggest are links too; these are returned, relative to it.

    Raises:
        BadJobError: something in it cannot be copied faithfully.
    """
    entries = list(_walk(source, without=_LINKS_OUT))
    files = [(path, entry) for path, entry in entries if entry.is_file(follow_symlinks=False)]
    linked, total = set(), 0
    for path, entry in sorted(files, key=lambda found: found[1].stat().st_size):
        total += entry.stat().st_size
        if total > bytes_max:
            linked.add(path)
    _copy(iter(entries), target, linked)
    if (source / _LINKS_OUT).is_dir():
        (target / _LINKS_OUT).symlink_to((source / _LINKS_OUT).resolve())
    return sorted(linked)


def _copy(
    entries: Iterator[tuple[Path, os.DirEntry[str]]], target: Path, linked: Set[Path] = frozenset()
) -> None:
    target.mkdir()
    for path, entry in entries:
        copy = target / path
        if path in linked:
            copy.symlink_to(Path(entry.path).resolve())
        elif entry.is_symlink():
            copy.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            copy.mkdir()
        else:
            _copy_file(entry.path, copy)


def _copy_file(source: str, target: Path) -> None:
    try:
        shutil.copy2(source, target, follow_symlinks=False)
    except PermissionError as error:
        raise BadJobError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _walk(source: Path, without: str = "") -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """Yield (relative path, entry) of everything that is copied, folders before what they hold.

    Args:
        source: the folder.
        without: the name of what is left out at its top.
    """
    root = source.resolve()
    stack = [Path()]
    while stack:
        folder = stack.pop()
        for entry in sorted(os.scandir(source / folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name in _LEFT_OUT or path == Path(without):
                continue
            _check(entry, path, root)
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                stack.append(path)


def _check(entry: os.DirEntry[str], path: Path, root: Path) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        target = Path(entry.path).resolve()
        if path.parts[0] != _LINKS_OUT and not target.is_relative_to(root):
            raise BadJobError(
                f"{path}: a link that leads out of the folder (to {target}); copy what it names"
            )
    elif not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise BadJobError(f"{path}: a socket, FIFO or device; a job holds files and folders only")


def digest(source: Path) -> str:
    """Return a digest over names, kinds and contents of everything that is copied from `source`."""
    total = hashlib.sha256()
    for path, entry in sorted(_walk(source), key=lambda found: os.fsencode(found[0])):
        name = os.fsencode(path)
        total.update(len(name).to_bytes(4, "big") + name)
        if entry.is_symlink():
            total.update(b"l" + os.fsencode(Path(entry.path).readlink()))
        elif entry.is_dir():
            total.update(b"d")
        else:
            total.update(b"x" if entry.stat().st_mode & 0o100 else b"f")
            total.update(_file_digest(entry.path))
    return total.hexdigest()


def _file_digest(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - names of any bytes
        return hashlib.file_digest(file, "sha256").digest()


def is_same(home: Home, source: Path, name: str) -> bool:
    """Tell whether job `name` was submitted from what `source` holds now."""
    try:
        return bool(records.load_json(home.folder(name) / SUBMITTED_MARK).get("digest") == digest(source))
    except FileNotFoundError:
        return False
