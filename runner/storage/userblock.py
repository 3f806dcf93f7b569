"""The beginning of a checkpoint: readable with `head -n 2`, and the digest of all the rest.

HDF5 calls it the user block and skips it. A magic line, a line of JSON, padding, and at the very end the
sha256 of what precedes: a flipped byte anywhere, also in the padding, is noticed. Format 1 takes 512 bytes,
format 2 takes 4096, so that what follows begins with a block of the disk.

By hand: `tail -c +4097 FILE | xxh128sum` gives the digest that the header of format 2 names.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from runner.errors import BadCheckpointError, StorageError

#: The format written here; a higher one is refused.
FORMAT = 2
#: Bytes of the user block, by format.
SIZES = {1: 512, 2: 4096}
SIZE = SIZES[FORMAT]

_MAGIC = "training-runner checkpoint "
_DIGEST_SIZE = 64  # hexadecimal digits, followed by the last newline


@dataclass(frozen=True)
class Info:
    """What a checkpoint says of itself in its first bytes."""

    step: int  #: completed steps
    epoch: int
    created: str
    size_bytes: int  #: of the whole file
    digest: str  #: of all that follows the user block, as `storage.digests` spells it
    manifest_offset: int  #: from the start of the file
    manifest_size: int
    manifest_digest: str = ""  #: none in format 1
    format: int = FORMAT
    metric: str | None = None  #: what a best model was chosen by
    mode: str | None = None  #: "min" or "max"
    value: float | None = None


def render(info: Info) -> bytes:
    """Return the user block, in the newest format.

    Raises:
        StorageError: it does not fit.
    """
    fields = {name: value for name, value in asdict(info).items() if value is not None and name != "format"}
    text = f"{_MAGIC}{info.format}\n{json.dumps(fields, allow_nan=False, separators=(',', ':'))}\n"
    body, room = text.encode("ascii"), SIZE - _DIGEST_SIZE - 1
    if len(body) >= room:
        raise StorageError(f"a checkpoint's header takes {len(body)} bytes, at most {room - 1} fit")
    body = body.ljust(room - 1) + b"\n"
    return body + hashlib.sha256(body).hexdigest().encode("ascii") + b"\n"


def parse(start: bytes, path: object) -> Info:
    """Read a user block.

    Args:
        start: the first bytes of the file, `SIZE` of them where it has so many.
        path: for the message.

    Raises:
        BadCheckpointError: it is damaged, of another format, or no checkpoint's.
    """
    magic, _, rest = start.partition(b"\n")
    if not magic.startswith(_MAGIC.encode("ascii")):
        raise bad(path, f"its first bytes are not '{_MAGIC}{FORMAT}'")
    version = magic[len(_MAGIC) :].decode("ascii", "replace")
    size = SIZES[1] if version == "1" else SIZE
    block = start[:size]
    if len(block) != size:
        raise bad(path, f"it ends within its header of {size} bytes")
    body, digest = block[: size - _DIGEST_SIZE - 1], block[size - _DIGEST_SIZE - 1 :]
    if digest != hashlib.sha256(body).hexdigest().encode("ascii") + b"\n":
        raise bad(path, "its header does not match the header's digest")
    if version not in {str(known) for known in SIZES}:
        raise BadCheckpointError(
            f"{path}: checkpoint format {version} is not known here (expected at most {FORMAT}); "
            "use the runner that wrote it, or a newer one"
        )
    return _info(rest.partition(b"\n")[0], int(version), path)


def _info(line: bytes, version: int, path: object) -> Info:
    try:
        fields = json.loads(line)
        if version == 1:
            fields["digest"] = f"sha256:{fields.pop('sha256')}"
        info = Info(**fields, format=version)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise bad(path, f"its header cannot be read ({error})") from None
    for problem in _problems(info):
        raise bad(path, f"its header says {problem}")
    return info


def _problems(info: Info) -> list[str]:
    numbers = ("step", "epoch", "size_bytes", "manifest_offset", "manifest_size", "format")
    found = [f"{name} = {getattr(info, name)!r}" for name in numbers if not _is_count(getattr(info, name))]
    texts = {
        "created": info.created,
        "digest": info.digest,
        "manifest_digest": info.manifest_digest,
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
