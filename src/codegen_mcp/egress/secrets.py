"""Named secrets of the worker: where their values come from, and which hosts may have them.

A file of TOML (https://toml.io)::

    [GITHUB_TOKEN]                              # also the variable inside the sandbox
    value_file = "/run/secrets/github"          # or value_env = "NAME", or value = "..."
    hosts = ["api.github.com", "*.example.com:8443"]
    headers = ["authorization"]                 # which fields it may stand in; this is the default
    users = ["alice"]                           # user_id of sessions that may use it; none: all

Values are read once, at start, and live in the worker's memory alone.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codegen_mcp.core.errors import InvalidRequest
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.egress.hosts import BadHost
from codegen_mcp.egress.patterns import Pattern, parse_pattern

MIN_VALUE, MAX_VALUE = 16, 8 * KIB
"""Of a value, in bytes: shorter ones could be guessed, and would be found by chance in answers."""
MAX_FILE_BYTES = 4 * MIB
TLS_PORTS = frozenset({443})
DEFAULT_HEADERS = (
    "authorization",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "private-token",
    "x-goog-api-key",
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_VALUE = re.compile(rb"[\x21-\x7e]+")
_KEYS = frozenset({"value", "value_env", "value_file", "hosts", "headers", "users"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """One secret; its value is never shown."""

    name: str
    value: bytes = field(repr=False)
    hosts: tuple[Pattern, ...]
    headers: frozenset[bytes]
    users: frozenset[str] = frozenset()

    def allows(self, host: str, port: int) -> bool:
        """Whether a host may have it."""
        return any(pattern.matches(host, port) for pattern in self.hosts)

    def for_user(self, user_id: str) -> bool:
        """Whether sessions of this user may use it."""
        return not self.users or user_id in self.users


def load_secrets(path: Path) -> Mapping[str, Secret]:
    """Read the file, and every value that it names. Blocks.

    Raises:
        InvalidRequest: It is missing, damaged, or others may read it; names the entry, never a
            value.
    """
    data = _private_bytes(path, f"the file of secrets {str(path)!r}")
    try:
        found = tomllib.loads(data.decode())
    except ValueError:
        # The parser's own words quote the line, and a value could stand in it.
        raise InvalidRequest(f"the file of secrets {str(path)!r} is no TOML") from None
    return {name: _secret(name, entry) for name, entry in found.items()}


def _secret(name: str, entry: Any) -> Secret:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"secret {name!r}: its name must be one of an environment variable")
    if not isinstance(entry, dict) or set(entry) - _KEYS:
        raise InvalidRequest(f"secret {name!r} has other keys than {', '.join(sorted(_KEYS))}")
    hosts = _texts(name, entry, "hosts")
    if not hosts:
        raise InvalidRequest(f"secret {name!r} names no hosts; nobody could be sent it")
    try:
        patterns = tuple(parse_pattern(host, ports=TLS_PORTS) for host in hosts)
    except BadHost as error:
        raise InvalidRequest(f"secret {name!r} has a bad host: {error}") from None
    if any(pattern.host == "*" for pattern in patterns):
        raise InvalidRequest(f"secret {name!r}: '*' would send it to anybody; name the hosts")
    headers = _texts(name, entry, "headers") or DEFAULT_HEADERS
    return Secret(
        name=name,
        value=_value(name, entry),
        hosts=patterns,
        headers=frozenset(header.lower().encode() for header in headers),
        users=frozenset(_texts(name, entry, "users")),
    )


def _value(name: str, entry: Mapping[str, Any]) -> bytes:
    given = [key for key in ("value", "value_env", "value_file") if key in entry]
    if len(given) != 1 or not isinstance(entry[given[0]], str):
        raise InvalidRequest(f"secret {name!r} needs one of value, value_env, value_file (a text)")
    source: str = entry[given[0]]
    if given[0] == "value_file":
        value = _private_bytes(Path(source), f"secret {name!r}: {source!r}").strip()
    elif given[0] == "value_env":
        value = os.environ.get(source, "").encode()
    else:
        value = source.encode()
    if not MIN_VALUE <= len(value) <= MAX_VALUE or not _VALUE.fullmatch(value):
        raise InvalidRequest(
            f"secret {name!r} must have {MIN_VALUE} to {MAX_VALUE} characters of printable ASCII "
            "without spaces"
        )
    return value


def _texts(name: str, entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = entry.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidRequest(f"secret {name!r}: {key} must be a list of texts")
    return tuple(found)


def _private_bytes(path: Path, what: str) -> bytes:
    """Read a file that no others may read. A link is followed: mounted secrets are links."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{what} cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o037:
        mode = stat.S_IMODE(found.st_mode)
        raise InvalidRequest(f"{what} has mode {mode:04o}; make it 0600 or 0640 (chmod)")
    if found.st_uid not in {os.geteuid(), 0} or len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{what} belongs to uid {found.st_uid}, or is too long")
    return data
