"""What a sandbox has instead of a secret, and the exchange of one for the other.

A placeholder is random and as long as its value, so that putting it back into an answer changes no
length: the code learns how long the value is, and no more.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from codegen_mcp.egress.secrets import Secret

PREFIX = "cgs_"
_ALPHABET = string.ascii_letters + string.digits
_BASIC = re.compile(rb"(?i)(basic)( +)([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One secret, and what stands for it in one session."""

    secret: Secret
    text: bytes


def new_placeholder(secret: Secret) -> Placeholder:
    """Make one."""
    size = len(secret.value) - len(PREFIX)
    text = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(size))
    return Placeholder(secret, text.encode())


def put_in(
    fields: Sequence[tuple[bytes, bytes]], placeholders: Sequence[Placeholder]
) -> list[tuple[bytes, bytes]]:
    """Replace placeholders by values in the fields that may have them (also inside Basic)."""
    return [(name, _filled(name, value, placeholders)) for name, value in fields]


def _filled(name: bytes, value: bytes, placeholders: Sequence[Placeholder]) -> bytes:
    for one in placeholders:
        if name in one.secret.headers:
            value = value.replace(one.text, one.secret.value)
            basic = _BASIC.fullmatch(value)
            if basic is not None:
                value = basic[1] + basic[2] + _basic(basic[3], one)
    return value


def _basic(encoded: bytes, one: Placeholder) -> bytes:
    try:
        plain = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return encoded
    return base64.b64encode(plain.replace(one.text, one.secret.value))


class Hider:
    """Puts placeholders back where an answer shows a value: plain, percent-encoded or in base64.

    Lengths stay. One for each body: what could be the beginning of a value is held back until more
    comes. A host that means to hand the value out in another form can.
    """

    def __init__(self, placeholders: Sequence[Placeholder]) -> None:
        self._pairs = [pair for one in placeholders for pair in _forms(one)]
        self._held = b""

    def hide(self, data: bytes) -> bytes:
        """Change the next piece; empty at the end returns what was held."""
        if not data:
            rest, self._held = self._held, b""
            return self.whole(rest)
        data = self.whole(self._held + data)
        # A value that was found is gone; what may begin one is at the end alone. No more is held
        # than that: a stream of events must not wait for its next one.
        cut = len(data) - max((_begun(data, value) for value, _ in self._pairs), default=0)
        self._held = data[cut:]
        return data[:cut]

    def whole(self, data: bytes) -> bytes:
        """Change something that is there as a whole."""
        for value, text in self._pairs:
            if value in data:
                data = data.replace(value, text)
        return data


def _begun(data: bytes, value: bytes) -> int:
    """How many bytes at the end of data are the beginning of a value."""
    for size in range(min(len(value) - 1, len(data)), 0, -1):
        if data.endswith(value[:size]):
            return size
    return 0


def _forms(one: Placeholder) -> list[tuple[bytes, bytes]]:
    value, text = one.secret.value, one.text
    pairs = [(value, text)]
    quoted = quote(value, safe="").encode()
    if quoted != value:
        pairs.append((quoted, text + b"_" * (len(quoted) - len(text))))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            pair = (
                _inner(encode(bytes(shift) + value), shift),
                _inner(encode(bytes(shift) + text), shift),
            )
            if pair not in pairs:
                pairs.append(pair)
    return pairs


def _inner(encoded: bytes, shift: int) -> bytes:
    """The part of an encoding that hangs on the value alone."""
    first = (0, 2, 3)[shift]
    last = encoded.find(b"=")
    return encoded[first:] if last < 0 else encoded[first : last - 1]
