"""Names and addresses of destinations, in the one spelling that rules are compared in.

The same address has many spellings for the C library (inet_aton(3): ``127.1``, ``0x7f000001``,
``0177.0.0.1``). Only the usual ones are read here, and every other is refused: what cannot be
misread cannot slip past a rule. RFC 1123 section 2.1, RFC 5952; the rule for a last label that is a
number is the URL standard's (https://url.spec.whatwg.org/#ends-in-a-number-checker).
"""

from __future__ import annotations

import ipaddress
import re

MAX_HOST = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadHost(ValueError):
    """A host is neither a name nor an address in the usual spelling; the text says why."""


def normal_host(host: str) -> str:
    """Return a host in lower case, without brackets or a trailing dot; IDNA for other scripts.

    Raises:
        BadHost: It is no host name, and no address in the usual spelling.
    """
    if host.startswith("[") and host.endswith("]"):
        return _address6(host[1:-1])
    if ":" in host:
        return _address6(host)
    name = host
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise BadHost("it is no host name") from None
    name = name.lower().removesuffix(".")
    if not name or len(name) > MAX_HOST:
        raise BadHost("it is empty or too long")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _address4(name)
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise BadHost("it is no host name")
    return name


def is_address(host: str) -> bool:
    """Whether a normal host is an address."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def _address4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise BadHost("write an IPv4 address as four decimal numbers") from None


def _address6(text: str) -> str:
    if "%" in text:
        raise BadHost("an address with a zone is of one link only")
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise BadHost("it is no IPv6 address") from None
