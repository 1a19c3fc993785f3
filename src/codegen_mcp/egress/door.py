"""What the protocols of the proxy ask of a task: connect me, and end TLS where that must be."""

from __future__ import annotations

from typing import Protocol

from codegen_mcp.egress.base import Refused
from codegen_mcp.egress.config import EgressConfig
from codegen_mcp.egress.hosts import BadHost, normal_host
from codegen_mcp.egress.ledger import Ledger
from codegen_mcp.egress.streams import ByteStream, PlainStream


class Door(Protocol):
    """The way out of one task."""

    @property
    def config(self) -> EgressConfig:
        """Bounds."""

    @property
    def ledger(self) -> Ledger:
        """Counts."""

    async def connect(self, host: str, port: int) -> PlainStream:
        """Connect to a normal host; Refused, Unreachable."""

    async def tunnel(self, host: str, port: int, client: ByteStream, server: ByteStream) -> None:
        """Carry a connection that was promised to the client, to its end."""


def destination(door: Door, host: str, port: int) -> str:
    """Return a host in its normal form.

    Raises:
        Refused: It has none. Written down.
    """
    try:
        return normal_host(host)
    except BadHost as error:
        door.ledger.refuse(host, port, str(error))
        raise Refused(str(error)) from None
