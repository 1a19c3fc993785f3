"""Heads of HTTP messages on their way through: what is dropped, what is refused. RFC 9110, 9112."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import h11

Headers = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
    }
)
"""Between two neighbours only (RFC 9110 section 7.6.1); Expect is answered by the proxy."""
_URL = re.compile(rb"http://([^/?#]*)([^#]*)", re.IGNORECASE)
PHRASES = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    421: b"Misdirected Request",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
}


class BadMessage(Exception):
    """A message that is not passed on: the status to answer, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes, and what stands in its first line there."""

    host: str
    """As asked for; not normal yet."""
    port: int
    target: bytes
    authority: bytes
    """For the Host field."""


def split_authority(authority: bytes, default_port: int) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        BadMessage: It is none, or carries a user.
    """
    if b"@" in authority:
        raise BadMessage(400, "a URL with a user in it is not passed on; send a header")
    text = authority.decode("latin-1")
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, str(default_port)
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise BadMessage(400, "the request names no host and port")
    return host, int(port)


def proxied_route(request: h11.Request) -> Route:
    """Read the absolute URL of a request to a proxy (RFC 9112 section 3.2.2).

    Raises:
        BadMessage: It is none of plain http.
    """
    found = _URL.fullmatch(request.target)
    if found is None:
        raise BadMessage(400, "only http:// URLs are passed on; https goes through CONNECT")
    host, port = split_authority(found[1], 80)
    path = found[2] if found[2].startswith(b"/") else b"/" + found[2]
    return Route(host, port, path, found[1].lower())


def check_framing(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a message whose length two readers could read differently (request smuggling).

    Raises:
        BadMessage: It has both lengths, or several.
    """
    names = [name for name, _ in headers]
    if names.count(b"transfer-encoding") + names.count(b"content-length") > 1:
        raise BadMessage(400, "a message has one length: Content-Length or Transfer-Encoding")


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Leave out what is between neighbours only, and what Connection names."""
    found = list(headers)
    named = {
        token.strip().lower()
        for name, value in found
        if name == b"connection"
        for token in value.split(b",")
    }
    # Whoever names the length or the host here wants it gone for the next reader alone.
    named -= {b"host", b"content-length", b"transfer-encoding"}
    return [(n, v) for n, v in found if n not in _HOP_BY_HOP and n not in named]


def upgrade_of(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields that ask for another protocol (WebSocket), or grant it; empty when none does."""
    values = [value for name, value in headers if name == b"upgrade"]
    if not values:
        return []
    return [(b"upgrade", b", ".join(values)), (b"connection", b"upgrade")]


def refusal(status: int, why: str) -> tuple[h11.Response, bytes]:
    """Make an answer of the proxy's own."""
    body = f"codegen egress proxy: {why}\n".encode("ascii", "replace")
    response = h11.Response(
        status_code=status,
        reason=PHRASES.get(status, b"Error"),
        headers=[
            (b"content-type", b"text/plain"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-codegen-egress", b"refused"),
        ],
    )
    return response, body
