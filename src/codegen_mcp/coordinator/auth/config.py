"""What decides who may call, and how connections are protected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from codegen_mcp.coordinator.principal import Quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtConfig:
    """Tokens that somebody else issues (RFC 7519)."""

    jwks: str
    """Where the issuer's public keys are (RFC 7517): ``https://...``, or a path."""
    issuer: str
    """Exactly what ``iss`` must be."""
    audience: tuple[str, ...]
    """One of these must be in ``aud``: a token for another service is none for this one."""
    claim: str = "sub"
    """Names the principal."""
    quota_claim: str = ""
    """An object with any of ``sessions``, ``tasks``, ``calls_per_minute``; empty reads none."""
    leeway_s: float = 30.0
    """How far the issuer's clock may be off."""

    def __post_init__(self) -> None:
        for name in ("jwks", "issuer", "claim"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if not self.audience or not all(self.audience):
            raise ValueError("audience must name this service: else any token of the issuer works")
        if not 0 <= self.leeway_s <= 300:
            raise ValueError(f"leeway_s={self.leeway_s!r} must be 0 to 300")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """How callers say who they are; with none of the three, nobody is asked."""

    tokens: Path | None = None
    """A file of hashed tokens: ``tokens.TokenFile``."""
    jwt: JwtConfig | None = None
    certificates: bool = False
    """The verified client certificate of a connection names a principal where no token came."""
    quotas: Quotas = field(default_factory=Quotas)
    """Of principals for whom nothing else is said."""

    @property
    def asks(self) -> bool:
        """Whether callers must say who they are."""
        return self.tokens is not None or self.jwt is not None or self.certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """A server's certificate; PEM files, read again when they change."""

    cert: Path
    """With the intermediate certificates after it."""
    key: Path
    client_ca: Path | None = None
    """Whose clients are let in; None asks for no client certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTlsConfig:
    """What a client checks and shows; PEM files."""

    ca: Path | None = None
    """Whose servers are trusted; None: the roots that gRPC brings."""
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")
