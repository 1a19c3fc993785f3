"""Who a client says it is, and whom it trusts: from the environment, for every connection.

``CODEGEN_MCP_TOKEN`` is the bearer token, or ``CODEGEN_MCP_TOKEN_FILE`` names a file that has it.
``CODEGEN_MCP_CA`` names a PEM file of whom to trust, and turns TLS on; ``CODEGEN_MCP_TLS=true``
trusts the roots that gRPC brings. ``CODEGEN_MCP_CERT`` and ``CODEGEN_MCP_KEY`` name a client
certificate and its key.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio

from codegen_mcp.client.errors import make_error


def open_channel(address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """Open a channel as the environment says.

    Raises:
        InvalidArgumentException: A file that it names cannot be read, or a half is missing.
    """
    credentials = channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def access_token() -> str:
    """Return the bearer token; empty where there is none."""
    path = os.environ.get("CODEGEN_MCP_TOKEN_FILE", "")
    if path:
        return _read("CODEGEN_MCP_TOKEN_FILE", path).decode("ascii", "replace").strip()
    return os.environ.get("CODEGEN_MCP_TOKEN", "").strip()


def channel_credentials() -> grpc.ChannelCredentials | None:
    """Return what TLS needs; None where it is not asked for."""
    names = ("CODEGEN_MCP_CA", "CODEGEN_MCP_KEY", "CODEGEN_MCP_CERT")
    paths = {name: os.environ.get(name, "") for name in names}
    if bool(paths["CODEGEN_MCP_KEY"]) != bool(paths["CODEGEN_MCP_CERT"]):
        raise make_error(
            "INVALID_ARGUMENT", "CODEGEN_MCP_CERT and CODEGEN_MCP_KEY go together; set both"
        )
    wanted = os.environ.get("CODEGEN_MCP_TLS", "").lower() in {"1", "true", "yes", "on"}
    if not wanted and not any(paths.values()):
        return None
    ca, key, cert = (_read(name, paths[name]) if paths[name] else None for name in names)
    return grpc.ssl_channel_credentials(ca, key, cert)


def link_headers(url: str, address: str) -> dict[str, str]:
    """Return what to send along with a link: the token, to whoever gets it with each call anyway.

    Args:
        url: Of the link; a store's own has another host.
        address: ``host:port`` of the service.
    """
    token = access_token()
    parts = urlsplit(url)
    same = parts.hostname is not None and parts.hostname == urlsplit(f"//{address}").hostname
    hidden = parts.scheme == "https" or channel_credentials() is None
    return {"authorization": f"Bearer {token}"} if token and same and hidden else {}


def tls_context() -> ssl.SSLContext:
    """Return what https links are checked by: the usual roots and what the environment adds."""
    context = ssl.create_default_context()
    if ca := os.environ.get("CODEGEN_MCP_CA", ""):
        context.load_verify_locations(cafile=ca)
    if cert := os.environ.get("CODEGEN_MCP_CERT", ""):
        context.load_cert_chain(cert, os.environ.get("CODEGEN_MCP_KEY") or None)
    return context


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise make_error("INVALID_ARGUMENT", f"{name}={path!r}: {error.strerror}") from None


def bearing(channel: grpc.aio.Channel, token: str) -> grpc.aio.Channel:
    """Return what stubs need of a channel, so that each call sends a token (RFC 6750, 2.1)."""
    return cast("grpc.aio.Channel", _Bearing(channel, token))


class _Bearing:
    """Makes a channel's calls with one header more."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._header = ("authorization", f"Bearer {token}")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """``unary_unary`` and so on: the channel's own, with the header added to calls."""
        make = getattr(self._channel, name)

        def made(*arguments: Any, **named: Any) -> Callable[..., Any]:
            call = make(*arguments, **named)

            def send(*sent: Any, metadata: Sequence[tuple[str, str]] = (), **more: Any) -> Any:
                return call(*sent, metadata=(*metadata, self._header), **more)

            return send

        return made
