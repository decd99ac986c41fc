"""What the libraries of object stores say, recorded, and the class of error that it becomes."""

from __future__ import annotations

import pytest

from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.storage.lake.store_errors import DETAIL_CHARS_MAX, store_error

S3 = ("s3://lake/wh", {"s3.endpoint": "https://s3.example", "s3.secret-access-key": "hush"})
GCS = ("gs://lake/wh", {"gcs.oauth2.token": "hush"})
INITIATING = "When initiating multiple part upload for key 'wh/a' in bucket 'lake': AWS Error "
EXHAUSTED = "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of "


@pytest.mark.parametrize(
    ("place", "error", "kind", "part"),
    [
        (
            S3,
            OSError(f"{INITIATING}NO_SUCH_BUCKET during CreateMultipartUpload"),
            Refused,
            "no bucket 'lake' at https://",
        ),
        (
            S3,
            FileNotFoundError("The specified bucket does not exist"),
            Refused,
            "no bucket 'lake' at https://s3.example",
        ),
        (S3, OSError(f"{INITIATING}ACCESS_DENIED during HeadObject"), Refused, "s3.access-key-id"),
        (S3, PermissionError("Access Denied"), Refused, "s3.access-key-id"),
        (S3, OSError(f"{INITIATING}NETWORK_CONNECTION during HeadObject"), Retryable, "check s3.endpoint"),
        (S3, OSError(f"{INITIATING}UNKNOWN (HTTP status 400) during X"), Retryable, "once it answers"),
        (S3, OSError(f"{INITIATING}INTERNAL_FAILURE during X operation: {'x' * 999}"), Retryable, "x" * 99),
        (
            GCS,
            FileNotFoundError("Status(NOT_FOUND: ... {gcloud-cpp.retry.function=CreateResumableUpload"),
            Refused,
            "no",
        ),
        (
            GCS,
            PermissionError(13, "google::cloud::Status(PERMISSION_DENIED: no"),
            Refused,
            "Google Cloud Storage denies",
        ),
        (GCS, OSError(f"{EXHAUSTED}Could not create a OAuth2 access token"), Refused, "no credentials were found"),
        (GCS, OSError(f"{EXHAUSTED}CURL error [7]=Could not connect to server)"), Retryable, "check gcs.service.host"),
    ],
)
def test_a_store_error_names_bucket_address_and_setting(
    place: tuple[str, dict[str, str]], error: OSError, kind: type[ConveyordError], part: str
) -> None:
    told = store_error("table ns.t", error, *place)
    assert type(told) is kind
    assert str(told).startswith("table ns.t: ")
    assert "'lake'" in str(told)
    assert part in str(told)
    assert "hush" not in str(told)
    assert len(str(told)) < DETAIL_CHARS_MAX + 300


@pytest.mark.parametrize("location", ["file:///tmp/wh", "/tmp/wh", "my warehouse", ""])
def test_errors_about_other_files_are_left_alone(location: str) -> None:
    assert store_error("table ns.t", PermissionError(13, "Permission denied"), location, {}) is None


def test_a_bug_is_not_taken_for_the_store() -> None:
    assert store_error("table ns.t", KeyError("field"), *S3) is None
