"""A prefix in an S3 bucket (fsspec, s3fs); credentials and endpoint come from where the AWS tools have them.

Putting an object is atomic: it is there whole, under its own name, or not at all. What is read back and is
not what was sent is removed again. A process that is killed while it uploads a large file in parts leaves
parts that no listing shows; a rule of the bucket (AbortIncompleteMultipartUpload) clears them away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import aiohttp
import botocore.exceptions
import s3fs

from runner.errors import MirrorError
from runner.mirror.medium import CONNECT_S, PIECE, SILENCE_S, BadCopyError, Check

_FAILURES = (
    *(OSError, EOFError, ValueError, aiohttp.ClientError),  # a TimeoutError is an OSError
    *(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError),
)


class Objects:
    """A place in a bucket."""

    def __init__(self, bucket: str, prefix: str, name: str) -> None:
        self._dir = "/".join(part for part in (bucket, prefix, name) if part)
        with self._told(bucket):
            self._fs = s3fs.S3FileSystem(
                skip_instance_cache=True,
                use_listings_cache=False,
                default_block_size=PIECE,
                config_kwargs={
                    "connect_timeout": CONNECT_S,
                    "read_timeout": SILENCE_S,
                    "retries": {"max_attempts": 2},
                },
            )
            self._fs.retries = 2
            try:
                self._fs.call_s3("head_bucket", Bucket=bucket)
            except FileNotFoundError:
                raise MirrorError(f"s3://{bucket}: there is no such bucket") from None

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the objects below a prefix with their sizes."""
        path = f"{self._dir}/{folder}"
        with self._told(path), contextlib.suppress(FileNotFoundError):
            found = self._fs.ls(path, detail=True, refresh=True)
            files = [one for one in found if one["type"] == "file"]
            return {one["name"].rpartition("/")[2]: int(one["size"]) for one in files}
        return {}

    def read(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes."""
        path = f"{self._dir}/{name}"
        with self._told(path), self._fs.open(path, "rb", cache_type="none") as file:
            while piece := file.read(PIECE):
                yield piece

    def put(self, name: str, fd: int, check: Check) -> None:
        """Publish an object, and read it back."""
        path = f"{self._dir}/{name}"
        with self._told(path):
            self._fs.put_file(f"/proc/self/fd/{fd}", path)
        try:
            check(self.read(name))
        except BadCopyError:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Remove an object."""
        path = f"{self._dir}/{name}"
        with self._told(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def sweep(self, folder: str) -> None:
        """Do nothing: nothing half-written is ever seen."""

    def close(self) -> None:
        """Leave it to the library, which closes its connections by itself."""

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Make a MirrorError of what the server or the library says."""
        try:
            yield
        except (FileNotFoundError, MirrorError):
            raise
        except _FAILURES as error:
            raise MirrorError(
                f"s3://{path}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error
