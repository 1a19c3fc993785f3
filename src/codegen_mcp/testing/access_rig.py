"""A real gRPC server with authentication, certificates, and an issuer of JWTs for tests."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from codegen_mcp.coordinator.auth.token_entry import (
    TokenEntry,
    TokenKind,
    hash_of,
    make_token,
    to_line,
)
from codegen_mcp.coordinator.principal import Quotas

ISSUER = "https://issuer.test"
AUDIENCE = "codegen-test"
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def write_tokens(path: Path, *entries: TokenEntry) -> None:
    """Replace a file of tokens in one step."""
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text("".join(to_line(entry) + "\n" for entry in entries))
    temporary.replace(path)


def new_entry(
    name: str,
    kind: TokenKind = TokenKind.PRINCIPAL,
    *,
    expires_at_ms: int = 0,
    quotas: Quotas | None = None,
) -> tuple[str, TokenEntry]:
    """Make a token and what the file keeps of it."""
    token = make_token()
    entry = TokenEntry(
        name=name, kind=kind, sha256=hash_of(token), expires_at_ms=expires_at_ms, quotas=quotas
    )
    return token, entry


@dataclass(slots=True)
class Issuer:
    """Issues JWTs, and serves its public keys over HTTP while ``serving``."""

    keys: dict[str, SigningKey] = field(default_factory=dict)
    address: str = ""
    fetches: int = 0
    broken: bool = False
    """Answer 500."""

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        """Make a key pair."""
        made: Mapping[str, Any] = {
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self.keys[key_id] = made[algorithm]()

    def jwks(self) -> dict[str, Any]:
        """Return the public keys."""
        return {"keys": [self._public(key_id, key) for key_id, key in self.keys.items()]}

    def _public(self, key_id: str, key: SigningKey) -> dict[str, Any]:
        algorithm = jwt.get_algorithm_by_name(self.algorithm(key))
        shown: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
        return {**shown, "kid": key_id, "use": "sig"}

    @staticmethod
    def algorithm(key: SigningKey) -> str:
        """By the key's type."""
        if isinstance(key, rsa.RSAPrivateKey):
            return "RS256"
        return "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"

    def issue(self, subject: str, *, key_id: str = "", life_s: float = 60.0, **claims: Any) -> str:
        """Sign a token; ``claims`` replace or, by None, remove the usual ones."""
        key_id = key_id or next(iter(self.keys))
        now = datetime.datetime.now(datetime.UTC).timestamp()
        usual = {"sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + life_s}
        body = {name: v for name, v in {**usual, **claims}.items() if v is not None}
        key = self.keys[key_id]
        # Not by ``jwt.encode``, which refuses to sign some of what must be refused.
        headers = {"kid": key_id, "typ": "JWT"}
        data = json.dumps(body).encode()
        return jwt.PyJWS().encode(data, key, algorithm=self.algorithm(key), headers=headers)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve the keys on a free port of loopback."""
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                body = json.dumps(issuer.jwks()).encode()
                self.send_response(500 if issuer.broken else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            self.address = f"http://127.0.0.1:{server.server_address[1]}/jwks"
            try:
                yield self.address
            finally:
                server.shutdown()
                thread.join()


class Authority:
    """A certificate authority of its own, writing PEM files into a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        self._cert = builder.sign(self._key, hashes.SHA256())
        self.ca = directory / f"{name}.pem"
        self.ca.write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def _builder(self, name: x509.Name, key: Any) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(
        self, file: str, common_name: str, *, names: Sequence[x509.GeneralName] = ()
    ) -> tuple[Path, Path]:
        """Write ``file.pem`` and ``file.key``, each in one step; returns both paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key.public_key())
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        cert = builder.sign(self._key, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        paths = self._directory / f"{file}.pem", self._directory / f"{file}.key"
        for path, data in zip(
            paths, (cert.public_bytes(serialization.Encoding.PEM), secret), strict=True
        ):
            temporary = path.with_name(path.name + ".new")
            temporary.write_bytes(data)
            temporary.chmod(0o600)
            temporary.replace(path)
        return paths

    def server(self, file: str = "server") -> tuple[Path, Path]:
        """Issue one for loopback."""
        local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return self.issue(file, "localhost", names=[x509.DNSName("localhost"), local])
