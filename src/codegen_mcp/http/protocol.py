"""One HTTP connection of uvicorn's, as one of few: what neither asks nor reads makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
"""Of one server: each may hold a file and a socket, of the worker's 1,024 descriptors."""
HEAD_S = 10.0
"""How long a connection may take to send the head of a request."""
STALL_S = 60.0
"""How long a caller may read nothing of an answer that waits for it."""


class BoundedProtocol(H11Protocol):
    """Closes the connection that has waited for longest when there are too many.

    h11 bounds the head of a request at 64 KiB; uvicorn bounds neither time nor number.
    """

    most = MAX_CONNECTIONS
    """At once, of one server."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.waits_since = self.loop.time()
        """Since when nothing was asked, while ``waits``."""
        self._stalled = (0, 0.0)
        """Bytes that wait to be read by the caller, and since when so many."""

    @property
    def waits(self) -> bool:
        """Whether no request is being served."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            waiting = [one for one in _bounded(self.connections) if one.waits]
            min(waiting, key=lambda one: one.waits_since).transport.abort()

    def look(self) -> None:
        """Give up a connection that takes too long; called every second."""
        now = self.loop.time()
        if not self.waits:
            self.waits_since = now
        elif now - self.waits_since >= HEAD_S:
            self.transport.abort()
        left = self.transport.get_write_buffer_size()
        if left != self._stalled[0]:
            self._stalled = left, now
        elif left and now - self._stalled[1] >= STALL_S:
            self.transport.abort()


def bounded_protocol(most: int) -> type[BoundedProtocol]:
    """Return the protocol of a server of up to ``most`` connections at once."""
    return type("BoundedProtocol", (BoundedProtocol,), {"most": most})


def look_at_all(connections: Iterable[object]) -> None:
    """``look`` at each."""
    for one in _bounded(connections):
        one.look()


def _bounded(connections: Iterable[object]) -> list[BoundedProtocol]:
    return [one for one in connections if isinstance(one, BoundedProtocol)]
