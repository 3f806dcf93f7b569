"""The names that a function's code uses, read from its bytecode."""

from __future__ import annotations

import dis
import functools
import types
from typing import Any, NamedTuple


class Attributes(NamedTuple):
    """The attributes that code uses, of whatever object."""

    mentioned: frozenset[str]
    assigned: frozenset[tuple[Any, str]]  #: to what, and the name; a variable is given by its name


#: To what code may assign an attribute: its first argument; the class of something; something else.
FIRST, ITS_CLASS, SOMETHING = object(), object(), object()


@functools.lru_cache(maxsize=4096)
def attributes_in(code: types.CodeType) -> Attributes:
    """Return the attributes that a function's code uses, nested code too."""
    first = next(iter(code.co_varnames[: code.co_argcount]), None)
    instructions = [one for one in dis.get_instructions(code) if one.opname not in {"CACHE", "EXTENDED_ARG"}]
    asks_type = "type" in code.co_names
    mentioned: set[str] = set()
    assigned: set[tuple[Any, str]] = set()
    for index, one in enumerate(instructions):
        if one.opname in {"STORE_ATTR", "DELETE_ATTR"}:
            assigned.add((_receiver(instructions, index, first, asks_type), str(one.argval)))
        if one.opname in {"STORE_ATTR", "DELETE_ATTR", "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}:
            mentioned.add(str(one.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = attributes_in(constant)
            mentioned |= inner.mentioned
            assigned |= {(SOMETHING if one is FIRST else one, name) for one, name in inner.assigned}
    return Attributes(frozenset(mentioned), frozenset(assigned))


def _receiver(instructions: list[dis.Instruction], index: int, first: str | None, asks_type: bool) -> Any:
    """Return to what an instruction assigns an attribute."""
    before = index - 1
    if instructions[before].opname == "SWAP":  # `x.name += 1`: x was copied, to be read first
        before = next(
            (
                earlier - 2
                for earlier in range(before, 1, -1)
                if instructions[earlier].argval == instructions[index].argval
                and instructions[earlier].opname == "LOAD_ATTR"
                and instructions[earlier - 1].opname == "COPY"
            ),
            before,
        )
    one = instructions[before]
    # From Python 3.13 on one instruction may load two variables.
    name = one.argval[-1] if isinstance(one.argval, tuple) else one.argval
    if one.opname.startswith("LOAD_FAST"):
        return FIRST if name == first else SOMETHING
    if one.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}:
        return str(name)
    if (one.opname == "LOAD_ATTR" and name == "__class__") or (one.opname == "CALL" and asks_type):
        return ITS_CLASS
    return SOMETHING


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the global names that a function's code reads (nested code too), and those that it rebinds."""
    read: dict[str, None] = {}
    written: set[str] = set()
    for one in dis.get_instructions(code):
        if one.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            read[str(one.argval)] = None
        elif one.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            read[str(one.argval)] = None
            written.add(str(one.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_read, inner_written = global_names(constant)
            read.update(dict.fromkeys(inner_read))
            written |= inner_written
    return tuple(read), frozenset(written)
