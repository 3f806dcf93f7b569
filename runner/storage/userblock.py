"""The first 512 bytes of a checkpoint: readable with `head -c 512`, and the digest of all the rest.

HDF5 calls them the user block and skips them. A magic line, a line of JSON, padding, and at their very end
the sha256 of what precedes: a flipped byte anywhere, also in the padding, is noticed. Standard library only.

By hand: `tail -c +513 FILE | sha256sum` gives the digest that the header names.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from runner.errors import BadCheckpointError, StorageError

#: The format written here; a higher one is refused.
FORMAT = 1
SIZE = 512

_MAGIC = "training-runner checkpoint "
_DIGEST_SIZE = 64  # hexadecimal digits, followed by the last newline
_BODY_SIZE = SIZE - _DIGEST_SIZE - 1


@dataclass(frozen=True)
class Info:
    """What a checkpoint says of itself in its first bytes."""

    step: int  #: completed steps
    epoch: int
    created: str
    size_bytes: int  #: of the whole file
    sha256: str  #: of all that follows the user block
    manifest_offset: int  #: from the start of the file
    manifest_size: int
    format: int = FORMAT
    metric: str | None = None  #: what a best model was chosen by
    mode: str | None = None  #: "min" or "max"
    value: float | None = None


def render(info: Info) -> bytes:
    """Return the user block.

    Raises:
        StorageError: it does not fit.
    """
    fields = {name: value for name, value in asdict(info).items() if value is not None and name != "format"}
    text = f"{_MAGIC}{info.format}\n{json.dumps(fields, allow_nan=False, separators=(',', ':'))}\n"
    body = text.encode("ascii")
    if len(body) >= _BODY_SIZE:
        raise StorageError(f"a checkpoint's header takes {len(body)} bytes, at most {_BODY_SIZE - 1} fit")
    body = body.ljust(_BODY_SIZE - 1) + b"\n"
    return body + hashlib.sha256(body).hexdigest().encode("ascii") + b"\n"


def parse(block: bytes, path: object) -> Info:
    """Read a user block; `path` is for the message.

    Raises:
        BadCheckpointError: it is damaged, of another format, or no checkpoint's.
    """
    magic, _, rest = block.partition(b"\n")
    if not magic.startswith(_MAGIC.encode("ascii")):
        raise bad(path, f"its first bytes are not '{_MAGIC}{FORMAT}'")
    if len(block) != SIZE:
        raise bad(path, f"it ends within its header of {SIZE} bytes")
    body, digest = block[:_BODY_SIZE], block[_BODY_SIZE:]
    if digest != hashlib.sha256(body).hexdigest().encode("ascii") + b"\n":
        raise bad(path, "its header does not match the header's digest")
    version = magic[len(_MAGIC) :].decode("ascii", "replace")
    if version != str(FORMAT):
        raise BadCheckpointError(
            f"{path}: checkpoint format {version} is not known here (expected {FORMAT}); "
            "use the runner that wrote it, or a newer one"
        )
    return _info(rest.partition(b"\n")[0], path)


def _info(line: bytes, path: object) -> Info:
    try:
        fields = json.loads(line)
        info = Info(**fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise bad(path, f"its header cannot be read ({error})") from None
    for problem in _problems(info):
        raise bad(path, f"its header says {problem}")
    return info


def _problems(info: Info) -> list[str]:
    numbers = ("step", "epoch", "size_bytes", "manifest_offset", "manifest_size", "format")
    found = [f"{name} = {getattr(info, name)!r}" for name in numbers if not _is_count(getattr(info, name))]
    texts = {
        "created": info.created,
        "sha256": info.sha256,
        "metric": info.metric or "",
        "mode": info.mode or "",
    }
    found += [f"{name} = {text!r}" for name, text in texts.items() if not isinstance(text, str)]
    if info.value is not None and not (type(info.value) in (int, float) and math.isfinite(info.value)):
        found.append(f"value = {info.value!r}")
    if not found and info.manifest_offset + info.manifest_size > info.size_bytes:
        found.append("that its manifest ends outside the file")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def bad(path: object, what: str) -> BadCheckpointError:
    """Make the error of a checkpoint that must not be loaded."""
    return BadCheckpointError(f"{path}: not an intact checkpoint: {what}; delete it or restore a copy")
