"""Which addresses a sandbox may be connected to: those of the open internet.

Checked after a name was resolved, on the address that is then connected to, so that no answer of a
name server leads to the worker's own network. IANA special-purpose registries (RFC 6890), and the
forms in which IPv6 carries an IPv4 address.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "168.63.129.16",  # Azure; looks public
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
    )
)
"""Services that hand credentials of the machine to whoever asks from it."""

_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_GLOBAL = ipaddress.IPv6Network("2000::/3")
_RESERVED = (
    ipaddress.IPv6Network("2001::/23"),
    ipaddress.IPv6Network("2001:db8::/32"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv6Network("3fff::/20"),
    ipaddress.IPv6Network("5f00::/16"),
)
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")
_IETF = ipaddress.IPv4Network("192.0.0.0/24")
_RELAY = ipaddress.IPv4Network("192.88.99.0/24")
_ISATAP = (0x00005EFE, 0x02005EFE)


def refusal(text: str, *, internal: bool = False) -> str:
    """Say why an address is not connected to; empty when it may be.

    Args:
        text: The address, as resolved.
        internal: The operator named this very host and port: private ranges are allowed then.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "no plain address"
    for one in (*_carried(address), address):
        why = _refusal(one, internal)
        if why:
            return why
    if isinstance(address, ipaddress.IPv6Address) and _carried(address):
        return "an IPv4 address in IPv6 clothes"
    return ""


def _refusal(address: Address, internal: bool) -> str:
    if address in METADATA:
        return "a metadata service"
    if address.is_loopback:
        return "a loopback address"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if _private(address):
        return "" if internal else "a private address"
    if isinstance(address, ipaddress.IPv6Address):
        if address not in _GLOBAL or any(address in network for network in _RESERVED):
            return "a reserved address"
        return ""
    if not address.is_global or address in _IETF or address in _RELAY:
        return "a reserved address"
    return ""


def _private(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address in _SHARED or (
            address.is_private and address.packed[0] in (10, 172, 192) and address not in _IETF
            and address.packed[:2] != b"\xc0\x00"
        )  # fmt: skip
    return (address.packed[0] & 0xFE) == 0xFC


def _carried(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    low = ipaddress.IPv4Address(address.packed[12:])
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _NAT64):
        found.append(low)
    if address in _TRANSLATED:
        found.append(low)
    if address in _COMPATIBLE and int(address) > 1:
        found.append(low)
    if int.from_bytes(address.packed[8:12], "big") in _ISATAP:
        found.append(low)
    return tuple(one for one in found if one is not None)
