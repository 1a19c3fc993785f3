"""The port at which code inside finds the way out: bound here, and handed to the worker.

Made before any code of the session runs, and kept by the worker alone from then on: it decides when
the port answers. Nothing runs in here for it.
"""

from __future__ import annotations

import _socket

LOOPBACK = "127.0.0.1"


def bind(port: int) -> _socket.socket:
    """Bind the port; it refuses connections until the worker listens."""
    entrance = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    # Else the worker could not listen again while connections of the last time are remembered.
    entrance.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    entrance.bind((LOOPBACK, port))
    return entrance
