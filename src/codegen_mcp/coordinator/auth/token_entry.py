"""One line of a token file, and how tokens are made.

A token has 256 random bits, so one plain SHA-256 is the right hash: slow and salted hashes protect
what can be guessed, and this cannot. ``cgm_`` lets secret scanners find what was leaked.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from codegen_mcp.coordinator.principal import LOCAL, Quotas

PREFIX = "cgm_"
RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/+-]{0,127}\*?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TokenKind(StrEnum):
    """What a token is for."""

    PRINCIPAL = "principal"
    """To use sessions."""
    WORKER = "worker"
    """To join as a worker: as the one of its name, or any whose id begins with what stands before
    a ``*`` at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """A token, as the file has it: never the token itself."""

    name: str
    """The principal's; several tokens may have the same, so that one can be replaced."""
    kind: TokenKind
    sha256: str
    """Of the token's ASCII bytes, hexadecimal."""
    expires_at_ms: int = 0
    """Unix time; 0 is never."""
    quotas: Quotas | None = None
    """None: those that hold for all."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name {self.name!r} must be 1 to 128 of A-Z a-z 0-9 . _ @ / + - and begin with a "
                "letter or digit"
            )
        if self.kind is TokenKind.PRINCIPAL and (self.name.endswith("*") or self.name == LOCAL):
            raise ValueError(f"name {self.name!r} cannot be a principal's")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError("sha256 must be 64 hexadecimal digits")

    def covers(self, worker_id: str) -> bool:
        """Whether a worker of this id may join with it."""
        if self.kind is not TokenKind.WORKER:
            return False
        if self.name.endswith("*"):
            return worker_id.startswith(self.name[:-1])
        return worker_id == self.name


def make_token() -> str:
    """Return a new one."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def hash_of(token: str) -> str:
    """Return what the file keeps of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def to_line(entry: TokenEntry) -> str:
    """Write an entry as one line of JSON."""
    shown: dict[str, Any] = {"name": entry.name, "kind": entry.kind.value, "sha256": entry.sha256}
    if entry.expires_at_ms:
        at = datetime.fromtimestamp(entry.expires_at_ms / 1000, UTC)
        shown["expires"] = at.isoformat().replace("+00:00", "Z")
    if entry.quotas is not None:
        quotas = entry.quotas
        shown["quotas"] = {
            "sessions": quotas.sessions,
            "tasks": quotas.tasks,
            "calls_per_minute": quotas.calls_per_minute,
        }
    return json.dumps(shown)


def from_line(line: str, quotas: Quotas) -> TokenEntry:
    """Read one.

    Args:
        line: JSON.
        quotas: What holds where the line says less.

    Raises:
        ValueError: It is none; names what is wrong, never the line's content.
    """
    try:
        found = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    unknown = set(found) - {"name", "kind", "sha256", "expires", "quotas"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)!r}")
    if not all(isinstance(found.get(key), str) for key in ("name", "sha256")):
        raise ValueError("name and sha256 must be strings")
    return TokenEntry(
        name=found["name"],
        kind=TokenKind(found.get("kind", "principal")),
        sha256=found["sha256"],
        expires_at_ms=_moment(found.get("expires")),
        quotas=None if "quotas" not in found else quotas_of(found["quotas"], quotas),
    )


def _moment(text: object) -> int:
    if text is None:
        return 0
    at = datetime.fromisoformat(text) if isinstance(text, str) else None
    if at is None or at.tzinfo is None:
        raise ValueError("expires must be like 2026-12-31T00:00:00Z")
    return int(at.timestamp() * 1000)


def quotas_of(found: object, default: Quotas) -> Quotas:
    """Read quotas from an object; what it does not name is as by default.

    Raises:
        ValueError: It is no object of such counts.
    """
    names = ("sessions", "tasks", "calls_per_minute")
    if not isinstance(found, Mapping) or set(found) - set(names):
        raise ValueError(f"quotas must be an object with any of {', '.join(names)}")
    values = {name: found.get(name, getattr(default, name)) for name in names}
    for name, value in values.items():
        if type(value) is not int or not 0 <= value <= 1_000_000_000:
            raise ValueError(f"quota {name} must be a whole number from 0 (none)")
    return Quotas(**values)
