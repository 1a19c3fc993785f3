"""What the worker takes from a guest as the entrance to the way out, and what it checks of it."""

from __future__ import annotations

import socket

from codegen_mcp.sandbox.guest_protocol import GuestProtocolError

LOOPBACK = "127.0.0.1"


def take_entrance(fd: int, port: int) -> socket.socket:
    """Own a descriptor that came with the guest's ``ready``.

    Raises:
        GuestProtocolError: It is not a TCP socket bound to the port on loopback; closed then.
    """
    entrance = socket.socket(fileno=fd)
    try:
        kind = entrance.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if (
            entrance.family is not socket.AF_INET
            or kind != socket.SOCK_STREAM
            or entrance.proto not in (0, socket.IPPROTO_TCP)
            or entrance.getsockname() != (LOOPBACK, port)
            or entrance.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            raise GuestProtocolError("the entrance is no such socket")
    except (OSError, GuestProtocolError) as error:
        entrance.close()
        raise GuestProtocolError(f"no entrance: {error}") from None
    entrance.setblocking(False)
    return entrance
