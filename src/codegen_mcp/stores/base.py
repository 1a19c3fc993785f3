"""The store interface: objects by key, created once, durable when answered.

Known stores: memory, local, s3 (``registry.py``). All pass ``tests/contract/test_stores.py``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from codegen_mcp.core.errors import InvalidRequest

PIECE_BYTES = 1024 * 1024
"""Longest piece that a read gives."""
SMALL_BYTES = 16 * 1024 * 1024
"""Most that ``put_bytes`` takes."""
_SEGMENT = r"[A-Za-z0-9._=+@-]{1,255}"
_KEY = re.compile(rf"(?!.*(?:^|/)\.{{1,2}}(?:/|$)){_SEGMENT}(?:/{_SEGMENT})*")


def check_key(key: str) -> str:
    """Accept a key: up to 512 characters, segments of letters, digits and ``._=+@-``.

    A segment has at most 255 characters (NAME_MAX), and is neither ``.`` nor ``..``.

    Raises:
        InvalidRequest: It is another text.
    """
    if not is_key(key):
        raise InvalidRequest(
            f"object key {key[:120]!r} is not valid; use segments of 1 to 255 letters, digits and "
            "'._=+@-', with '/' between them, 512 characters in all"
        )
    return key


def is_key(text: str) -> bool:
    """Whether ``check_key`` accepts it."""
    return len(text) <= 512 and _KEY.fullmatch(text) is not None


def check_small(data: bytes) -> bytes:
    """Accept what ``put_bytes`` takes.

    Raises:
        InvalidRequest: It is longer than SMALL_BYTES.
    """
    if len(data) > SMALL_BYTES:
        raise InvalidRequest(f"{len(data)} bytes at once are too many; use put_file above 16 MiB")
    return data


def check_range(offset: int, length: int | None) -> None:
    """Accept what ``get`` may be asked for.

    Raises:
        InvalidRequest: One of them is negative.
    """
    if offset < 0 or (length is not None and length < 0):
        raise InvalidRequest(f"offset {offset} and length {length} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object."""

    key: str
    size: int
    modified_ms: int = 0
    """Unix milliseconds; 0 where the store does not say."""


class ObjectStore(Protocol):
    """Objects by key. An async context manager: leaving it closes what is open.

    Laws (contract suite):

    1. An object is whole or absent, whatever ends the writer; it is created only if absent.
    2. ``put`` returns when the object is durable: fsync of file and directory, or the service's
       acknowledgement with its checksum. What was put is what is read, byte for byte.
    3. A store that does not answer is StoreUnavailable, never NotFound.
    4. A key that is another one's directory (``a`` beside ``a/b``) may be InvalidRequest.

    Raises (all): StoreUnavailable, InvalidRequest (a key).
    """

    @property
    def name(self) -> str:
        """``local``, ``s3``, ``memory``."""

    @property
    def remote(self) -> bool:
        """Whether it is beyond a network: it may be away for hours, and reading it costs."""

    async def __aenter__(self) -> Self:
        """Open. StoreUnavailable when its place cannot be had."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""

    def url(self, key: str) -> str:
        """Where it lies, for people: ``file:///...``, ``s3://bucket/prefix/key``; no secret."""

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        """Store a file's bytes; memory use does not depend on its size.

        Args:
            key: See ``check_key``.
            path: A regular file of ours, closed; not changed meanwhile. It stays.
            sha256: Of its bytes, hexadecimal; checked against what is read from it.
            given: Nobody writes to the file any more, ever: the store may keep it itself under
                another name, instead of a copy. Its mode may change.

        Raises:
            AlreadyExists: There is an object of this key (whatever it holds); nothing is changed.
            Corrupt: The file has another sha256; nothing is stored.
        """

    async def put_bytes(self, key: str, data: bytes) -> ObjectInfo:
        """Store a small object (up to 16 MiB). Raises as ``put_file``."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Read from ``offset``, at most ``length`` bytes, in pieces of at most PIECE_BYTES.

        Raises:
            NotFound: There is no such object (at the first piece).
        """

    async def stat(self, key: str) -> ObjectInfo:
        """Look. NotFound when there is none."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with ``prefix`` (any text; empty is all), by key."""

    async def delete(self, key: str) -> bool:
        """Remove; whether there was one. Durable when answered."""

    async def upload_link(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> str | None:
        """A link for one PUT of exactly these; None when the store has none of its own."""

    async def download_link(
        self, key: str, *, file_name: str, content_type: str, expires_s: int
    ) -> str | None:
        """A link for GET (with ranges); None when the store has none of its own."""

    async def aclose(self) -> None:
        """Close; idempotent."""
