"""The authenticator's port: from what a connection shows to a principal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from codegen_mcp.coordinator.principal import Principal
from codegen_mcp.core.errors import Unauthenticated

NO_TOKEN = "no token was given; send 'authorization: Bearer TOKEN'"
BAD_TOKEN = (
    "the token is not valid here: it is wrong, was revoked or its time is over; get a new one from "
    "whoever runs this service (its log says what was wrong)"
)
"""One text for every bad token: which of them it was is the operator's to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end of a connection."""

    address: str = ""
    """As gRPC or the HTTP server names it; only for the log."""
    certificate: str = ""
    """The name in its client certificate, which TLS has verified; empty without one."""


class Authenticator(Protocol):
    """Says who calls."""

    @property
    def asks(self) -> bool:
        """Whether callers must say who they are; False takes everybody as one principal."""

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        """Return who calls.

        Args:
            token: What followed ``Bearer``; None when there was none.
            peer: Where it came from.

        Raises:
            Unauthenticated: No token, or a bad one (always ``BAD_TOKEN``: no hint which).
            Unavailable: It cannot be told now (the issuer's keys cannot be had); never a refusal.
        """


class TokenChecker(Protocol):
    """One sort of token."""

    def knows(self, token: str) -> bool:
        """Whether it looks like one of this sort."""

    async def check(self, token: str) -> Principal:
        """Return whose it is.

        Raises:
            BadToken, Unavailable.
        """


class BadToken(Unauthenticated):
    """A token that is not taken; ``why`` is for the log alone."""

    def __init__(self, why: str) -> None:
        super().__init__(BAD_TOKEN)
        self.why = why
