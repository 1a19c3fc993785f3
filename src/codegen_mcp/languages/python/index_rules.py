"""Where the fetcher may connect: the operator's index, and the servers that hold its files.

Attacks that this answers: a name that resolves to a metadata service or a private network, a name
that resolves to something else at the second look (the checked address is the one connected to),
IPv4 addresses wrapped into IPv6, another port of an allowed host, a redirect to elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from codegen_mcp.languages.python.packages import Index

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Origin = tuple[str, int]
"""Host in lower case, port."""


class Refused(Exception):
    """The rules do not allow this destination; the text says which one and why."""


class EgressRules:
    """Rules for one index.

    The index itself may be anywhere (it is the operator's word). Servers that it links to must
    have a global address, or the very address and port of the index; those that the operator
    names are exempt as well.
    """

    def __init__(self, index: Index, file_hosts: Iterable[str] = ()) -> None:
        self._index = index
        self._exempt: set[Origin] = {index.origin, *(parse_origin(one) for one in file_hosts)}
        self._linked: set[Origin] = set()

    @property
    def origins(self) -> frozenset[Origin]:
        """Every destination that is allowed now."""
        return frozenset(self._exempt | self._linked)

    def allow_linked(self, origins: Iterable[Origin]) -> None:
        """Allow servers that the index's own pages link to."""
        self._linked.update(origins)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses that may be connected to for this destination.

        Raises:
            Refused: It is not on the list, or has no address that is allowed.
            OSError: The name cannot be resolved.
        """
        origin = (host.lower().rstrip("."), port)
        if origin not in self._exempt and origin not in self._linked:
            raise Refused(f"{host}:{port} is neither the package index nor a server of its files")
        addresses = await _addresses(*origin)
        if origin in self._exempt:
            return addresses
        allowed = [address for address in addresses if is_public(address)]
        if not allowed and port == self._index.port:
            beside = set(await _addresses(*self._index.origin))
            allowed = [address for address in addresses if address in beside]
        if not allowed:
            raise Refused(f"{host}:{port} resolves to a private or reserved address")
        return allowed


def parse_origin(value: str) -> Origin:
    """Read ``host:port``; 443 where there is no port."""
    host, colon, port = value.strip().rpartition(":")
    if not colon or not port.isdigit():
        return value.strip().lower().rstrip("."), 443
    return host.strip("[]").lower().rstrip("."), int(port)


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also when IPv6 wraps an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    return ip.is_global and not ip.is_multicast


async def _addresses(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
