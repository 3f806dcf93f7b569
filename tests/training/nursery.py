"""Gives birth to processes that have TensorFlow imported already: tests of many lives live these.

Run as a program it reads a JSON line per life (`cwd`, `environ`, `program`, `output`, `errors`), forks before
any operation has run, runs the program as `__main__` in the child, and answers with the child's exit code.

Limits: the import itself happens once; what it leaves in the parent, each life finds.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any


class Nursery:
    """The program, as seen by who asks it for lives; one life at a time."""

    def __init__(self, environ: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def live(self, orders: dict[str, Any]) -> int:
        """Let one life be lived; return its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(orders) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except BaseException:
            self._process.kill()  # else the next life would read the answer of this one
            raise

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _be_born(orders: dict[str, Any]) -> None:
    for number, path in ((1, orders["output"]), (2, orders["errors"])):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, number)
        os.close(fd)
    os.environ.update(orders["environ"])
    os.chdir(orders["cwd"])
    program = orders["program"]
    sys.argv = [program]
    sys.path[0] = str(Path(program).parent)
    runpy.run_path(program, run_name="__main__")


def main() -> None:
    """Fork a child for each line."""
    import keras
    import tensorflow

    assert keras
    assert tensorflow
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            answers.close()
            _be_born(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


if __name__ == "__main__":
    main()
