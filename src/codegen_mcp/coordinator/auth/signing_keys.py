"""The public keys of a token issuer (JWKS, RFC 7517): fetched by one task, kept, never waited for.

A set is fetched at the start and every five minutes. A token that names an unknown key asks for a
fetch, at most one each half minute, so that tokens made up by strangers cannot load the issuer.
While the issuer does not answer, the last set holds for an hour; then nobody can be told apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import jwt
import structlog

from codegen_mcp.core.clock import Clock
from codegen_mcp.core.errors import InvalidRequest, Unavailable

log = structlog.get_logger()

REFRESH_S = 300.0
"""Between two fetches."""
COOLDOWN_S = 30.0
"""Between two that unknown keys asked for, or after one that failed."""
STALE_S = 3600.0
"""How long a set holds when no newer one can be had: so long a withdrawn key may live on."""
FETCH_S = 5.0
"""For an answer."""
MAX_BYTES = 1024 * 1024
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class SigningKeys:
    """An async context manager that owns the task that fetches."""

    def __init__(self, source: str, clock: Clock) -> None:
        """Name the source.

        Args:
            source: A path, or an address: https, or http on loopback.
            clock: For ages.

        Raises:
            InvalidRequest: An address that anybody on the way could answer for.
        """
        parts = urlsplit(source)
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise InvalidRequest(f"keys from {source!r}: use https, for they decide who is let in")
        self._source = source
        self._remote = parts.scheme in {"http", "https"}
        self._clock = clock
        self._keys: Sequence[jwt.PyJWK] | None = None
        self._fetched = 0.0
        self._tried = -COOLDOWN_S
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SigningKeys:
        await self._fetch()
        if self._keys is None and not self._remote:
            raise InvalidRequest(f"no keys could be read from {self._source!r}; see the log")
        self._task = asyncio.create_task(self._keep_fresh(), name="signing-keys")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key of that id, or the only one where a token names none.

        Raises:
            Unavailable: No set could be had, or not for too long.
        """
        found = self._find(key_id)
        if found is None and self._may_ask():
            self._done.clear()
            self._wanted.set()
            try:
                async with asyncio.timeout(FETCH_S + 1):
                    await self._done.wait()
            except TimeoutError:
                pass
            found = self._find(key_id)
        if self._keys is None or self._clock.monotonic() - self._fetched > STALE_S:
            raise Unavailable(
                "tokens cannot be checked now: their issuer's keys cannot be had; try again",
                retry_after_s=COOLDOWN_S,
            )
        return found

    def _may_ask(self) -> bool:
        # Whoever comes while one is under way waits for it; after it, nobody does for a while.
        return self._wanted.is_set() or self._clock.monotonic() - self._tried >= COOLDOWN_S

    def _find(self, key_id: str | None) -> jwt.PyJWK | None:
        keys = self._keys or ()
        if key_id is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.key_id == key_id), None)

    async def _keep_fresh(self) -> None:
        while True:
            delay = REFRESH_S if self._clock.monotonic() - self._fetched < REFRESH_S else COOLDOWN_S
            try:
                async with asyncio.timeout(delay):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            await self._fetch()
            self._wanted.clear()
            self._done.set()

    async def _fetch(self) -> None:
        self._tried = self._clock.monotonic()
        try:
            keys = await asyncio.to_thread(load_keys, self._source)
        except Exception as error:  # whatever a strange answer makes of itself
            log.error("auth.keys_not_had", source=self._source, why=str(error))
            return
        if self._keys is None or {k.key_id for k in keys} != {k.key_id for k in self._keys}:
            log.info("auth.keys_loaded", source=self._source, keys=len(keys))
        self._keys, self._fetched = keys, self._clock.monotonic()


def load_keys(source: str) -> Sequence[jwt.PyJWK]:
    """Read a JWK set from an address or a file. Blocks.

    Raises:
        OSError, jwt.PyJWTError, ValueError: It cannot be had, or is none.
    """
    if urlsplit(source).scheme in {"http", "https"}:
        # Follows no redirect: only the named host may answer.
        found = jwt.PyJWKClient(source, timeout=FETCH_S, cache_jwk_set=False).fetch_data()
        return _signing(jwt.PyJWKSet.from_dict(found))
    path = Path(source.removeprefix("file://"))
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return _signing(jwt.PyJWKSet.from_json(data.decode()))


def _signing(keys: jwt.PyJWKSet) -> Sequence[jwt.PyJWK]:
    """Only those for signatures, by RFC 7517, 4.2."""
    return [key for key in keys.keys if key.public_key_use in {None, "sig"}]
