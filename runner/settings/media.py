"""`checkpoint.mirror`: a URL that names a medium we have, checked without touching the network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from runner.settings.values import WrongError, fail, shown

_EXPECTED = 'a URL such as "s3://BUCKET/FOLDER", "sftp://HOST/FOLDER" or "file:///FOLDER"'
_URL_MAX = 1000
#: What a medium's library is found by, beyond what the runner itself needs.
_LIBRARIES = {"file": (), "sftp": ("fsspec", "paramiko"), "s3": ("fsspec", "s3fs")}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def mirror(value: Any, _folder: Path) -> str:
    """Take the URL of a mirror, without a slash at its end."""
    if not isinstance(value, str) or len(value) > _URL_MAX or re.search(r"[\s\\]", value):
        raise fail(_EXPECTED, value)
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise fail(_EXPECTED, value) from None
    if url.password is not None:
        raise WrongError(
            "must not hold a password or a secret key; give it in the daemon's environment or in ~/.ssh"
        )
    if url.scheme not in _LIBRARIES or not value.isprintable():
        raise fail(_EXPECTED, value)
    problem = _problem(url, value)
    if problem:
        raise WrongError(f"{problem}: {shown(value)}; expected {_EXPECTED}")
    missing = [name for name in _LIBRARIES[url.scheme] if importlib.util.find_spec(name) is None]
    if missing:
        raise WrongError(
            f"needs {' and '.join(missing)} for {url.scheme}://; pip install 'training-runner[mirror]'"
        )
    return value.rstrip("/")


def _problem(url: SplitResult, value: str) -> str:
    """Say what is wrong with a URL of a known scheme; "" where nothing is."""
    if "?" in value or "#" in value:
        return "takes no ? and no #"
    if ".." in url.path.split("/"):
        return "must not lead upward with .."
    if url.scheme == "file":
        if url.netloc:
            return "must have three slashes after file"
    elif not url.hostname:
        return f"names no {'bucket' if url.scheme == 's3' else 'host'}"
    if url.scheme == "s3" and not _BUCKET.fullmatch(url.netloc):
        return "is no name of a bucket"
    if url.scheme != "s3" and not url.path.strip("/"):
        return "names no folder"
    return ""
