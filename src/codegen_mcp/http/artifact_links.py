"""Links to artifacts: signed, for one method, one artifact and a while.

``{base}/artifacts/{id}?expires={ms}&size={bytes}&signature={hex}``, ``size`` only for PUT. The
signature is HMAC-SHA256 (RFC 2104) over method, id, expiry and size, one a line; GET's also
permits HEAD. Whoever has a link may use it: there is no other check.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import Forbidden

PATH = "/artifacts/"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_VERSION = "artifact-link-1"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid link permits."""

    artifact_id: str
    size_bytes: int | None
    """Exact length of the upload; None for a download."""


class ArtifactLinks:
    """Makes links and checks them. Implements ``engine.artifacts.base.Links``."""

    def __init__(self, key: bytes, base_url: Callable[[], str], clock: Clock) -> None:
        """Wire it.

        Args:
            key: See ``link_key``.
            base_url: What a client reaches this worker's HTTP server by; asked for each link.
            clock: For expiry.
        """
        self._key = key
        self._base = base_url
        self._clock = clock

    def upload_url(self, artifact_id: str, *, size_bytes: int, expires_at_ms: int) -> str:
        """For PUT of exactly so many bytes, until then."""
        return self._url("PUT", artifact_id, expires_at_ms, size_bytes)

    def download_url(self, artifact_id: str, *, expires_at_ms: int) -> str:
        """For GET and HEAD, until then."""
        return self._url("GET", artifact_id, expires_at_ms, None)

    def check(self, method: str, artifact_id: str, query: Mapping[str, str]) -> Grant:
        """Accept a request by its link.

        Raises:
            Forbidden: The link is none of ours, is for something else, or its time is over.
        """
        method = "GET" if method == "HEAD" else method
        expires, size = query.get("expires", ""), query.get("size", "")
        named = {"expires", "signature"} | ({"size"} if method == "PUT" else set())
        whole = set(query) == named and _NUMBER.fullmatch(expires) is not None
        whole = whole and (method != "PUT" or _NUMBER.fullmatch(size) is not None)
        right = self._sign(method, artifact_id, expires, size)
        given = query.get("signature", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, right.encode()) or not whole:
            raise Forbidden(
                "this link is not valid for this; use it unchanged, with the method that it was "
                "made for"
            )
        if self._clock.unix_ms() >= int(expires):
            raise Forbidden("the time of this link is over; ask for a new one")
        return Grant(artifact_id, int(size) if method == "PUT" else None)

    def _url(self, method: str, artifact_id: str, expires_at_ms: int, size: int | None) -> str:
        expires, length = str(expires_at_ms), "" if size is None else str(size)
        query = {"expires": expires}
        if length:
            query["size"] = length
        query["signature"] = self._sign(method, artifact_id, expires, length)
        return f"{self._base()}{PATH}{artifact_id}?{urlencode(query)}"

    def _sign(self, method: str, artifact_id: str, expires: str, size: str) -> str:
        text = "\n".join((_VERSION, method, artifact_id, expires, size))
        raw = text.encode("utf-8", "surrogatepass")
        return hmac.new(self._key, raw, hashlib.sha256).hexdigest()
