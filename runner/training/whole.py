"""Keras's whole model (`*.keras`), saved by Keras itself and published by us.

Keras writes to a temporary file; it is then fsynced, read back whole (every member's CRC, and each weight
against the snapshot of the same moment, because HDF5 can report a corrupt file as written), then renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import BadCheckpointError, StorageError
from runner.storage import durable
from runner.storage.checkpoint import Snapshot

SUFFIX = ".keras"
_WEIGHTS = "model.weights.h5"


def save(
    path: Path, snapshot: Snapshot, save_whole: Callable[[Path], None], *, comment: dict[str, Any]
) -> None:
    """Replace `path` durably by the model that `save_whole` saves at the path it is given.

    Args:
        path: its folder exists.
        snapshot: of the same moment, to compare the weights with.
        save_whole: Keras's `model.save`, or the like.
        comment: becomes the zip file's comment, as JSON.

    Raises:
        OSError, StorageError: it could not be saved; `path` is as it was.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    file = folder / f"model{SUFFIX}"
    try:
        durable.make_folder(folder, folder.parent)
        save_whole(file)
        _annotate(file, json.dumps(comment).encode("ascii"))
        durable.sync_tree(folder)
        verify(file)
        _compare(file, snapshot)
        durable.move(file, path)
    except zipfile.BadZipFile as error:
        raise StorageError(f"{path}: Keras saved no readable file: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            durable.remove_tree(folder)


def _annotate(file: Path, comment: bytes) -> None:
    """Give a zip file a comment.

    What ZipFile cannot read, be it for an error of the disk that passes, it takes for no zip file: it would
    begin an empty archive in its place, or behind it. So the file is opened here, and its members compared.

    Raises:
        OSError, StorageError, BadZipFile: it could not be done.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.namelist()
    with file.open("r+b") as opened, zipfile.ZipFile(opened, "a") as archive:
        if archive.namelist() != members:
            raise StorageError(f"{file}: its members could not be read again")
        archive.comment = comment


def verify(path: Path) -> None:
    """Read a whole model's file to its end.

    Raises:
        BadCheckpointError: it is no zip file, or a member does not match its CRC.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise BadCheckpointError(f"{path}: not an intact .keras file: {error}") from error
    if broken is not None:
        raise BadCheckpointError(f"{path}: not an intact .keras file: {broken} does not match its CRC")


def comment_of(path: Path) -> bytes:
    """Return a zip file's comment.

    Raises:
        ValueError: it is no zip file.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def _compare(path: Path, snapshot: Snapshot) -> None:
    """Check that the weights in the file are the snapshot's."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            return
        with archive.open(_WEIGHTS) as member, h5py.File(member, "r") as file:
            for link, key in snapshot.links.items():
                if link in file and np.asarray(file[link]).tobytes() != snapshot.arrays[key].tobytes():
                    raise StorageError(f"{path}: '{link}' is not what the model holds")
