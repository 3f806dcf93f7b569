"""Lay out an HDF5 file without writing it: HDF5 decides where everything lies, the caller writes the bytes.

HDF5's own writing swallows errors (one failed `pwrite` of a chunk, a corrupt file, reported as saved), and
its in-memory driver holds every array twice more. Here HDF5 writes only its few kilobytes of metadata, into
memory; each array is contiguous, allocated early and never filled, so that its place is known and its bytes
go from the array to the file by a checked loop of ours. A plan once made serves every file of the same names,
shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

_PAGE = 4096
#: Arrays of at least so many bytes begin with a page of the file: direct I/O takes them from where they lie.
_LARGE = 1024 * 1024
_FOREIGN = 2  # numpy's `isbuiltin` of a dtype that another library registered


class Metadata:
    """A sparse file in memory, as h5py wants one: only the pages that were written take room."""

    def __init__(self) -> None:
        self.size = 0
        self._position = 0
        self._pages: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position, as files do."""
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int) -> int:
        """Set the size; what lies beyond reads as nothing."""
        self.size = size
        return size

    def flush(self) -> None:
        """Do nothing: there is no disk."""

    def read(self, size: int) -> bytes:
        """Return `size` bytes from the position on; what was never written is zero."""
        data = self.at(self._position, size)
        self._position += size
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(len(view))
        return len(view)

    def write(self, data: Any) -> int:
        """Put `data` at the position."""
        view = memoryview(data).cast("B")
        for start, page, inside, length in _spans(self._position, len(view)):
            if page not in self._pages:
                self._pages[page] = bytearray(_PAGE)
            self._pages[page][inside : inside + length] = view[start : start + length]
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    def at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`."""
        out = bytearray(size)
        for start, page, inside, length in _spans(offset, size):
            if page in self._pages:
                out[start : start + length] = self._pages[page][inside : inside + length]
        return bytes(out)


def _spans(offset: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut [offset, offset + size) at page borders: (start in the range, page, start in the page, length)."""
    done = 0
    while done < size:
        page, inside = divmod(offset + done, _PAGE)
        length = min(_PAGE - inside, size - done)
        yield done, page, inside, length
        done += length


class Plan:
    """Where everything lies in an HDF5 file: `pieces` puts the arrays' bytes in."""

    def __init__(self, metadata: Metadata, places: Mapping[str, tuple[int, int]]) -> None:
        self._metadata = metadata
        self._places = places
        self._order = sorted((offset, size, path) for path, (offset, size) in places.items() if size)
        #: The parts between the arrays, in their order: they are the same in every file of this plan.
        self._gaps = list(self._between())
        self.checked = False  #: a file of this plan was opened by HDF5 and looked as it should

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._metadata.size

    def offset(self, path: str) -> int:
        """Return where the bytes of the dataset at `path` begin; 0 for one without bytes."""
        offset, size = self._places[path]
        return offset if size else 0

    def pieces(self, data: Mapping[str, memoryview]) -> Iterator[bytes | memoryview]:
        """Yield the file from its start to its end.

        Args:
            data: path of each dataset -> its bytes; it may be left out where there are none.

        Raises:
            ValueError: these are not as many bytes as were reserved.
        """
        for gap, (_, size, path) in zip(self._gaps, self._order, strict=False):
            if len(data[path]) != size:
                raise ValueError(f"{path} has {size} bytes, not {len(data[path])}")
            yield gap
            yield data[path]
        yield self._gaps[-1]

    def _between(self) -> Iterator[bytes]:
        position = 0
        for offset, size, _ in self._order:
            yield self._metadata.at(position, offset - position)
            position = offset + size
        yield self._metadata.at(position, self._metadata.size - position)


class Layout:
    """An HDF5 file in the making: add datasets, links and attributes, then `close`."""

    def __init__(self) -> None:
        self._metadata = Metadata()
        self._file = h5py.File(self._metadata, "w", alignment_threshold=_LARGE, alignment_interval=_PAGE)
        self._places: dict[str, tuple[int, int]] = {}

    def reserve(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Create a contiguous dataset at `path`; return its offset (0 for one without bytes).

        A dtype of another library (bfloat16 ...) is stored as opaque bytes, as Keras does.
        """
        stored = dtype if dtype.isbuiltin != _FOREIGN else np.dtype(f"V{dtype.itemsize}")
        kind = h5t.py_create(stored, logical=True)
        space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
        parent, _, name = path.rpartition("/")
        group = self._file.require_group(parent) if parent else self._file
        dataset = h5d.create(group.id, name.encode(), kind, space, dcpl=_contiguous())
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        offset = dataset.get_offset() or 0
        self._places[path] = (offset, size)
        return offset

    def link(self, path: str, target: str) -> None:
        """Make `path` another name (a hard link) of the dataset at `target`."""
        self._file[path] = self._file[target]

    def annotate(self, path: str, attributes: Mapping[str, str]) -> None:
        """Set text attributes on the dataset or group at `path`; the group is made where it is missing."""
        place = self._file[path] if path in self._file else self._file.create_group(path)
        for name, text in attributes.items():
            place.attrs[name] = text

    def close(self) -> Plan:
        """Finish the metadata."""
        self._file.close()
        return Plan(self._metadata, self._places)


def _contiguous() -> Any:
    created = h5p.create(h5p.DATASET_CREATE)
    created.set_layout(h5d.CONTIGUOUS)
    created.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5d.FILL_TIME_NEVER)
    created.set_obj_track_times(False)
    return created


def dataset(file: Any, path: str) -> Any:
    """Return the dataset at `path` of an open file, none of its data being read.

    Only hard links and plain contiguous datasets of this very file are followed.

    Raises:
        ValueError: there is none, or it is of another sort.
    """
    found = file
    for name in path.split("/"):
        if found.get(name, getclass=True, getlink=True) is not h5py.HardLink:
            raise ValueError(f"'{path}' is missing, or no hard link")
        found = found[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"'{path}' is no dataset")
    if found.id.get_create_plist().get_layout() != h5d.CONTIGUOUS or found.external:
        raise ValueError(f"'{path}' is not stored contiguously in this file")
    return found
