"""All that may name a principal, behind one ``Authenticator``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from codegen_mcp.coordinator.auth.base import NO_TOKEN, Authenticator, BadToken, Peer, TokenChecker
from codegen_mcp.coordinator.auth.config import AuthConfig
from codegen_mcp.coordinator.auth.tokens import TokenFile
from codegen_mcp.coordinator.principal import ANYBODY, Principal, Quotas
from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import Unauthenticated

log = structlog.get_logger()


class Anybody:
    """Takes every caller as the same principal: for loopback."""

    asks = False

    def __init__(self, quotas: Quotas | None = None) -> None:
        self._principal = ANYBODY if quotas is None else Principal(name=ANYBODY.name, quotas=quotas)

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        """Take it, whatever it shows."""
        return self._principal


class Asking:
    """Takes who shows a good token or, without one, a client certificate.

    A bad token is refused whatever the certificate says: a caller that names itself is never
    taken for somebody else. Names from different sources never meet: those of JWTs begin with
    ``jwt:``, those of certificates with ``cert:``, and a token of the file has no colon in its
    name.
    """

    asks = True

    def __init__(
        self, checkers: Sequence[TokenChecker], *, certificates: bool, quotas: Quotas
    ) -> None:
        self._checkers = checkers
        self._certificates = certificates
        self._quotas = quotas

    async def authenticate(self, token: str | None, peer: Peer) -> Principal:
        """Ask whoever knows this sort of token."""
        if token is None:
            if self._certificates and peer.certificate:
                return Principal(name=f"cert:{peer.certificate}", quotas=self._quotas)
            raise Unauthenticated(NO_TOKEN)
        try:
            for checker in self._checkers:
                if checker.knows(token):
                    return await checker.check(token)
            raise BadToken("no such sort of token is taken here")
        except BadToken as error:
            log.warning("auth.refused", why=error.why, peer=peer.address)
            raise


@asynccontextmanager
async def open_authenticator(
    config: AuthConfig, clock: Clock | None = None
) -> AsyncIterator[Authenticator]:
    """Open what the configuration names.

    Raises:
        InvalidRequest: The file of tokens is missing, damaged or open to others.
    """
    if not config.asks:
        yield Anybody(config.quotas)
        return
    clock = clock or SystemClock()
    checkers: list[TokenChecker] = []
    async with AsyncExitStack() as stack:
        if config.tokens is not None:
            file = TokenFile(config.tokens, clock=clock, quotas=config.quotas)
            await file.open()
            checkers.append(file)
        if config.jwt is not None:
            # PyJWT and cryptography come with the extra "mcp": only who uses them needs them.
            from codegen_mcp.coordinator.auth.jwt import JwtChecker

            jwt = JwtChecker(config.jwt, clock=clock, quotas=config.quotas)
            checkers.append(await stack.enter_async_context(jwt))
        yield Asking(checkers, certificates=config.certificates, quotas=config.quotas)
