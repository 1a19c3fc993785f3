"""Datagrams with descriptors (unix(7), SCM_RIGHTS), straight on ``_socket``."""

from __future__ import annotations

import _socket

from codec import decode, encode

MAX_DATAGRAM = 65536


def send(sock: _socket.socket, items: list[bytes], fds: list[int] | None = None) -> None:
    """Send one message."""
    rights = []
    if fds:
        packed = b"".join([fd.to_bytes(4, "little") for fd in fds])
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
    sock.sendmsg([encode(items)], rights)


def receive(sock: _socket.socket, count: int = 4, flags: int = 0) -> tuple[list[bytes], list[int]]:
    """Return the next message and its descriptors; an empty list at the end of file."""
    data, ancillary, _, _ = sock.recvmsg(MAX_DATAGRAM, _socket.CMSG_SPACE(4 * count), flags)
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            whole = len(packed) - len(packed) % 4
            fds += [int.from_bytes(packed[i : i + 4], "little") for i in range(0, whole, 4)]
    return decode(data), fds


def receive_now(sock: _socket.socket) -> list[bytes] | None:
    """Return a message that is there already, an empty list at the end of file, else None."""
    try:
        return decode(sock.recv(MAX_DATAGRAM, _socket.MSG_DONTWAIT))
    except BlockingIOError:
        return None


def receive_all_now(sock: _socket.socket) -> tuple[list[bytes] | None, list[int]]:
    """The same with the descriptors that came along."""
    try:
        return receive(sock, flags=_socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None, []
