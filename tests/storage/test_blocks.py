"""Large files pass the page cache by, and whoever has the file next finds it as any other."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from runner.storage import blocks, durable


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("tail", [0, blocks.BLOCK, 1, blocks.BLOCK + 1, blocks.PIECE])
def test_only_what_is_no_whole_block_goes_through_the_page_cache(
    tail: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(blocks.DIRECT_BYTES_MIN + tail)
    direct: list[bool] = []
    really = durable.write_at

    def noted(fd: int, piece: bytes | memoryview, offset: int) -> int:
        direct.append(is_direct(fd))
        return really(fd, piece, offset)

    monkeypatch.setattr(durable, "write_at", noted)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        writer = blocks.Writer(fd, blocks.BLOCK, len(data))
        if not is_direct(fd):
            pytest.skip("the file system has no direct I/O")
        writer.write(data)
        writer.finish()
        pieces = -(-len(data) // blocks.PIECE)
        assert [one for one in direct if one] == [True] * (pieces - bool(tail % blocks.BLOCK))
        assert not is_direct(fd), "the header comes next, and is no whole block"
        os.pwrite(fd, b"header", 1)
        assert os.pread(fd, len(data) + 1, blocks.BLOCK) == data
    finally:
        os.close(fd)
