"""What a job asks for: `job.toml` read, checked and resolved into a `JobSpec`.

Whatever lies in a job's folder, `load_spec` returns a spec or raises `BadJobError` with one line that names
the file, the line, the key, what was expected and the nearest valid key. It never blocks (a FIFO called
job.toml), never reads without bound, and never leaves the job's folder.

The keys stand in one table, `KEYS`, each with a check of its own that knows the job's folder. pydantic, which
reads the records, has no part in it.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.best import fields
from runner.core.spec import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    CheckpointSpec,
    IsolationSpec,
    JobSpec,
    LimitsSpec,
    ResourcesSpec,
    RestartSpec,
    Spare,
)
from runner.errors import BadJobError
from runner.settings import media, values
from runner.settings.text import FILE, key_lines, one_line, parse, read

__all__ = ["FILE", "KEYS", "TABLES", "check_key", "load_spec", "resolve"]


@dataclass(frozen=True)
class Key:
    """A key of job.toml: the field of the spec it fills, and its check."""

    field: str
    check: values.Check


TABLES = ("env", "checkpoint", "restart", "limits", "resources", "isolation", "seed")
KEYS = {
    "entry": Key("entry", values.entry),
    "command": Key("command", values.command),
    "python": Key("python", values.python),
    "args": Key("args", values.strings),
    "priority": Key("priority", values.integer(PRIORITY_MIN, PRIORITY_MAX)),
    "after": Key("after", values.names),
    "env_file": Key("env_file", values.env_file),
    "checkpoint.every": Key("every", values.every),
    "checkpoint.keep": Key("keep", values.integer(1, 10_000)),
    "checkpoint.monitor": Key("monitor", values.text),
    "checkpoint.mode": Key("mode", values.mode),
    "checkpoint.best": Key("best", values.best),
    "checkpoint.mirror": Key("mirror", media.mirror),
    "checkpoint.best_keep": Key("best_keep", values.best_keep),
    "checkpoint.archive": Key("archive", values.archive),
    "restart.budget": Key("budget", values.integer(0, 1_000_000)),
    "restart.backoff": Key("backoff", values.backoff),
    "restart.fatal_exit_codes": Key("fatal_exit_codes", values.exit_codes),
    "restart.retry_exit_codes": Key("retry_exit_codes", values.exit_codes),
    "restart.spare": Key("spare", values.spare),
    "limits.hang": Key("hang_s", values.duration({"auto": None, "none": math.inf})),
    "limits.startup": Key("startup_s", values.duration()),
    "limits.grace": Key("grace_s", values.duration(positive=False)),
    "limits.wall": Key("wall_s", values.duration({"none": None})),
    "limits.memory": Key("memory_bytes", values.size(1024 * 1024)),
    "limits.pids": Key("pids", values.pids),
    "limits.log": Key("log_bytes", values.size(4 * 1024 * 1024)),
    "limits.nan": Key("nan", values.nan),
    "limits.nan_rollbacks": Key("nan_rollbacks", values.integer(0, 1000)),
    "limits.nan_learning_rate": Key("nan_learning_rate", values.number(0, 1)),
    "limits.loss_max": Key("loss_max", values.loss_max),
    "resources.cpus": Key("cpus", values.number(0, 4096)),
    "resources.gpus": Key("gpus", values.gpus),
    "resources.memory": Key("memory_bytes", values.reserved_memory),
    "resources.preemptible": Key("preemptible", values.flag),
    "isolation.write": Key("write", values.folders),
    "seed.value": Key("seed", values.integer(0, 2**32 - 1)),
}


def load_spec(folder: Path) -> JobSpec:
    """Resolve the settings of the job in `folder`.

    Raises:
        BadJobError: the folder or its job.toml cannot be accepted, with one line that says why.
    """
    if not folder.is_dir():
        raise BadJobError(one_line(f"{folder}: no such folder"))
    text = read(folder)
    return JobSpec(entry=_default_entry(folder)) if text is None else resolve(text, folder)


def resolve(text: str, folder: Path) -> JobSpec:
    """Resolve the text of a job.toml as if it were that of the job in `folder`.

    Raises:
        BadJobError: it cannot be accepted, with one line that says why.
    """
    lines = key_lines(text)
    given = _checked(parse(text), lines, folder)
    _check_together(given, lines)
    if "entry" not in given and "command" not in given:
        given["entry"] = _default_entry(folder)
    return _spec(given)


def _default_entry(folder: Path) -> str:
    if not os.path.lexists(folder / "train.py"):
        raise BadJobError(
            one_line(f"{folder.name}: there is no train.py, and no {FILE} that names an entry or a command")
        )
    try:
        return values.entry("train.py", folder)
    except values.WrongError as error:
        raise BadJobError(one_line(f"{folder.name}: the entry train.py {error}")) from None


def _checked(document: dict[str, Any], lines: dict[tuple[str, ...], int], folder: Path) -> dict[str, Any]:
    """Check every key; return the converted values by dotted name."""
    given: dict[str, Any] = {}
    for path, value in _walk(document, ()):
        try:
            checked = check_key(path, value, folder)
        except values.WrongError as error:
            raise BadJobError(one_line(f"{FILE}:{_line_of(path, lines)}: {error}")) from None
        if path[0] == "env":
            given.setdefault("env", {})[path[1]] = checked
        else:
            given[".".join(path)] = checked
    return given


def check_key(path: tuple[str, ...], value: Any, folder: Path) -> Any:
    """Return the value of one key as the spec holds it.

    Raises:
        values.WrongError: there is no such key, or it does not take that; the text names the key.
    """
    name = ".".join(path)
    try:
        if path[0] == "env" and len(path) == 2:
            return values.env_value(path[1], value)
        if name in KEYS:
            return KEYS[name].check(value, folder)
        if name in TABLES:
            raise values.WrongError(f"must be a table, [{name}]")
    except values.WrongError as error:
        raise values.WrongError(f"{name} {error}") from None
    raise values.WrongError(_unknown(path))


def _walk(document: dict[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value), descending into the known tables only."""
    for key, value in document.items():
        path = (*prefix, key)
        if len(path) == 1 and key in TABLES and isinstance(value, dict):
            yield from _walk(value, path)
        else:
            yield path, value


