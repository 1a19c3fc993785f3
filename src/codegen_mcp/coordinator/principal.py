"""Who calls: the owner of sessions, and what they may use."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from codegen_mcp.core.errors import Unauthenticated

LOCAL = "local"
"""The name of whoever calls where nobody is asked who they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What one principal may use at once; 0 is without bound."""

    sessions: int = 0
    """Live ones. Those that calls made by themselves count as one together."""
    tasks: int = 0
    """Under way at once."""
    calls_per_minute: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller.

    ``name`` owns what it makes; nobody else sees that, whatever id they guess.
    """

    name: str
    quotas: Quotas = field(default_factory=Quotas)


ANYBODY = Principal(name=LOCAL)
"""Every caller of a coordinator that asks for no token."""

CALLER: ContextVar[Principal | None] = ContextVar("caller", default=None)
"""Set by whatever authenticated the call under way."""


def caller() -> Principal:
    """Return who calls.

    Raises:
        Unauthenticated: Nobody was authenticated in this context.
    """
    found = CALLER.get()
    if found is None:
        raise Unauthenticated("no token was given; send 'authorization: Bearer TOKEN'")
    return found
