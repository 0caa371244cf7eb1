"""Names of files in S3, and the fingerprint by which two sides see that they share a bucket."""

import hashlib
from typing import Final

RXON_BLOB_SCHEME: Final = "s3://"


def calculate_config_hash(
    endpoint: str | None, access_key: str | None, bucket: str | None
) -> str | None:
    """16 hex digits that are equal where all three parts are; None if a part is missing."""
    if not (endpoint and access_key and bucket):
        return None
    return hashlib.sha256(f"{endpoint}|{access_key}|{bucket}".encode()).hexdigest()[:16]


def parse_uri(
    uri: str, default_bucket: str | None = None, prefix: str = ""
) -> tuple[str, str, bool]:
    """`(bucket, key, is_directory)` of an `s3://` URI or of a name relative to `prefix`.

    A trailing `/` means a directory. Raises ValueError for a relative name without a bucket.
    """
    is_directory = uri.endswith("/")
    if uri.startswith(RXON_BLOB_SCHEME):
        bucket, _, key = uri.removeprefix(RXON_BLOB_SCHEME).partition("/")
        return bucket, key, is_directory
    if not default_bucket:
        raise ValueError(f"Cannot parse relative path '{uri}' without a default bucket.")
    return default_bucket, prefix + uri.lstrip("/"), is_directory
