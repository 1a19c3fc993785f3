"""SOCKS5 without a password: CONNECT alone (RFC 1928). BIND and UDP are refused by their codes."""

from __future__ import annotations

import ipaddress

from codegen_mcp.egress.base import Refused, Unreachable
from codegen_mcp.egress.door import Door, destination
from codegen_mcp.egress.streams import PlainStream

VERSION = 5
_CONNECT = 1
_NO_PASSWORD, _NO_METHOD = 0, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_DONE, _DENIED, _UNREACHABLE, _NO_COMMAND, _NO_ADDRESS = 0, 2, 4, 7, 8
_COMMANDS = {2: "SOCKS BIND", 3: "SOCKS UDP"}


class _Wrong(Exception):
    """Not SOCKS5."""


async def greet(client: PlainStream, door: Door) -> tuple[str, int, PlainStream] | None:
    """Serve a connection up to the promise of a tunnel: (host, port, server); None: it was refused.

    Raises:
        OSError: The client went away.
    """
    try:
        version, count = await _take(client, 2)
        if version != VERSION:
            raise _Wrong
        methods = await _take(client, count)
        if _NO_PASSWORD not in methods:
            await client.write(bytes([VERSION, _NO_METHOD]))
            return None
        await client.write(bytes([VERSION, _NO_PASSWORD]))
        version, command, _, kind = await _take(client, 4)
        if version != VERSION:
            raise _Wrong
        host = await _host(client, kind)
        port = int.from_bytes(await _take(client, 2), "big")
    except _Wrong:
        return None
    if command != _CONNECT or port == 0:
        door.ledger.refuse(host, port, f"{_COMMANDS.get(command, 'a SOCKS command')} is not served")
        await _answer(client, _NO_COMMAND)
        return None
    if not host:
        await _answer(client, _NO_ADDRESS)
        return None
    try:
        host = destination(door, host, port)
        server = await door.connect(host, port)
    except Refused:
        await _answer(client, _DENIED)
        return None
    except Unreachable:
        await _answer(client, _UNREACHABLE)
        return None
    try:
        await _answer(client, _DONE)
    except BaseException:
        await server.aclose()
        raise
    return host, port, server


async def _host(client: PlainStream, kind: int) -> str:
    if kind == _IPV4:
        return str(ipaddress.IPv4Address(await _take(client, 4)))
    if kind == _IPV6:
        return str(ipaddress.IPv6Address(await _take(client, 16)))
    if kind == _NAME:
        (length,) = await _take(client, 1)
        return (await _take(client, length)).decode("utf-8", "replace")
    raise _Wrong


async def _answer(client: PlainStream, code: int) -> None:
    await client.write(bytes([VERSION, code, 0, _IPV4]) + bytes(6))


async def _take(client: PlainStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await client.read()
        if not more:
            raise _Wrong
        data += more
    client.unread(data[count:])
    return data[:count]
