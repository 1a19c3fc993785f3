"""Settings of access: who may, TLS, quotas and the audit log. Part of ``settings.Settings``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from codegen_mcp.coordinator.auth.config import AuthConfig, ClientTlsConfig, JwtConfig, TlsConfig
from codegen_mcp.coordinator.principal import Quotas
from codegen_mcp.telemetry.audit_config import AuditConfig


class AccessSettings(BaseSettings):
    """Who may call, and what is written down of it."""

    auth_tokens: str = ""
    """File of hashed bearer tokens (``codegen-mcp token new``); read again when it changes."""
    auth_jwks: str = ""
    """Keys of an issuer of JWTs: an https address or a path. Needs the two below."""
    auth_jwt_issuer: str = ""
    """Exactly what ``iss`` must be."""
    auth_jwt_audience: str = ""
    """Space-separated; one of them must be in ``aud``."""
    auth_jwt_claim: str = "sub"
    """The claim that names the principal."""
    auth_jwt_quota_claim: str = ""
    """The claim that has quotas (an object with ``sessions``, ``tasks``, ``calls_per_minute``)."""
    auth_certificates: bool = False
    """The name in a verified client certificate is a principal where no token was sent."""
    auth_links: bool = False
    """Links to artifacts need the token of whose they are beside them (``serve`` alone)."""
    quota_sessions: int = Field(default=0, ge=0)
    """Live sessions of a principal for whom nothing else is said; 0 is without bound."""
    quota_tasks: int = Field(default=0, ge=0)
    """Likewise, tasks under way."""
    quota_calls_per_minute: int = Field(default=0, ge=0)
    """Likewise, calls."""

    tls_cert: str = ""
    """PEM file with this server's certificate and its intermediates: serve TLS (gRPC and HTTP)."""
    tls_key: str = ""
    """PEM file with its key."""
    tls_client_ca: str = ""
    """PEM file of who signs client certificates; set, every client must show one."""
    tls_ca: str = ""
    """PEM file of whom to trust as a client (a worker towards its coordinator, and back)."""
    tls_client_cert: str = ""
    """PEM file with the certificate to show as a client."""
    tls_client_key: str = ""
    """PEM file with its key."""

    audit_dir: str = "auto"
    """Where the audit log lies; auto is ``audit`` in the state directory; ``off`` keeps none."""
    audit_required: bool = True
    """Refuse calls that cannot be recorded (a full disk); else they go on and are counted."""
    audit_contents: bool = False
    """Record arguments and results too, not only their digests and sizes."""
    audit_file_bytes: int = Field(default=64 * 1024 * 1024, ge=4096)
    """A file of the audit log that is so long is followed by the next."""
    audit_keep_files: int = Field(default=0, ge=0)
    """Full files of the audit log beyond so many are deleted, the oldest first; 0 keeps all."""
    audit_compress: bool = True
    """Compress files of the audit log that are full."""
    audit_sync_s: float = Field(default=1.0, ge=0, le=3600)
    """Longest time until a record is on the disk; 0: before the call goes on."""

    @model_validator(mode="after")
    def _whole(self) -> AccessSettings:
        """Refuse halves, which would protect nothing."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.auth_certificates and not self.tls_client_ca:
            raise ValueError("auth_certificates needs tls_client_ca, which verifies them")
        if self.auth_links and not (self.auth_tokens or self.auth_jwks):
            raise ValueError("auth_links needs auth_tokens or auth_jwks, whose tokens it asks for")
        jwt = (self.auth_jwks, self.auth_jwt_issuer, self.auth_jwt_audience.strip())
        if any(jwt) and not all(jwt):
            raise ValueError("auth_jwks, auth_jwt_issuer and auth_jwt_audience go together")
        if bool(self.tls_client_cert) != bool(self.tls_client_key):
            raise ValueError("tls_client_cert and tls_client_key go together")
        return self

    @property
    def auth(self) -> AuthConfig:
        """How callers say who they are."""
        jwt = None
        if self.auth_jwks:
            jwt = JwtConfig(
                jwks=self.auth_jwks,
                issuer=self.auth_jwt_issuer,
                audience=tuple(self.auth_jwt_audience.split()),
                claim=self.auth_jwt_claim,
                quota_claim=self.auth_jwt_quota_claim,
            )
        return AuthConfig(
            tokens=Path(self.auth_tokens) if self.auth_tokens else None,
            jwt=jwt,
            certificates=self.auth_certificates,
            quotas=Quotas(
                sessions=self.quota_sessions,
                tasks=self.quota_tasks,
                calls_per_minute=self.quota_calls_per_minute,
            ),
        )

    @property
    def tls(self) -> TlsConfig | None:
        """Of the servers; None serves plaintext."""
        if not self.tls_cert:
            return None
        ca = Path(self.tls_client_ca) if self.tls_client_ca else None
        return TlsConfig(cert=Path(self.tls_cert), key=Path(self.tls_key), client_ca=ca)

    @property
    def client_tls(self) -> ClientTlsConfig | None:
        """Of connections to other parts; None dials plaintext."""
        if not self.tls_ca and not self.tls_client_cert:
            return None
        return ClientTlsConfig(
            ca=Path(self.tls_ca) if self.tls_ca else None,
            cert=Path(self.tls_client_cert) if self.tls_client_cert else None,
            key=Path(self.tls_client_key) if self.tls_client_key else None,
        )

    def audit(self, state: Path) -> AuditConfig | None:
        """Of the audit log; None where it is off.

        Args:
            state: The state directory, for ``auto``.
        """
        if self.audit_dir in {"", "off"}:
            return None
        return AuditConfig(
            directory=state / "audit" if self.audit_dir == "auto" else Path(self.audit_dir),
            required=self.audit_required,
            contents=self.audit_contents,
            file_bytes=self.audit_file_bytes,
            keep_files=self.audit_keep_files,
            compress=self.audit_compress,
            sync_s=self.audit_sync_s,
        )
