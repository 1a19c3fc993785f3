"""What the proxy needs of the host's network: names to addresses, and connections to these."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Refused(Exception):
    """A rule says no; the text says which."""


class Unreachable(Exception):
    """It is allowed, but does not answer; the text says how."""


class Resolver(Protocol):
    """Turns names into addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a name, those to try first in front.

        Raises:
            OSError: There are none.
        """


class Dialer(Protocol):
    """Connects to addresses."""

    async def connect(self, address: str, port: int, *, own: bool) -> Streams:
        """Connect by TCP to an address, never to a name.

        Args:
            address: As checked.
            port: 1 to 65535.
            own: Whether it may be an address of this host.

        Raises:
            Refused: It is an address of this host.
            OSError: It cannot be reached.
        """
