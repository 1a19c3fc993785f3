"""The host's own resolver and network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from codegen_mcp.egress.base import Refused, Streams

THREADS = 32
MakeSocket = Callable[[int, int], socket.socket]
"""Family and type to a new socket (socket(2))."""


class HostResolver:
    """getaddrinfo(3): the host's files and name servers.

    In threads of its own, which go with it: a name server that never answers holds up other names
    at most, and nothing else of the worker.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Resolve."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host, port)


def _addresses(host: str, port: int) -> Sequence[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class HostDialer:
    """TCP from this host; ``make_socket`` gives sockets of another network namespace."""

    def __init__(self, make_socket: MakeSocket = socket.socket) -> None:
        self._make_socket = make_socket

    async def connect(self, address: str, port: int, *, own: bool) -> Streams:
        """Connect."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if not own and self._is_own(family, address, port):
            raise Refused("an address of the worker's host")
        sock = self._make_socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    def _is_own(self, family: int, address: str, port: int) -> bool:
        """Whether the kernel would deliver to this host (no packet is sent: connect(2), UDP)."""
        with self._make_socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, port))
            except OSError:
                return False
            return bool(probe.getsockname()[0] == address)
