"""From a destination that was asked for to a connection, past every rule."""

from __future__ import annotations

import asyncio

from codegen_mcp.egress import addresses
from codegen_mcp.egress.base import Dialer, Refused, Resolver, Unreachable
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.hosts import is_address
from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.rules import Rules
from codegen_mcp.egress.streams import PlainStream

MAX_ADDRESSES = 8
"""Tried of one name."""


class Connector:
    """Checks, resolves, checks again, connects. Shared by all sessions of a worker.

    A name is resolved once for each connection, and what was checked is what is connected to.
    """

    def __init__(self, config: EgressConfig, resolver: Resolver, dialer: Dialer) -> None:
        self._config = config
        self._resolver = resolver
        self._dialer = dialer

    async def connect(self, rules: Rules, ledger: Ledger, host: str, port: int) -> PlainStream:
        """Connect to a normal host.

        Raises:
            Refused: A list has not got it, or it has no address that is allowed. Written down.
            Unreachable: It has no address, or none answers.
        """
        try:
            why = rules.refusal(host, port)
            if why:
                raise Refused(why)
            async with asyncio.timeout(self._config.connect_s):
                stream = await self._dial(host, port)
        except Refused as refused:
            ledger.refuse(host, port, str(refused))
            raise
        except TimeoutError:
            raise Unreachable(f"no connection in {self._config.connect_s:g} s") from None
        ledger.connections += 1
        return stream

    async def _dial(self, host: str, port: int) -> PlainStream:
        internal = (host, port) in self._config.internal
        try:
            found = [host] if is_address(host) else await self._resolver.resolve(host, port)
        except OSError as error:
            raise Unreachable(f"the name has no address ({error.strerror or error})") from None
        refused: str = ""
        failed: OSError | None = None
        for address in list(found)[:MAX_ADDRESSES]:
            why = addresses.refusal(address, internal=internal)
            if why:
                refused = refused or (why if address == host else f"resolves to {why}")
                continue
            try:
                return PlainStream(*await self._dialer.connect(address, port, own=internal))
            except Refused as error:
                refused = refused or str(error)
            except OSError as error:
                failed = error
        if failed is not None:
            raise Unreachable(failed.strerror or str(failed))
        if refused:
            raise Refused(refused)
        raise Unreachable("the name has no address")
