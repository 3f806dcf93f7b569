"""Job arrays: `--set KEY=VALUE,VALUE` as one job for each value, and for each combination of several."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

from runner.cli.staging import Variant
from runner.core.spec import NAME_PATTERN
from runner.errors import UsageError
from runner.settings.overlay import Setting, overlaid
from runner.settings.text import one_line

#: More jobs at once are taken for a slip of the hand.
JOBS_MAX = 10_000
_NAME_MAX = 64
#: What is left of the folder's name where the whole would be too long.
_BASE_MAX = 24
_DIGEST = 8
#: A value: quoted (the quote is doubled within), a list, or anything without a comma.
_VALUE = re.compile(
    r""""((?:[^"]|"")*)"|'((?:[^']|'')*)'|(\[(?:[^\]"']|"[^"]*"|'[^']*')*\])|(?!["'\[])([^,]*)""", re.DOTALL
)


def variants(folder: Path, name: str, options: list[str]) -> list[Variant]:
    """Return the jobs that the options make of the job in `folder`, in their order.

    Raises:
        UsageError: an option cannot be understood, or one of its values not be set.
        BadJobError: the folder's own job.toml cannot be accepted.
    """
    axes = [parsed(option) for option in options]
    twice = [key for key, count in Counter(axis[0].key for axis in axes).items() if count > 1]
    if twice:
        raise UsageError(f"--set {twice[0]}: is given twice; give all its values at once: {twice[0]}=A,B")
    count = math.prod(len(axis) for axis in axes)
    if count > JOBS_MAX:
        raise UsageError(f"--set: that makes {count} jobs; at most {JOBS_MAX} at once")
    for setting in itertools.chain(*axes):
        setting.check(folder)
    made = list(itertools.product(*axes))
    names = _names(name, made)
    return [
        Variant(of, overlaid(folder, one), {setting.key: setting.text for setting in one})
        for of, one in zip(names, made, strict=True)
    ]


def parsed(option: str) -> list[Setting]:
    """Return the settings that one `KEY=VALUE,VALUE` stands for, a job each.

    Raises:
        UsageError: it is not of that form, or names a value twice.
    """
    key, equals, text = option.partition("=")
    if not key or not equals:
        raise UsageError(one_line(f"--set {option}: expected KEY=VALUE or KEY=VALUE,VALUE"))
    found, end = [], -1
    while end < len(text):
        match = _VALUE.match(text, end + 1)
        if match is None or text[match.end() : match.end() + 1] not in {"", ","}:
            raise UsageError(one_line(f"--set {option}: a quote or bracket is not closed; {_QUOTING}"))
        end = match.end()
        found.append(_setting(key, match))
    if any(not one.text and not one.quoted for one in found):
        raise UsageError(one_line(f"--set {option}: a value is empty; for an empty one write '{key}=\"\"'"))
    if len({(one.text, one.quoted) for one in found}) < len(found):
        raise UsageError(one_line(f"--set {option}: a value is given twice"))
    return found


_QUOTING = 'one with commas stands in quotes, which the shell must not take: --set \'layers="64,32","128"\''


def _setting(key: str, match: re.Match[str]) -> Setting:
    double, single, as_list, bare = match.groups()
    if double is not None:
        return Setting(key, double.replace('""', '"'), quoted=True)
    if single is not None:
        return Setting(key, single.replace("''", "'"), quoted=True)
    return Setting(key, as_list or bare or "")


def _names(base: str, made: list[tuple[Setting, ...]]) -> list[str]:
    """Name each job after what was set; what is no name or not its own gets a digest of that."""
    ends = Counter(_end(setting) for setting in made[0])
    told = [base + "".join(_told(setting, ends) for setting in one) for one in made]
    seen = Counter(told)
    return [
        name if seen[name] == 1 and _is_name(name) else _with_digest(base, name, one)
        for name, one in zip(told, made, strict=True)
    ]


def _is_name(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None and not name.endswith(".tmp")


def _end(setting: Setting) -> str:
    """Return the part of the key that tells most; "value" (seed.value) tells nothing."""
    return setting.path[0] if setting.path[-1] == "value" else setting.path[-1]


def _told(setting: Setting, ends: Counter[str]) -> str:
    key = _end(setting) if ends[_end(setting)] == 1 else setting.key
    return "-" + "".join(_plain(part) for part in (key, setting.text))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")


def _with_digest(base: str, name: str, made: tuple[Setting, ...]) -> str:
    what = json.dumps([(one.key, one.text, one.quoted) for one in made])
    digest = hashlib.sha256(what.encode()).hexdigest()[:_DIGEST]
    room = _NAME_MAX - _DIGEST - 1
    short = name if len(name) <= room else (base[:_BASE_MAX] + name[len(base) :])[:room]
    return f"{short}-{digest}"
