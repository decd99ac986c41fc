"""Backups in a bucket of an S3 store. An object is there as a whole when its upload has ended, or not at all.

An upload that a crash cuts off leaves parts that no listing shows: a lifecycle rule of the bucket that aborts
incomplete uploads removes them. One that fails while the process lives may become an object that is not whole; it is
deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from conveyord.core.errors import ConfigError, ConveyordError, Refused, Retryable
from conveyord.storage.backup.stores import PART_BYTES, Stored

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem

KEYS = {
    "s3.access-key-id": "access_key",
    "s3.secret-access-key": "secret_key",
    "s3.session-token": "session_token",
    "s3.region": "region",
}
CONNECT_SECONDS_MAX = 5.0
ATTEMPTS_MAX = 4  # of each request, with waits that double from 25 ms on
NS_PER_SECOND = 1_000_000_000


class BucketStore:
    """See `stores.Store`. prefix: without slashes at its ends, "" for the whole bucket."""

    def __init__(self, bucket: str, prefix: str, properties: Mapping[str, str]) -> None:
        """Raises ConfigError for a property that there is not, or an endpoint that is none."""
        if unknown := properties.keys() - KEYS.keys() - {"s3.endpoint"}:
            raise ConfigError(
                f"backups know no property {min(unknown)!r}; there are {', '.join(sorted([*KEYS, 's3.endpoint']))}"
            )
        self._bucket = bucket
        self._root = f"{bucket}/{prefix}" if prefix else bucket
        self._endpoint = properties.get("s3.endpoint")
        place = urlsplit("https://s3" if self._endpoint is None else self._endpoint)
        if place.scheme not in ("http", "https") or not place.netloc or place.path.strip("/"):
            raise ConfigError(f"s3.endpoint of the backups is {self._endpoint!r}; write https://HOST[:PORT]")
        self._options = {option: properties[key] for key, option in KEYS.items() if key in properties}

    def names(self) -> Mapping[str, Stored]:
        """See `Store`. Raises Refused if there is no such bucket; a prefix that nothing has is empty."""
        from pyarrow.fs import FileSelector, FileType

        with self._telling("listing the backups"):
            (bucket,) = self._files.get_file_info([self._bucket])
            if bucket.type == FileType.NotFound:
                raise self._no_bucket()
            found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
            return {
                info.base_name: Stored(info.size, info.mtime_ns / NS_PER_SECOND)
                for info in found
                if info.type == FileType.File
            }

    def read(self, name: str) -> Iterator[bytes]:
        """See `Store`."""
        with self._telling(f"reading {name}"), self._files.open_input_stream(f"{self._root}/{name}") as stream:
            while part := stream.read(PART_BYTES):
                yield part

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """See `Store`."""
        with self._telling(f"writing {name}"):
            stream = self._files.open_output_stream(f"{self._root}/{name}")
            try:
                for part in parts:
                    stream.write(part)
                stream.close()
            except Exception:
                with suppress(OSError):
                    stream.close()  # pyarrow ends the upload with what came: there is no other way to let go of it
                with suppress(OSError):
                    self._files.delete_file(f"{self._root}/{name}")
                raise

    def delete(self, name: str) -> None:
        """See `Store`."""
        with self._telling(f"deleting {name}"), suppress(FileNotFoundError):
            self._files.delete_file(f"{self._root}/{name}")

    @cached_property
    def _files(self) -> S3FileSystem:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        options: dict[str, object] = dict(self._options)
        if self._endpoint is not None:
            place = urlsplit(self._endpoint)
            options |= {"scheme": place.scheme, "endpoint_override": place.netloc}
        retrying = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS_MAX)
        try:
            return S3FileSystem(connect_timeout=CONNECT_SECONDS_MAX, retry_strategy=retrying, **options)
        except ValueError as error:  # one half of the credentials
            raise ConfigError(f"the properties of the backups do not fit together: {error}") from error

    def _no_bucket(self) -> Refused:
        return Refused(
            f"there is no bucket {self._bucket!r} at {self._at}; create it, or correct the URL of the backups"
        )

    @property
    def _at(self) -> str:
        return self._endpoint or "Amazon S3"

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        from conveyord.storage.lake.store_errors import DENIED, DETAIL_CHARS_MAX, NO_BUCKET, NO_CREDENTIALS

        try:
            yield
        except ConveyordError:
            raise
        except FileNotFoundError as error:
            raise Refused(f"{what}: it is not in s3://{self._root}; see conveyorctl backup list") from error
        except OSError as error:
            text = " ".join(str(error).split())
            detail = text if len(text) <= DETAIL_CHARS_MAX else f"{text[:DETAIL_CHARS_MAX]}…"
            if NO_BUCKET.search(text):
                raise self._no_bucket() from error
            if isinstance(error, PermissionError) or DENIED.search(text) or NO_CREDENTIALS.search(text):
                raise Refused(
                    f"{what}: {self._at} denies access to the bucket {self._bucket!r} ({detail}); check "
                    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.access-key-id and s3.secret-access-key, and "
                    f"that they may read, write, list and delete below s3://{self._root}"
                ) from error
            raise Retryable(
                f"{what}: {self._at} failed for the bucket {self._bucket!r} ({detail}); check the endpoint and the "
                "network, then run again"
            ) from error
