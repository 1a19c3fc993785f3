"""TLS for both sides, from PEM files that are read again when they change.

A certificate is renewed by replacing the two files; the next connection gets the new one. A pair
that does not fit is refused with an error in the log, and the last good one stays: half of a
renewal must not end the service.
"""

from __future__ import annotations

import os
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc
import structlog

from codegen_mcp.coordinator.auth.config import ClientTlsConfig, TlsConfig
from codegen_mcp.core.errors import InvalidRequest

log = structlog.get_logger()

Stamp = tuple[tuple[int, ...], ...]


class ServerIdentity:
    """A server's certificate, key and client authority, as the files are now. Thread-safe."""

    def __init__(self, config: TlsConfig) -> None:
        """Read them.

        Raises:
            InvalidRequest: A file cannot be read, or key and certificate are not a pair.
        """
        self._config = config
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._edition = 1
        try:
            self._context, self._for_grpc = self._load()
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequest(f"TLS: {_words(error, config)}") from None

    def grpc(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files; gRPC asks at each handshake."""
        given = self._edition

        def fetch() -> Any:
            nonlocal given
            self._follow()
            if given == self._edition:
                return None  # as it was
            given = self._edition
            return self._for_grpc

        return grpc.dynamic_ssl_server_credentials(
            self._for_grpc,
            fetch,
            require_client_authentication=self._config.client_ca is not None,
        )

    def http(self) -> ssl.SSLContext:
        """Return a context that follows the files at each handshake."""
        self._context.sni_callback = self._renew
        return self._context

    def _renew(self, connection: ssl.SSLObject, name: str | None, used: ssl.SSLContext) -> None:
        """Called after each ClientHello, with or without a name in it."""
        self._follow()
        connection.context = self._context

    def _follow(self) -> None:
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._context, self._for_grpc = self._load()
            except OSError as error:
                log.error("tls.not_reloaded", why=_words(error, self._config))
                return
            self._edition += 1
            log.info("tls.reloaded", cert=str(self._config.cert))

    def _look(self) -> Stamp:
        found: list[tuple[int, ...]] = []
        for path in (self._config.cert, self._config.key, self._config.client_ca):
            if path is None:
                continue
            try:
                stat = os.stat(path)
            except OSError:
                found.append(())
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return tuple(found)

    def _load(self) -> tuple[ssl.SSLContext, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._config.cert, self._config.key)
        if self._config.client_ca is not None:
            context.load_verify_locations(self._config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if os.stat(self._config.key).st_mode & 0o007:
            log.warning("tls.key_open_to_others", key=str(self._config.key), fix="chmod 0600")
        ca = self._config.client_ca
        pair = self._config.key.read_bytes(), self._config.cert.read_bytes()
        for_grpc = grpc.ssl_server_certificate_configuration(
            [pair], None if ca is None else ca.read_bytes()
        )
        return context, for_grpc


def _words(error: OSError, config: TlsConfig) -> str:
    files = [str(p) for p in (config.cert, config.key, config.client_ca) if p is not None]
    if isinstance(error, ssl.SSLError):
        return f"{', '.join(files)} do not fit together: {error.reason or error}"
    return f"{error.filename or ', '.join(files)}: {error.strerror}"


def channel_credentials(config: ClientTlsConfig) -> grpc.ChannelCredentials:
    """Return a client's credentials. Blocks for the files.

    Raises:
        InvalidRequest: A file cannot be read.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_read(config.ca),
        private_key=_read(config.key),
        certificate_chain=_read(config.cert),
    )


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"TLS: {str(path)!r}: {error.strerror}") from None
