"""What a script must not do beside the attempt that trains is refused before it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: Does one deed under guard; prints what was refused, and whether anything was changed by then.
PROGRAM = """
import json, os, pathlib, sys
os.chdir(sys.argv[1])
os.mkdir("there")
for name in ("file", "there/file"):
    with open(name, "w") as out:
        out.write("as it was")
loaded = {early}
from runner.training.guard import Guard


class Refused(BaseException):
    pass


said = []


def refuse(deed):
    said.append(deed)
    raise Refused(deed)


def look():
    return sorted((str(one), one.stat().st_size, one.stat().st_mode) for one in pathlib.Path(".").rglob("*"))


before = look()
guard = Guard(refuse)
guard.enter()
try:
    exec(sys.argv[2])
except Refused:
    pass
except BaseException as error:
    if not said:
        said.append(repr(error))
guard.leave()
print(json.dumps([said, look() == before, guard.changed()]), flush=True)
os._exit(0)
"""
DEEDS = {
    "a file": "open('new', 'w')",
    "more in a file": "open('file', 'a')",
    "touch": "pathlib.Path('new').touch()",
    "os.open": "os.open('new', os.O_CREAT | os.O_RDONLY)",
    "rename": "os.replace('file', 'other')",
    "remove": "import shutil; shutil.rmtree('there')",
    "folder": "os.makedirs('new/folder')",
    "time": "os.utime('file')",
    "mode": "os.chmod('file', 0o600)",
    "link": "os.symlink('file', 'new')",
    "fifo": "os.mkfifo('new')",
    "sqlite": "import sqlite3; sqlite3.connect('new')",
    "compressed": "import lzma; lzma.open('new', 'w')",
    "program": "import subprocess; subprocess.run(['touch', 'new'])",
    "fork": "os.fork() or os._exit(0)",
    "child": "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
    "shared memory": "from multiprocessing import shared_memory as m; m.SharedMemory(create=True, size=9)",
    "lock": "import fcntl; fcntl.flock(open('file'), fcntl.LOCK_SH)",
    "connection": "import socket; socket.socket().connect(('127.0.0.1', 9))",
    "by a thread": "import threading as t; t.Thread(target=open, args=('new', 'w')).start(); t._shutdown()",
}
READS = {
    "what is there": "os.makedirs('there', exist_ok=True)",
    "a file": "open('file').read()",
    "a list": "os.listdir('there')",
    "a question": "os.path.exists('nothing')",
    "to nowhere": "open(os.devnull, 'w').write('x')",
}


def guarded(folder: Path, deed: str, early: str = "None") -> tuple[list[str], bool, str]:
    program = PROGRAM.replace("{early}", early)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), deed], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    said, same, changed = json.loads(done.stdout)
    return said, same, changed


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_deed_is_refused_before_it_is_done(tmp_path: Path, deed: str) -> None:
    said, same, _ = guarded(tmp_path, deed)
    assert said
    assert "Error" not in said[0], "it was not refused, but failed"
    assert same


@pytest.mark.parametrize("deed", ["h5py.File('new', 'w')", "h5py.File('file', 'r+')"])
def test_hdf5_files_are_looked_after_too(tmp_path: Path, deed: str) -> None:
    said, same, _ = guarded(tmp_path, f"import h5py; {deed}", "__import__('h5py')")
    assert said
    assert "to write" in said[0] or "create" in said[0]
    assert same


@pytest.mark.parametrize("deed", READS.values(), ids=READS)
def test_what_changes_nothing_may_be_done(tmp_path: Path, deed: str) -> None:
    assert guarded(tmp_path, deed) == ([], True, "")


@pytest.mark.parametrize(
    ("deed", "change"),
    [
        ("open('file').read()", "open('file', 'a').write('more')"),
        ("os.listdir('there')", "open('there/new', 'w')"),
        ("os.path.exists('nothing')", "open('nothing', 'w')"),
        ("os.stat('file')", "os.remove('file')"),
    ],
)
def test_a_change_to_what_was_read_is_found(tmp_path: Path, deed: str, change: str) -> None:
    _, _, changed = guarded(tmp_path, f"{deed}; guard.rest(); guard.leave(); {change}")
    assert changed.startswith(str(tmp_path.resolve()))
