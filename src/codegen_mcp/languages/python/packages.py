"""Settings of package installs, and what a package index is."""

from __future__ import annotations

import base64
import hashlib
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from codegen_mcp.core.errors import Forbidden, InvalidRequest
from codegen_mcp.core.limits import GIB
from codegen_mcp.sandbox.base import HostIdentity

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageConfig:
    """How packages reach sessions."""

    wheelhouse: Path
    """Directory of verified wheels, mounted read-only in every session; made when missing."""
    staging: Path
    """Directory in which the fetcher works; made when missing, emptied at the start."""
    uv: Path
    """The uv binary, readable by the fetcher's user."""
    index_urls: tuple[str, ...] = ()
    """PEP 503 indexes, the first is the default; empty: the default index of the worker's pip."""
    cache_bytes: int = 1 * GIB
    """Size of the fetcher's scratch file system (memory, only as far as it is used)."""
    file_hosts: tuple[str, ...] = ()
    """``host:port`` of further servers that hold the indexes' files, exempt from the rule against
    private addresses. Those that an index links to are found without this."""
    offline: bool = False
    """Only what the wheelhouse has, the wheels in its ``local`` directory included."""
    ca_bundle: Path | None = None
    """PEM file of certificate authorities; None: that of Python's ssl module (SSL_CERT_FILE)."""
    ttl_s: float = 600.0
    """For how long names without an exact version are not asked for again."""
    max_bytes: int = 4 * GIB
    """Size of the wheelhouse; what was not used for longest goes first."""
    max_file_bytes: int = 1 * GIB
    max_fetch_bytes: int = 2 * GIB
    """Bytes that one fetch may bring in."""
    max_fetches: int = 4
    """Fetches at once."""
    fetch_timeout_s: float = 300.0
    fetch_identity: HostIdentity | None = None
    """The fetcher's own user; needed where the worker is root, else None."""
    bubblewrap: Path | None = None
    """bwrap, for the fetcher's sandbox; None: the fetcher is confined by its user alone."""

    @classmethod
    def below(cls, state: Path, **settings: Any) -> PackageConfig:
        """Return settings with the usual places in a worker's state directory."""
        return cls(
            wheelhouse=state / "wheels",
            staging=state / "fetch",
            uv=state / "tools" / "uv",
            **settings,
        )

    def __post_init__(self) -> None:
        for name in ("ttl_s", "max_bytes", "max_file_bytes", "max_fetch_bytes", "max_fetches"):
            if getattr(self, name) <= 0:
                raise InvalidRequest(f"package setting {name}={getattr(self, name)!r} is not > 0")
        for url in self.index_urls:
            Index.parse(url)

    @property
    def authorities(self) -> Path | None:
        """The certificate authorities to trust, None where Python knows no file of them."""
        found = self.ca_bundle or ssl.get_default_verify_paths().cafile
        return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Index:
    """One package index of the operator."""

    url: str
    """With credentials, if it has them: a secret."""
    public_url: str = field(compare=False)
    """Without credentials and final slash."""
    host: str = field(compare=False)
    port: int = field(compare=False)

    @classmethod
    def parse(cls, url: str) -> Index:
        """Read an operator's URL.

        Raises:
            InvalidRequest: It is no http or https URL with a host.
        """
        try:
            parts = urlsplit(url.strip())
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            parts, port = SplitResult("", "", "", "", ""), 0
        if not port or not parts.hostname or parts.query or parts.fragment:
            shown = _without_credentials(parts) if parts.hostname else url
            raise InvalidRequest(
                f"package index {shown!r} is not usable; give an http or https URL such as "
                "https://packages.example/simple"
            )
        return cls(
            url=url.strip().rstrip("/"),
            public_url=_without_credentials(parts),
            host=parts.hostname.lower().rstrip("."),
            port=port,
        )

    @property
    def id(self) -> str:
        """Short name of the directory with its files; the same for every set of credentials."""
        return hashlib.sha256(self.public_url.encode()).hexdigest()[:16]

    @property
    def origin(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request to the index itself."""
        parts = urlsplit(self.url)
        if parts.username is None and parts.password is None:
            return {}
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    def page(self, project: str) -> str:
        """URL of a project's page, without credentials."""
        return f"{self.public_url}/{project}/"

    def hide_secrets(self, text: str) -> str:
        """Take the credentials out of a tool's words."""
        parts = urlsplit(self.url)
        if parts.username is None and parts.password is None:
            return text
        text = text.replace(parts.netloc.rpartition("@")[0] + "@", "")
        for secret in filter(None, (parts.password,)):
            text = text.replace(secret, "****")
        return text


def choose_index(configured: tuple[Index, ...], url: str) -> Index:
    """Return the configured index that a request means; empty means the first.

    Raises:
        Forbidden: It is none of them.
    """
    if not url:
        return configured[0]
    try:
        asked = Index.parse(url)
    except InvalidRequest:
        asked = None
    for index in configured:
        if asked is not None and asked.public_url == index.public_url:
            return index
    raise Forbidden(
        f"index_url {url[:200]!r} is not one of this worker's package indexes; leave it empty or "
        f"use one of {[index.public_url for index in configured]!r}",
        reason="INDEX_NOT_ALLOWED",
        metadata={"allowed": " ".join(index.public_url for index in configured)},
    )


def _without_credentials(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    netloc = f"[{host}]" if ":" in host else host
    if parts.port and parts.port != _PORTS.get(parts.scheme):
        netloc += f":{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
