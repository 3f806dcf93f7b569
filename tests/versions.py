"""Runs the tests that kill trainings with each minor version of Keras: `python -m tests.versions`.

An environment is a folder `build/versions/keras-3.10` that holds the newest Keras 3.10 and nothing else, put
in front of the packages of `.venv`: TensorFlow and the rest are the same for all. It is made once. Exits
with 1 where a version fails, or is not what it is taken for.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "versions"
#: The oldest version that is supported.
OLDEST = (3, 10)
#: What is run by default: some forty lives. With `-- ARGUMENT ...` it can be any other tests.
TESTS = (
    "tests/training/test_exact_resume.py::test_unseeded_arrays",
    "tests/training/test_exact_resume.py::test_streams",
    "tests/training/test_python_data.py::test_data_that_python_code_makes",
)
#: A test waits for many processes, one after the other: here it may take its time.
_PATIENT = ("-o", "timeout=1200")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Result(NamedTuple):
    """How the tests went with one version."""

    name: str  #: "3.10"
    version: str  #: "3.10.0", as the module itself says; "" where it cannot be imported
    passed: bool
    summary: str


def main() -> int:
    """Test what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--only", metavar="3.N,...", help="these versions")
    parser.add_argument(
        "pytest", nargs="*", metavar="-- ARGUMENT", help="for pytest, instead of what is run by default"
    )
    asked = parser.parse_args()
    results = []
    for name in asked.only.split(",") if asked.only else published():
        say(f"== Keras {name}")
        results.append(check(name, asked.pytest or [*TESTS]))
    say(table(results))
    return int(not results or not all(one.passed for one in results))


def published() -> list[str]:
    """List the minor versions that pip finds, the oldest first; those at hand where it finds none."""
    done = subprocess.run([*_pip("index"), "versions", "keras"], check=False, capture_output=True, text=True)
    found = set(re.findall(r"\b(\d+\.\d+)\.\d+\b", done.stdout))
    found = found or {path.name.removeprefix("keras-") for path in FOLDER.glob("keras-*.*")}
    return sorted((name for name in found if _numbers(name) >= OLDEST), key=_numbers)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check", "--no-input"]


def prepare(name: str) -> Path:
    """Return the folder that holds a version, made if need be."""
    folder = FOLDER / f"keras-{name}"
    if not folder.exists():
        partial = FOLDER / f"partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        wanted = ["--quiet", "--no-deps", "--target", str(partial), f"keras=={name}.*"]
        subprocess.run([*_pip("install"), *wanted], check=True)
        partial.rename(folder)
    return folder


def check(name: str, arguments: list[str]) -> Result:
    """Run the tests with one version."""
    environ = {**os.environ, "PYTHONPATH": str(prepare(name)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    version = _version(environ)
    if not version.startswith(f"{name}."):
        return Result(name, version, False, "another version is imported")
    pytest = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "load", *_PATIENT, *arguments]
    lines: list[str] = []
    with subprocess.Popen(pytest, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
            lines.append(line.strip())
    summary = next((line.strip("= ") for line in reversed(lines) if line), "")
    return Result(name, version, process.returncode == 0, summary)


def _version(environ: Mapping[str, str]) -> str:
    code = "import keras; print(keras.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=False, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip()


def table(results: list[Result]) -> str:
    """Return a line for each version."""
    lines = [("KERAS", "RESULT", "TESTS")]
    lines += [(one.version or one.name, "passed" if one.passed else "FAILED", one.summary) for one in results]
    return "\n".join(f"{version:<10}{result:<9}{summary}" for version, result, summary in lines)


if __name__ == "__main__":
    sys.exit(main())
