"""Settings of an S3 store: an address and the environment variables that AWS names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.masking import masked
from codegen_mcp.stores.base import check_key

MIB = 1024 * 1024
# General purpose bucket naming rules, Amazon S3 User Guide.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """Where the bucket is, who we are, and how long we wait.

    Raises:
        InvalidRequest: A value that cannot be; names the environment variable to set.
    """

    bucket: str
    prefix: str = ""
    """A key or empty; objects lie at ``prefix/key``."""
    endpoint: str = ""
    """``https://host[:port]``; empty is Amazon's of the region. Requests are path-style."""
    region: str = "us-east-1"
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    allow_http: bool = False
    """Accept an endpoint without TLS."""
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 60.0
    """Longest wait for an answer, or for the next bytes of one; also how long a part may take."""
    retry_timeout_s: float = 60.0
    """No new attempt of a request after this long."""
    max_retries: int = 10
    first_retry_s: float = 0.1
    """Wait before the second attempt; then twice as long each time, up to 5 s, with jitter."""
    single_bytes: int = 16 * MIB
    """Larger files are sent in parts."""
    part_bytes: int = 8 * MIB
    """5 MiB or more (Amazon); parts grow as needed to be at most 10,000."""
    parallel_parts: int = 2
    """One upload takes some 30 MB of memory then."""
    copy_bytes: int = 5 * 1024 * MIB
    """Most that the service copies in one request (UploadPartCopy)."""
    staging_kept_s: float = 24 * 3600.0
    """After this long what killed workers left half stored is removed; no upload takes longer."""
    slowest_bytes_per_s: int = 256 * 1024
    """An upload slower than this over its whole length is given up."""

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise InvalidRequest(
                f"S3 bucket {self.bucket!r} is not valid; use s3://bucket/prefix with 3 to 63 "
                "lower-case letters, digits, '.' and '-' for the bucket"
            )
        if self.prefix:
            check_key(self.prefix)
        if not self.access_key_id or not self.secret_access_key:
            raise InvalidRequest(
                f"the S3 store {self.url!r} has no credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise InvalidRequest(
                f"S3 endpoint {masked(self.endpoint)!r} is not valid; set AWS_ENDPOINT_URL to "
                "https://host[:port]"
            )
        if parts.scheme == "http" and not self.allow_http:
            raise InvalidRequest(
                f"S3 endpoint {masked(self.endpoint)!r} has no TLS; use https, or set "
                "AWS_ALLOW_HTTP=true"
            )

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def base_url(self) -> str:
        """Of the service, without a slash at the end."""
        return self.endpoint.rstrip("/") or f"https://s3.{self.region}.amazonaws.com"


def parse_s3_url(url: str, environ: Mapping[str, str]) -> S3Config:
    """Read ``s3://bucket/prefix``; the rest comes from the environment.

    Raises:
        InvalidRequest: It is another address, or a variable is missing.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidRequest(
            f"store {masked(url)!r} is not valid; use s3://bucket/prefix and set "
            "everything else in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        )
    return S3Config(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL", ""),
        region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key_id=environ.get("AWS_ACCESS_KEY_ID", ""),
        secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY", ""),
        session_token=environ.get("AWS_SESSION_TOKEN", ""),
        allow_http=environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
    )
