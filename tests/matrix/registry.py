"""The variants of the matrix, read from the scripts without running them.

A variant is a function in `variants/`, under `@variant(NAME, ...)`:

- `seeded`: the script calls `keras.utils.set_random_seed` at its start.
- `inexact`: a part of the reason why its training is not exact: it must be classified so, is not compared.
- `warns`: a part of the warning that it must give.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("variants")


@dataclass(frozen=True)
class Variant:
    """One training, in one shape."""

    script: str
    name: str
    seeded: bool = False
    inexact: str = ""
    warns: str = ""


def variants() -> list[Variant]:
    """Return all variants, in the order of the scripts."""
    found = [one for path in sorted(FOLDER.glob("*.py")) for one in _in_script(path)]
    names = [one.name for one in found]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
    return found


def _in_script(path: Path) -> Iterator[Variant]:
    for node in ast.parse(path.read_text(), path.name).body:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "variant":
                options = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
                yield Variant(path.name, ast.literal_eval(call.args[0]), **options)


def groups(chosen: list[Variant], size: int) -> Iterator[list[Variant]]:
    """Yield variants that may share a process, at most `size` at a time.

    Those that are not exact are kept from the others: they leave other random states behind.
    """
    kinds: dict[tuple[str, bool, bool], list[Variant]] = {}
    for one in chosen:
        kinds.setdefault((one.script, one.seeded, bool(one.inexact)), []).append(one)
    for several in kinds.values():
        count = -(-len(several) // size)
        for part in range(count):
            yield several[part::count]
