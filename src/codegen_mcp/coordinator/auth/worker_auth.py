"""Which workers may join: ``RegisterRequest.auth_token``, and the calls that follow it.

A worker token names the worker id that it is for (or, by a ``*`` at its end, the beginning of
several): whoever steals the token of one worker cannot register as another and so take over its
sessions.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from codegen_mcp.coordinator.auth.base import NO_TOKEN, BadToken, Peer
from codegen_mcp.coordinator.auth.config import AuthConfig
from codegen_mcp.coordinator.auth.tokens import TokenFile
from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import InvalidRequest, Unauthenticated

log = structlog.get_logger()


class WorkerGate(Protocol):
    """Lets workers in."""

    @property
    def asks(self) -> bool:
        """Whether workers must show a token."""

    async def admit(self, worker_id: str, token: str | None, peer: Peer) -> None:
        """Return when this worker may speak as ``worker_id``.

        Ask at RegisterWorker with ``auth_token`` (or the call's bearer metadata), and at each
        Heartbeat, DeregisterWorker and TaskStream with the bearer metadata: their messages name
        a worker, and prove nothing.

        Raises:
            Unauthenticated: No token, or a bad one, or one for another worker: one text for all.
            Unavailable: It cannot be told now.
        """


class AnyWorker:
    """Lets every worker in: where callers are not asked who they are either."""

    asks = False

    async def admit(self, worker_id: str, token: str | None, peer: Peer) -> None:
        """Let it in."""


class TokenGate:
    """Lets in who shows a worker token of the file that covers its id."""

    asks = True

    def __init__(self, file: TokenFile) -> None:
        self._file = file

    async def admit(self, worker_id: str, token: str | None, peer: Peer) -> None:
        """Find the token, and whom it is for."""
        if not token:
            raise Unauthenticated(NO_TOKEN)
        try:
            entry = await self._file.entry(token)
            if not entry.covers(worker_id):
                raise BadToken(f"{entry.name}: a {entry.kind} token, not one for {worker_id!r}")
        except BadToken as error:
            log.warning("auth.worker_refused", why=error.why, worker=worker_id, peer=peer.address)
            raise


async def open_worker_gate(config: AuthConfig, clock: Clock) -> WorkerGate:
    """Open the gate that goes with how callers are asked.

    Whoever joins as a worker is sent sessions with all that is in them. So where callers are asked
    who they are, workers show tokens, whatever else (a client certificate, an issuer's token)
    lets callers in.

    Raises:
        InvalidRequest: There is no file of tokens, or it cannot be used.
    """
    if not config.asks:
        return AnyWorker()
    if config.tokens is None:
        raise InvalidRequest(
            "callers are asked who they are, but anybody could join as a worker: name a file of "
            "tokens (AUTH_TOKENS), and give each worker one of them ('codegen-mcp token new "
            "--worker WORKER_ID')"
        )
    file = TokenFile(config.tokens, clock=clock, quotas=config.quotas)
    await file.open()
    return TokenGate(file)
