"""JSON as our files hold it: text that every reader accepts, out of values that any script may have reported.

JSON knows neither infinite numbers nor halves of surrogate pairs, yet a loss becomes NaN and a file name need
not be UTF-8: the former are kept as the strings "Infinity", "-Infinity" and "NaN" (`float` reads them), the
latter become "?". Needs only the standard library: the worker uses it too.
"""

from __future__ import annotations

import json
import math
from typing import Any

#: What JSON allows inside a string, but line-wise readers of text take for the end of a line.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def encode(value: Any, indent: int | None = None) -> bytes:
    """Return `value` as JSON in UTF-8; without `indent` it is one line, and has no newline at its end."""
    try:
        return _dump(value, indent)
    except ValueError:  # a number or a character that JSON does not have
        return _dump(_plain(value), indent)


def decode(data: bytes) -> Any:
    """Return the value of a JSON text; its numbers are finite, see above.

    Raises:
        ValueError: it is not JSON, or nested too deep to be ours.
    """
    try:
        return json.loads(data, parse_constant=str, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _dump(value: Any, indent: int | None) -> bytes:
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return text.translate(_LINE_ENDS).encode()


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else _name(number)


def _name(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _plain(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return _name(value)
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
