"""Static tokens: a file of hashes, read again when it changes.

One JSON object a line (``token_entry``); blank lines and those that begin with ``#`` are skipped.
What cannot be read lets nobody in: a revocation must not get lost in a damaged file.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import structlog

from codegen_mcp.coordinator.auth.base import BadToken
from codegen_mcp.coordinator.auth.token_entry import (
    PREFIX,
    TokenEntry,
    TokenKind,
    from_line,
    hash_of,
)
from codegen_mcp.coordinator.principal import Principal, Quotas
from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import InvalidRequest, Unavailable

log = structlog.get_logger()

LOOK_AGAIN_S = 1.0
"""How long a revoked token may still work."""
MAX_FILE_BYTES = 16 * 1024 * 1024

Stamp = tuple[int, ...]


class TokenFile:
    """Implements ``base.TokenChecker``; ``open`` it first."""

    def __init__(self, path: Path, *, clock: Clock, quotas: Quotas) -> None:
        self._path = path
        self._clock = clock
        self._quotas = quotas
        self._entries: Mapping[str, TokenEntry] = {}
        self._stamp: Stamp | None = None
        self._problem = ""
        self._looked = 0.0
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Read the file.

        Raises:
            InvalidRequest: It cannot be used; says why.
        """
        await self._look()
        if self._problem:
            raise InvalidRequest(self._problem)

    def knows(self, token: str) -> bool:
        """All of ours begin so."""
        return token.startswith(PREFIX)

    async def check(self, token: str) -> Principal:
        """Find whose it is."""
        entry = await self.entry(token)
        if entry.kind is not TokenKind.PRINCIPAL:
            raise BadToken(f"{entry.name}: a {entry.kind} token")
        return Principal(name=entry.name, quotas=entry.quotas or self._quotas)

    async def entry(self, token: str) -> TokenEntry:
        """Find it, of whatever kind.

        Raises:
            BadToken: There is none, or its time is over. Unavailable: The file cannot be read now.
        """
        if self._clock.monotonic() - self._looked >= LOOK_AGAIN_S:
            async with self._lock:
                if self._clock.monotonic() - self._looked >= LOOK_AGAIN_S:
                    await self._look()
        if self._problem:
            raise Unavailable("tokens cannot be checked now; try again", retry_after_s=5.0)
        # A guess cannot be steered towards an entry: what is looked up is its hash.
        digest = hash_of(token)
        found = self._entries.get(digest)
        if found is None or not hmac.compare_digest(found.sha256, digest):
            raise BadToken("unknown or revoked")
        if found.expires_at_ms and self._clock.unix_ms() >= found.expires_at_ms:
            raise BadToken(f"{found.name}: its time is over")
        return found

    async def _look(self) -> None:
        try:
            stamp = await asyncio.to_thread(lambda: stamp_of(os.stat(self._path)))
            if stamp != self._stamp:
                stamp, self._entries = await asyncio.to_thread(
                    load_tokens, self._path, self._quotas
                )
                log.info("auth.tokens_loaded", path=str(self._path), tokens=len(self._entries))
        except (InvalidRequest, OSError) as error:
            problem = f"the file of tokens {str(self._path)!r} cannot be used: {_words(error)}"
            if problem != self._problem:
                log.error("auth.tokens_unusable", path=str(self._path), why=_words(error))
            self._problem, self._stamp, self._entries = problem, None, {}
        else:
            self._problem, self._stamp = "", stamp
        self._looked = self._clock.monotonic()


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def load_tokens(path: Path, quotas: Quotas) -> tuple[Stamp, Mapping[str, TokenEntry]]:
    """Read a file of tokens: its identity, and the entries by hash. Blocks.

    Raises:
        InvalidRequest: Others may write or read it, or a line is damaged. OSError: open(2).
    """
    # Followed, for mounted secrets are links; what counts is the file that was opened.
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        check_private(found)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(f"more than {MAX_FILE_BYTES} bytes")
    entries: dict[str, TokenEntry] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            line = raw.decode().strip()
            if line and not line.startswith("#"):
                entry = from_line(line, quotas)
                entries[entry.sha256] = entry
        except ValueError as error:
            raise InvalidRequest(f"line {number}: {error}") from None
    return stamp_of(found), entries


def stamp_of(found: os.stat_result) -> Stamp:
    """What is another when the file is; ctime changes with the mode and the owner too."""
    return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def check_private(found: os.stat_result) -> None:
    """Refuse a file that others may write or read; a group may read.

    Raises:
        InvalidRequest: Says what its mode should be.
    """
    if not stat.S_ISREG(found.st_mode):
        raise InvalidRequest("it is no regular file")
    if found.st_uid not in {os.geteuid(), 0}:
        raise InvalidRequest(f"it belongs to uid {found.st_uid}, not to this process's user")
    if found.st_mode & 0o037:
        mode = stat.S_IMODE(found.st_mode)
        raise InvalidRequest(f"its mode is {mode:04o}; make it 0600 or 0640 (chmod)")
