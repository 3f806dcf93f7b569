"""Waits until none of an attempt's processes is listed as using a GPU: the driver may free memory late.

Run by the shim as `python -I -S vacated.py PID ...` after it has seen them all end, where there is an
nvidia-smi. The shim bounds the wait. Exit code 0: none is listed, or nobody can tell.

Limits: nvidia-smi names the processes of this pid namespace only; in some containers it names none.
"""

from __future__ import annotations

import subprocess
import sys
import time

EVERY_S = 0.2
QUERY = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader,nounits")


def main() -> None:
    """Look until they are gone."""
    gone = set(sys.argv[1:])
    while gone & using():
        time.sleep(EVERY_S)


def using() -> set[str]:
    """Return the pids that use a GPU, as nvidia-smi lists them; none where it does not work."""
    try:
        listed = subprocess.run(QUERY, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return set()
    return set(listed.stdout.split())


if __name__ == "__main__":
    main()
