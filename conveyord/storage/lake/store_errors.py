"""What an object store refuses or fails to do, as a sentence that names the setting to look at.

The libraries say which request failed and how; which bucket, at which address and by whose key is in the catalog's
properties. No property that may hold a secret is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlparse

from conveyord.core.errors import ConveyordError, Refused, Retryable

DETAIL_CHARS_MAX = 200  # what a library says of one request; some repeat the whole answer

NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|NOT_FOUND.*=CreateResumableUpload")
DENIED = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE"
    r"|HTTP status 40[13]|Access ?Denied|Forbidden"
)
NO_CREDENTIALS = re.compile(r"Unable to locate credentials|Could not create a OAuth2 access token|default credentials")
UNREACHABLE = re.compile(
    r"NETWORK_CONNECTION|Could not resolve|[Cc]ouldn't resolve|[Cc]ouldn't connect|Could not connect|SSL connect error"
)
_DETAILS = (
    re.compile(r"AWS Error .*?(?=; Details:| \(Request ID:|$)", re.DOTALL),
    re.compile(r"google::cloud::Status\((?P<text>\w+:.*?)(?= error_info=|$)", re.DOTALL),
)


@dataclass(frozen=True, slots=True)
class _Service:
    name: str
    endpoint_key: str
    credentials: str


_S3 = _Service("Amazon S3", "s3.endpoint", "s3.access-key-id and s3.secret-access-key")
_GCS = _Service("Google Cloud Storage", "gcs.service.host", "gcs.oauth2.token or the machine's Google credentials")
SERVICES = {"s3": _S3, "s3a": _S3, "s3n": _S3, "gs": _GCS, "gcs": _GCS}


@contextmanager
def store_errors(what: str, location: str, properties: Mapping[str, str]) -> Iterator[None]:
    """Turn what an object store raises into a sentence about `what`, whose files are below `location`.

    Raises Refused for what somebody must correct, Retryable for what may pass. Everything else, and whatever is
    raised about files that are not in an object store, passes as it is.
    """
    try:
        yield
    except ConveyordError:
        raise
    except Exception as error:  # s3fs lets exceptions of several libraries through; `store_error` picks
        if (told := store_error(what, error, location, properties)) is not None:
            raise told from error
        raise


def store_error(
    what: str, error: Exception, location: str, properties: Mapping[str, str]
) -> Refused | Retryable | None:
    """`error` as a sentence, or None if it is not an object store's. See `store_errors`."""
    place = urlparse(location)
    service = SERVICES.get(place.scheme)
    origin = type(error).__module__.partition(".")[0]
    if service is None or not (isinstance(error, OSError) or origin in ("botocore", "aiobotocore", "aiohttp")):
        return None
    text, bucket = str(error), place.netloc
    at = properties.get(service.endpoint_key, service.name)
    detail = _detail(text)
    if NO_BUCKET.search(text):
        return Refused(
            f"{what}: there is no bucket {bucket!r} at {at}; create it, or correct warehouse and "
            f"{service.endpoint_key} of the catalog"
        )
    if NO_CREDENTIALS.search(text):
        return Refused(
            f"{what}: no credentials were found for the bucket {bucket!r} at {at} ({detail}); give "
            f"{service.credentials}, then run again"
        )
    if isinstance(error, PermissionError) or DENIED.search(text):
        return Refused(
            f"{what}: {at} denies access to the bucket {bucket!r} ({detail}); check {service.credentials}, and that "
            f"they may read, write, list and delete below {location}"
        )
    if UNREACHABLE.search(text):
        return Retryable(
            f"{what}: {at} cannot be reached for the bucket {bucket!r} ({detail}); check {service.endpoint_key} and "
            "the network, then run again"
        )
    return Retryable(f"{what}: {at} failed for the bucket {bucket!r} ({detail}); run again once it answers")


def _detail(text: str) -> str:
    """The part of a library's message that says what happened."""
    for pattern in _DETAILS:
        if (found := pattern.search(text)) is not None:
            text = found.groupdict().get("text") or found[0]
            break
    text = " ".join(text.split()).rstrip(". ")
    return text if len(text) <= DETAIL_CHARS_MAX else f"{text[:DETAIL_CHARS_MAX]}…"
