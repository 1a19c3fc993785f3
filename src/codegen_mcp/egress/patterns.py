"""Allow lists: which hosts and ports code may ask for.

::

    example.com            this host, ports 80 and 443
    example.com:8443       this host and port
    *.example.com          every host below it, not example.com itself
    *.example.com:*        the same, on every port
    93.184.216.34          this address; [2606:2800::1]:443 for IPv6
    *                      every host of the open internet, ports 80 and 443

A name on the list says nothing of its address: that is checked after it was resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.egress.hosts import BadHost, is_address, normal_host

WEB_PORTS = frozenset({80, 443})
ANY = "*"
MAX_PATTERNS = 256
"""In one list."""
HOW = "write HOST, HOST:PORT, *.DOMAIN or *, without scheme and path, for example example.com:443"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line of an allow list."""

    host: str
    """A normal host, ``*.`` and a domain, or ``*``."""
    ports: frozenset[int] | None
    """None is every port."""

    def matches(self, host: str, port: int) -> bool:
        """Whether a normal host and a port are meant."""
        return (self.ports is None or port in self.ports) and self._has(host)

    def covers(self, other: Pattern) -> bool:
        """Whether everything that the other one means is meant."""
        if self.ports is not None and (other.ports is None or not other.ports <= self.ports):
            return False
        if self.host == other.host or self.host == ANY:
            return True
        if other.host == ANY:
            return False
        return self._has(other.host.removeprefix("*."), below=other.host.startswith("*."))

    def _has(self, host: str, *, below: bool = False) -> bool:
        if self.host == ANY:
            return True
        if self.host.startswith("*."):
            domain = self.host[2:]
            return host.endswith("." + domain) or (below and host == domain)
        return not below and host == self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.ports == WEB_PORTS:
            return host
        return f"{host}:{'*' if self.ports is None else ','.join(map(str, sorted(self.ports)))}"


class AllowList:
    """Patterns of one owner: the worker, a session or a task."""

    def __init__(self, patterns: Iterable[Pattern], owner: str) -> None:
        self.patterns = tuple(patterns)
        self.owner = owner
        """For messages: ``worker``, ``session``, ``task``."""

    def matches(self, host: str, port: int) -> bool:
        """Whether a normal host and a port are on it."""
        return any(pattern.matches(host, port) for pattern in self.patterns)

    def uncovered(self, other: AllowList) -> Pattern | None:
        """Return a pattern of the other list that asks for more than this one has."""
        for pattern in other.patterns:
            if not any(own.covers(pattern) for own in self.patterns):
                return pattern
        return None


def parse_pattern(text: str, *, ports: frozenset[int] = WEB_PORTS) -> Pattern:
    """Read one pattern; ``ports`` are those of a pattern that names none.

    Raises:
        BadHost: It is none; says what is wrong with it.
    """
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, rest = host.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadHost("an IPv6 address stands in brackets")
        host, port = host + bracket, rest[1:]
        if rest == ":":
            raise BadHost("the port is missing")
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not port:
            raise BadHost("the port is missing")
    wanted: frozenset[int] | None = ports
    if port == ANY:
        wanted = None
    elif port:
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise BadHost("a port is a number from 1 to 65535, or *")
        wanted = frozenset({int(port)})
    if host == ANY:
        return Pattern(ANY, wanted)
    if host.startswith("*."):
        domain = normal_host(host[2:])
        if is_address(domain):
            raise BadHost("an address has nothing below it")
        return Pattern("*." + domain, wanted)
    return Pattern(normal_host(host), wanted)


def parse_list(texts: Sequence[str], owner: str, field: str) -> AllowList:
    """Read an allow list; ``field`` is named when a pattern is bad.

    Raises:
        InvalidRequest: There are too many, or one is none.
    """
    if len(texts) > MAX_PATTERNS:
        raise InvalidRequest(
            f"{field} has {len(texts)} entries; use at most {MAX_PATTERNS}, or a wildcard",
            metadata={"field": field},
        )
    patterns = []
    for text in texts:
        try:
            patterns.append(parse_pattern(text))
        except BadHost as error:
            raise InvalidRequest(
                f"{field} has {text[:300]!r}: {error}; {HOW}", metadata={"field": field}
            ) from None
    return AllowList(patterns, owner)
