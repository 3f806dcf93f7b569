"""`runner version`: which runner this is."""

from __future__ import annotations

import platform

import runner
from runner.cli import output
from runner.cli.options import JsonOption


def command(json: JsonOption = False) -> None:
    """Print the version."""
    if json:
        output.print_json({"version": runner.__version__, "python": platform.python_version()})
    else:
        print(f"training-runner {runner.__version__}")
