"""What the keys of job.toml take: a check each, which converts a value or says what was expected."""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from runner.core.best import template_problem
from runner.core.spec import NAME_PATTERN, CadenceUnit, Every, Mode, Nan, Spare
from runner.settings import envfile
from runner.settings.text import is_inside

ARGUMENT_BYTES_MAX = 128 * 1024  # Linux: MAX_ARG_STRLEN
DURATION_S_MAX = 10 * 365 * 86400.0

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_COUNTED = re.compile(r"([0-9]{1,15}) ?(steps?|epochs?)")
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([KMGT]i?B|B)")
_SIZE_UNITS = {"B": 1} | {
    prefix + end: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("B", 1000), ("iB", 1024))
}

#: Takes the value and the job's folder; raises WrongError.
Check: TypeAlias = Callable[[Any, Path], Any]


class WrongError(Exception):
    """A value is not what its key takes; the text goes after the key's name."""


def parse_duration(value: Any) -> float:
    """Return seconds: "500ms", "30s", "1h30m", or a number of seconds.

    Raises:
        ValueError: it is none of these, is not finite, is negative, or is over ten years.
    """
    if isinstance(value, str) and _DURATION.fullmatch(value) and len(value) <= 100:
        seconds = sum(float(count) * _UNITS_S[unit] for count, unit in _DURATION_PART.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(min(value, 10**18)) if isinstance(value, int) else value
    else:
        raise ValueError(value)
    if not 0 <= seconds <= DURATION_S_MAX:
        raise ValueError(value)
    return seconds


def parse_size(value: Any) -> int:
    """Return bytes: "8GiB", "512MB", or a number of bytes.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(value)
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def shown(value: Any) -> str:
    """Quote a value from the file as TOML would, shortened."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = f'"{value[:60]}"'
    else:
        text = (
            repr(value)
            if not isinstance(value, dict | list)
            else "a table"
            if value.__class__ is dict
            else "a list"
        )
    return text if len(text) <= 70 else text[:67] + "..."


def fail(expected: str, value: Any) -> WrongError:
    """Make the error of a value that is not what was expected."""
    return WrongError(f"must be {expected}, not {shown(value)}")


def duration(words: dict[str, float | None] | None = None, *, positive: bool = True) -> Check:
    """Take a duration, or one of `words` with its meaning."""
    words = words or {}
    choices = ['a duration such as "30s" or "1h30m"', *(f'"{word}"' for word in words)]

    def check(value: Any, _folder: Path) -> float | None:
        if isinstance(value, str) and value in words:
            return words[value]
        try:
            seconds = parse_duration(value)
        except ValueError:
            raise fail(" or ".join(choices), value) from None
        if positive and seconds <= 0:
            raise fail("more than zero", value)
        return seconds

    return check


def integer(low: int, high: int) -> Check:
    """Take a whole number within the bounds; a bool is none."""

    def check(value: Any, _folder: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise fail(f"a whole number from {low} to {high}", value)
        return value

    return check


def number(low: float, high: float) -> Check:
    """Take a finite number within the bounds."""

    def check(value: Any, _folder: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise fail(f"a number from {low:g} to {high:g}", value)
        return float(value)

    return check


def every(value: Any, _folder: Path) -> Every:
    """Take a checkpoint cadence."""
    return Every() if value == "auto" else _period(value, "auto")


def archive(value: Any, _folder: Path) -> Every | None:
    """Take what is to be kept for ever: one checkpoint of each period, or "none"."""
    return None if value == "none" else _period(value, "none")


def best_keep(value: Any, folder: Path) -> int | None:
    """Take how many models of a series stay, or "all"."""
    return None if value == "all" else integer(1, 10_000)(value, folder)


def _period(value: Any, word: str) -> Every:
    expected = f'"{word}", or a time, steps or epochs such as "30s", "500 steps" or "1 epoch"'
    if not isinstance(value, str):
        raise fail(expected, value)
    counted = _COUNTED.fullmatch(value)
    if counted and int(counted[1]) > 0:
        unit = CadenceUnit.STEPS if counted[2].startswith("step") else CadenceUnit.EPOCHS
        return Every(unit, float(counted[1]))
    try:
        seconds = parse_duration(value)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise fail(expected, value)
    return Every(CadenceUnit.SECONDS, seconds)


def backoff(value: Any, _folder: Path) -> tuple[float, float]:
    """Take a range of times; one time stands for both ends."""
    expected = 'a range of times such as "1s..60s"'
    if not isinstance(value, str):
        raise fail(expected, value)
    low, dots, high = value.partition("..")
    try:
        least_s = parse_duration(low.strip())
        most_s = parse_duration(high.strip()) if dots else least_s
    except ValueError:
        raise fail(expected, value) from None
    if not 0 < least_s <= most_s:
        raise fail('a range from a shorter to a longer time, such as "1s..60s"', value)
    return least_s, most_s


def size(least: int) -> Check:
    """Take a size of at least that many bytes, a whole number of MiB, or "none"."""

    def check(value: Any, _folder: Path) -> int | None:
        if value == "none":
            return None
        try:
            found = parse_size(value)
        except ValueError:
            raise fail('a size such as "8GiB" or "512MB", or "none"', value) from None
        if found < least:
            raise fail(f"at least {least >> 20}MiB", value)
        return found

    return check


def pids(value: Any, folder: Path) -> int | None:
    """Take how many processes and threads there may be, or "none"."""
    return None if value == "none" else integer(8, 4_194_304)(value, folder)


def reserved_memory(value: Any, folder: Path) -> int:
    """Take a size, or "none": nothing."""
    return size(1024 * 1024)(value, folder) or 0


def gpus(value: Any, folder: Path) -> float:
    """Take a number of GPUs: a share of one, or whole ones."""
    count = float(number(0, 1024)(value, folder))
    if count > 1 and count != int(count):
        raise fail("a share of one, such as 0.5, or a whole number", value)
    return count


def flag(value: Any, _folder: Path) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise fail("true or false", value)
    return value


def mode(value: Any, _folder: Path) -> Mode:
    """Take the direction that is better."""
    if value not in list(Mode) or not isinstance(value, str):
        raise fail('"auto", "min" or "max"', value)
    return Mode(value)


def nan(value: Any, _folder: Path) -> Nan:
    """Take what follows a loss that is not finite."""
    if value not in list(Nan) or not isinstance(value, str):
        raise fail('"ignore", "fail" or "rollback"', value)
    return Nan(value)


def loss_max(value: Any, _folder: Path) -> float | None:
    """Take a bound for the loss, or "none"."""
    if value == "none":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise fail('a number, or "none"', value)
    return float(value)


def spare(value: Any, _folder: Path) -> Spare:
    """Take what waits to take over."""
    if value not in list(Spare) or not isinstance(value, str):
        raise fail('"none", "warm" or "hot"', value)
    return Spare(value)


def text(value: Any, _folder: Path) -> str:
    """Take a metric's name."""
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 200:
        raise fail("the name of a metric", value)
    return value


def exit_codes(value: Any, _folder: Path) -> tuple[int, ...]:
    """Take a list of exit codes other than 0."""
    codes = value if isinstance(value, list) else [None]
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, int) or not 1 <= code <= 255:
            raise fail("a list of exit codes from 1 to 255", value if code is None else code)
    return tuple(codes)


def names(value: Any, _folder: Path) -> tuple[str, ...]:
    """Check a list of jobs' names."""
    if not isinstance(value, list) or not all(
        isinstance(one, str) and re.fullmatch(NAME_PATTERN, one) for one in value
    ):
        raise fail('a list of names of jobs, like ["prepare"]', value)
    return tuple(dict.fromkeys(value))


def strings(value: Any, _folder: Path) -> tuple[str, ...]:
    """Take a list of strings that a program can be given."""
    if not isinstance(value, list):
        raise fail('a list of strings such as ["--epochs", "50"]', value)
    for item in value:
        if not isinstance(item, str):
            raise WrongError(f"must hold strings only, not {shown(item)}; quote it")
        if "\0" in item:
            raise WrongError("must not hold a NUL character")
        if len(item.encode()) >= ARGUMENT_BYTES_MAX:
            raise WrongError("holds a string of 128 KiB or more, which no program can be given")
    return tuple(value)


def env_value(name: str, value: Any) -> str:
    """Take the value of the environment variable `name`."""
    if not name or "=" in name or "\0" in name or not name.isprintable():
        raise WrongError("is not a name that an environment variable may have")
    if name in envfile.RESERVED:
        raise WrongError("is set by the runner itself; choose another name")
    if not isinstance(value, str):
        raise WrongError(f'must be a string; quote it: {name} = "{shown(value)}"')
    return strings([value], Path())[0]


def best(value: Any, _folder: Path) -> str:
    """Take the template of the best models' file names."""
    if not isinstance(value, str):
        example = 'such as "best.weights.h5" or "best-{epoch:02d}-{val_loss:.2f}.keras"'
        raise fail(f"a file name {example}", value)
    problem = template_problem(value)
    if problem:
        raise WrongError(problem)
    return value


# --- files of the job ---------------------------------------------------------------------------------------


def entry(value: Any, folder: Path) -> str:
    """Take the path of a script inside the job's folder."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise fail('the path of a script in the job\'s folder, such as "train.py"', value)
    path = folder / value
    if Path(value).is_absolute() or not is_inside(path, folder):
        raise WrongError(f"must stay inside the job's folder: {shown(value)}")
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise WrongError(f"names {shown(value)}: {error.strerror}") from None
    if not stat.S_ISREG(kind):
        raise WrongError(f"names {shown(value)}, which is not a regular file")
    if not os.access(path, os.R_OK):
        raise WrongError(f"names {shown(value)}, which may not be read; see its permissions")
    return value


def command(value: Any, folder: Path) -> tuple[str, ...]:
    """Take a program and its arguments."""
    words = strings(value, folder)
    if not words or not words[0]:
        raise WrongError('must name a program, such as ["./train.sh", "--big"]')
    if "/" in words[0]:
        _program(words[0], folder)
    elif shutil.which(words[0]) is None:
        raise WrongError(
            f'names {shown(words[0])}, which is not in PATH; for one in the folder write "./..."'
        )
    return words


def env_file(value: Any, folder: Path) -> str:
    """Take the path of a file with secrets, and look whether it will do."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise fail('the path of a file with lines KEY=VALUE, such as "secrets.env"', value)
    if not Path(value).is_absolute() and not is_inside(folder / value, folder):
        raise WrongError(f"must stay inside the job's folder, or be absolute: {shown(value)}")
    try:
        envfile.read(str(folder / value), value)
    except envfile.SecretsError as error:
        raise WrongError(f"cannot be taken: {error}") from None
    return value


def folders(value: Any, folder: Path) -> tuple[str, ...]:
    """Take a list of absolute paths that are there."""
    paths = strings(value, folder)
    for path in paths:
        if not Path(path).is_absolute():
            raise WrongError(f"must hold absolute paths only, not {shown(path)}")
        if not Path(path).exists():
            raise WrongError(f"names {shown(path)}, which is not there; make it first")
    return paths


def python(value: Any, folder: Path) -> str:
    """Take "auto" or the path of an interpreter."""
    if not isinstance(value, str) or "\0" in value or (value != "auto" and "/" not in value):
        raise fail('"auto" or the path of an interpreter, such as "/usr/bin/python3"', value)
    if value != "auto":
        _program(value, folder)
    return value


def _program(value: str, folder: Path) -> None:
    path = folder / value
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise WrongError(f"names {shown(value)}: {error.strerror}") from None
    if not stat.S_ISREG(kind):
        raise WrongError(f"names {shown(value)}, which is not a regular file")
    if not os.access(path, os.X_OK):
        raise WrongError(f"names {shown(value)}, which is not executable; chmod +x it")
