"""Settings from the command line over those of a job.toml: checked by the same table, written out as a whole.

A key without a dot is an argument of the script, one with a dot a key of job.toml. The text that comes out
says the same as the one that went in, and what was set; comments and the order of tables are not kept.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import BadJobError, UsageError
from runner.settings import FILE, check_key, resolve
from runner.settings.text import one_line, parse, read
from runner.settings.values import WrongError

_HEADER = f"# {FILE} as `runner submit --set` wrote it: the folder's own, and what was set.\n"
_ARGUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Setting:
    """One key and the text it was given; `quoted` is a string whatever it looks like."""

    key: str
    text: str
    quoted: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        """The key in job.toml; of one part for an argument of the script."""
        return tuple(self.key.split(".", 1))

    @property
    def value(self) -> Any:
        """What job.toml would hold: a number or a list where the text is one, else the text."""
        if len(self.path) == 1 or self.path[0] == "env" or self.quoted:
            return self.text
        return _number_or_list(self.text)

    def check(self, folder: Path) -> None:
        """Make sure that the job in `folder` can be given this.

        Raises:
            UsageError: it cannot.
        """
        try:
            self.text.encode()
            if len(self.path) > 1:
                check_key(self.path, self.value, folder)
            elif not _ARGUMENT.fullmatch(self.key):
                raise WrongError(
                    "expected the name of an argument without its dashes, as in lr=0.1, "
                    "or a key of job.toml, as in restart.budget=3"
                )
        except UnicodeEncodeError:
            raise UsageError(one_line(f"--set {self.key}: its value is not UTF-8 text")) from None
        except WrongError as error:
            raise UsageError(one_line(f"--set {self.key}={self.text}: {error}")) from None


def _number_or_list(text: str) -> Any:
    if "\n" in text or "#" in text:
        return text
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float | list) else text


def overlaid(folder: Path, settings: Iterable[Setting]) -> str:
    """Return the text of the job.toml in `folder` with what is set in it.

    Raises:
        UsageError: together these settings make no job.
        BadJobError: the job.toml itself cannot be accepted.
    """
    given = tuple(settings)
    document = _applied(parse(read(folder) or ""), given)
    text = _HEADER + _written(document)
    if tomllib.loads(text) != document:
        raise AssertionError(f"{FILE} was not written as it is")
    try:
        resolve(text, folder)
    except BadJobError as error:
        said = " ".join(f"{one.key}={one.text}" for one in given)
        why = re.sub(rf"^{re.escape(FILE)}:\d+: ", "", str(error))  # a line of a text that nobody has seen
        raise UsageError(one_line(f"--set {said}: {why}")) from None
    return text


def _applied(document: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    for one in settings:
        if len(one.path) == 1:
            words = "command" if "command" in document else "args"
            document[words] = [*document.get(words, ()), f"--{one.key}", one.text]
        else:
            document.setdefault(one.path[0], {})[one.path[1]] = one.value
    return document


def _written(document: dict[str, Any]) -> str:
    """Write a checked document: plain keys, and tables of plain keys."""
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [f"{_key(key)} = {_text(value)}" for key, value in document.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_text(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _quoted(key)


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _quoted(value)
        case list():
            return f"[{', '.join(_text(item) for item in value)}]"
        case _:
            raise AssertionError(f"no key of {FILE} holds {value!r}")


def _quoted(text: str) -> str:
    """Quote a string: what JSON escapes TOML reads alike, but TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
