"""`env_file`: secrets for a job's environment, read from a file that nobody else may read.

Lines are `KEY=VALUE`; a `#` begins a comment, `export ` before the key and quotes around the whole value are
taken off; nothing is expanded. The shim reads the file at each attempt's start, by itself: standard library
only. No value ever stands in an error, a record, a log or a launch.json; what [env] sets goes before it.
"""

from __future__ import annotations

import os
import stat

_BYTES_MAX = 1024 * 1024
#: A job may not set what the runner sets for every worker, or for some.
RESERVED = frozenset(
    {
        *("RUNNER_HOME", "RUNNER_JOB", "RUNNER_ATTEMPT", "RUNNER_STATE", "RUNNER_RESUME"),
        *("RUNNER_KEEPER", "RUNNER_SPARE", "RUNNER_SPARE_COLD"),
    }
)


class SecretsError(Exception):
    """The file cannot be taken; the text says why and what to do, without a value."""


def read(path: str, shown: str) -> dict[str, str]:
    """Return the variables that the file sets.

    Args:
        path: of the file.
        shown: what to call it in errors.

    Raises:
        SecretsError: it is not there, others could read it, or a line of it is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise SecretsError(f"{shown}: {error.strerror}") from None
    try:
        _check(os.fstat(fd), shown)
        data = b""
        while len(data) <= _BYTES_MAX and (chunk := os.read(fd, 65536)):
            data += chunk
    finally:
        os.close(fd)
    if len(data) > _BYTES_MAX:
        raise SecretsError(f"{shown}: larger than 1 MiB; expected lines KEY=VALUE")
    return _parse(data, shown)


def _check(about: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise SecretsError(f"{shown}: not a regular file")
    if about.st_uid not in {0, os.geteuid()}:
        owner = f"belongs to user {about.st_uid}, while jobs run as user {os.geteuid()}"
        raise SecretsError(f"{shown}: {owner}; chown it to that user or to root")
    if about.st_mode & 0o077:
        raise SecretsError(
            f"{shown}: others may use it (mode {about.st_mode & 0o777:03o}); chmod 600 {shown}"
        )


def _parse(data: bytes, shown: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            raise SecretsError(f"{shown}:{number}: not UTF-8") from None
        if not text or text.startswith("#"):
            continue
        key, equals, value = text.removeprefix("export ").partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key or not key.replace("_", "a").isalnum() or key[0].isdigit() or "\0" in value:
            raise SecretsError(f"{shown}:{number}: expected KEY=VALUE")  # the line may be a secret: not shown
        if key in RESERVED:
            raise SecretsError(f"{shown}:{number}: {key} is set by the runner itself; choose another name")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[key] = value
    return found
