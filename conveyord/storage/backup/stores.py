"""Where backups lie: a place with names, in a directory or a bucket. `backups.py` says what the names mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from conveyord.core.errors import ConfigError

PART_BYTES = 1 << 20


class Stored(NamedTuple):
    """One name. modified_at_seconds: Unix time, by the clock of the store."""

    size: int
    modified_at_seconds: float


class Store(Protocol):
    """Blocking. Every method raises Refused for what somebody must correct, StorageFull, or Retryable for the rest."""

    def names(self) -> Mapping[str, Stored]:
        """Everything directly in this place, also what is nobody's backup."""

    def read(self, name: str) -> Iterator[bytes]:
        """The content, in parts."""

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Put a content there, durable on return. What `parts` raises goes on, and the name is not there then.

        Two may put the same one there at a time. A crash may leave a content that is not whole, under the name or under
        that with more behind it, and `.tmp` at its end.
        """

    def delete(self, name: str) -> None:
        """Remove a name, which may be gone already."""


def open_store(url: str, properties: Mapping[str, str]) -> Store:
    """The place that a URL names: `file:///DIRECTORY` or `s3://BUCKET/PREFIX`. Raises ConfigError for anything else.

    properties: for S3, `s3.endpoint`, `s3.region`, `s3.access-key-id`, `s3.secret-access-key`, `s3.session-token`;
    credentials and region that are not given are looked for where Amazon's tools do.
    """
    place = urlsplit(url)
    if place.query or place.fragment:
        raise ConfigError(
            f"{url}: a place for backups has no '?' and no '#'; write file:///DIRECTORY or s3://BUCKET/PREFIX"
        )
    match place.scheme:
        case "file" if place.netloc in ("", "localhost") and place.path.startswith("/"):
            from conveyord.storage.backup.directory_store import DirectoryStore

            return DirectoryStore(unquote(place.path))
        case "s3" if place.netloc:
            from conveyord.storage.backup.bucket_store import BucketStore

            return BucketStore(place.netloc, unquote(place.path).strip("/"), properties)
        case _:
            raise ConfigError(
                f"{url} is no place for backups; write file:///DIRECTORY with the whole path, or s3://BUCKET/PREFIX"
            )
