"""The text of job.toml: read with a bound, decoded, and the line of each of its keys."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from runner.errors import BadJobError

FILE = "job.toml"
SIZE_BYTES_MAX = 1024 * 1024

_KEY_PARTS_MAX = 32
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?!"")(?:\\.|[^"\\\n])*"'
    r"|'(?!'')[^'\n]*'"
    r"|\#[^\n]*|[\[\]{}=.,\n]|[ \t\r]+|[^\s\"'\#\[\]{}=.,]+|[^\"']",
    re.DOTALL,
)
_SEPARATORS = frozenset("\n=,{}[]")


def one_line(text: str) -> str:
    """Make `text` printable on one line, whatever names it quotes."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return safe if len(safe) <= 500 else safe[:497] + "..."


def is_inside(path: Path, folder: Path) -> bool:
    """Tell whether `path`, links followed, lies in `folder`."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def read(folder: Path) -> str | None:
    """Return the text of job.toml, None where there is none."""
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    if path.is_symlink() and not is_inside(path, folder):
        raise BadJobError(f"{FILE}: is a link that leads out of the job's folder; put the file itself there")
    try:
        data = _bytes(path)
    except OSError as error:
        raise BadJobError(f"{FILE}: cannot be read: {error.strerror}") from None
    if len(data) > SIZE_BYTES_MAX:
        raise BadJobError(f"{FILE}: is larger than 1 MiB; a job's settings are a few lines")
    return _decoded(data)


def _bytes(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadJobError(f"{FILE}: must be a regular file")
        data = b""
        while len(data) <= SIZE_BYTES_MAX and (more := os.read(fd, SIZE_BYTES_MAX)):
            data += more
        return data
    finally:
        os.close(fd)


def _decoded(data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadJobError(f"{FILE}:{line}: is not UTF-8 text (byte 0x{data[error.start]:02x})") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadJobError(f"{FILE}:{line}: is not text (it holds a NUL byte)")
    return text


def parse(text: str) -> dict[str, Any]:
    """Parse TOML; a mistake becomes one line with its place."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise BadJobError(f"{FILE}: is nested too deeply") from None
    except ValueError as error:
        found = re.search(r" \(at line (\d+), column \d+\)| \(at end of document\)", str(error))
        line = (found and found[1]) or text.rstrip().count("\n") + 1
        what = str(error).replace(found[0], "") if found else str(error)
        raise BadJobError(one_line(f"{FILE}:{line}: is not valid TOML: {what}")) from None


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Find the line of every key and table of a valid TOML text; of an invalid one, up to the mistake.

    Keys within an inline table have their parent's line and are left out. Linear in the text's length.

    Raises:
        BadJobError: a key has so many parts that parsing it would take for ever.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    statement: list[str] = []
    line, depth, dots, in_value, end = 1, 0, 0, False, 0
    for match in _TOKEN.finditer(text):
        if match.start() != end:  # an unterminated string: tomllib stops here too
            break
        end = match.end()
        token = match[0]
        dots = dots + 1 if token == "." else 0 if token in _SEPARATORS else dots
        if dots >= _KEY_PARTS_MAX:
            raise BadJobError(f"{FILE}:{line}: a key has more than {_KEY_PARTS_MAX} parts")
        if in_value:
            depth += (token in "[{") - (token in "]}")
            in_value = not (token == "\n" and depth <= 0)
        elif token == "\n" or token == "=":
            is_table = statement[:1] == ["["]
            key = tuple(part for part in statement if part not in "[].")
            if key:
                lines.setdefault(key if is_table else (*table, *key), line)
            table = key if is_table else table
            statement, depth, in_value = [], 0, token == "="
        elif not token.startswith("#") and not token.isspace():
            statement.append(token[1:-1] if token[0] in "\"'" else token)
        line += token.count("\n")
    return lines