def _line_of(path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> int:
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def _unknown(path: tuple[str, ...]) -> str:
    name, last = ".".join(path)[:200], path[-1][:100]
    known = [*KEYS, *TABLES] if len(path) == 1 else [*KEYS]
    ends = {key.rpartition(".")[2]: key for key in reversed(known)}
    near = [ends[last]] if last in ends else difflib.get_close_matches(name, known, 1, 0.7)
    if not near:
        near = [ends[end] for end in difflib.get_close_matches(last, ends, 1, 0.75)]
    if near:
        return f"unknown key {name}; did you mean {near[0]}?"
    table = path[0] if path[0] in TABLES else ""
    here = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == table]
    return f"unknown key {name}; {f'[{table}]' if table else 'a job'} takes {', '.join(here)}"


def _check_together(given: dict[str, Any], lines: dict[tuple[str, ...], int]) -> None:
    template = given.get("checkpoint.best", CheckpointSpec.best)
    if given.get("checkpoint.best_keep") is not None and not fields(template):
        where = f"{FILE}:{_line_of(('checkpoint', 'best_keep'), lines)}"
        series = 'best = "best-{epoch:03d}.weights.h5"'
        raise BadJobError(f"{where}: checkpoint.best_keep is for a series of files, such as {series}")
    if given.get("restart.spare", Spare.NONE) is not Spare.NONE:
        where = f"{FILE}:{_line_of(('restart', 'spare'), lines)}: restart.spare"
        if "command" in given:
            raise BadJobError(f"{where} is for a Python script; name it as entry, not in command")
        for key in ("env_file", "isolation.write"):
            if given.get(key) is not None:
                raise BadJobError(f"{where} has no effect beside {key}, which only a new process can have")
    twice = {*given.get("restart.fatal_exit_codes", ())} & {*given.get("restart.retry_exit_codes", ())}
    if twice:
        where = f"{FILE}:{_line_of(('restart', 'retry_exit_codes'), lines)}"
        both = f"restart.retry_exit_codes and restart.fatal_exit_codes both hold {min(twice)}"
        raise BadJobError(f"{where}: {both}; keep it in one of them")
    if "command" not in given:
        return
    for key, remedy in (
        ("entry", "keep one of the two"),
        ("args", "append them to command"),
        ("python", "name the interpreter in command"),
    ):
        if key in given:
            where = f"{FILE}:{_line_of((key,), lines)}"
            raise BadJobError(f"{where}: {key} has no meaning beside command; {remedy}")


def _spec(given: dict[str, Any]) -> JobSpec:
    def section(name: str) -> dict[str, Any]:
        return {KEYS[key].field: value for key, value in given.items() if key.startswith(name + ".")}

    restart = section("restart")
    if "backoff" in restart:
        restart["backoff_min_s"], restart["backoff_max_s"] = restart.pop("backoff")
    plain = {KEYS[key].field: value for key, value in given.items() if "." not in key and key != "env"}
    return JobSpec(
        **({"entry": None} | plain),
        env=given.get("env", {}),
        checkpoint=CheckpointSpec(**section("checkpoint")),
        restart=RestartSpec(**restart),
        limits=LimitsSpec(**section("limits")),
        resources=ResourcesSpec(**section("resources")),
        isolation=IsolationSpec(**section("isolation")),
        seed=given.get("seed.value"),
    )
