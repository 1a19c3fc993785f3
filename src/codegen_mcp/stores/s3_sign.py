"""Links for one object: Signature Version 4 in the query string.

Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters". obstore signs links
too, but neither headers of a request (so an upload of any length and type would pass) nor those
of the response (so a download could not be given its name).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.stores.s3_config import S3Config

LONGEST_S = 7 * 24 * 3600
_ALGORITHM = "AWS4-HMAC-SHA256"


def presign(
    config: S3Config,
    method: str,
    key: str,
    *,
    expires_s: int,
    now_ms: int,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
) -> str:
    """Make a link.

    Args:
        config: The bucket and who signs.
        method: The only one that the link is good for.
        key: Within the store's prefix.
        expires_s: Good for so long, 1 to LONGEST_S seconds.
        now_ms: From when, Unix milliseconds.
        headers: Lower-case names; the request must have exactly these.
        query: Parameters that are part of what is signed.

    Raises:
        InvalidRequest: ``expires_s``.
    """
    if not 1 <= expires_s <= LONGEST_S:
        raise InvalidRequest(f"a link for {expires_s} s cannot be made; use 1 to {LONGEST_S}")
    base = urlsplit(config.base_url)
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    scope = f"{now:%Y%m%d}/{config.region}/s3/aws4_request"
    signed = dict(sorted({"host": base.netloc, **(headers or {})}.items()))
    parameters = {
        **(query or {}),
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{config.access_key_id}/{scope}",
        "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(signed),
    }
    if config.session_token:
        parameters["X-Amz-Security-Token"] = config.session_token
    path = base.path + "/" + "/".join(filter(None, (config.bucket, config.prefix, key)))
    path = quote(path, safe="/~")
    encoded = sorted(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in parameters.items())
    request = [method, path, "&".join(encoded)]
    request += [f"{name}:{value.strip()}" for name, value in signed.items()]
    request += ["", ";".join(signed), "UNSIGNED-PAYLOAD"]
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = "\n".join([_ALGORITHM, parameters["X-Amz-Date"], scope, digest])
    secret = f"AWS4{config.secret_access_key}".encode()
    for part in scope.split("/"):
        secret = _hmac(secret, part)
    signature = _hmac(secret, text).hex()
    return f"{base.scheme}://{base.netloc}{path}?{'&'.join(encoded)}&X-Amz-Signature={signature}"


def _hmac(secret: bytes, text: str) -> bytes:
    return hmac.digest(secret, text.encode(), "sha256")
