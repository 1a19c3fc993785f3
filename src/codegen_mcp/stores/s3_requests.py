"""One request to S3 each, bounded in time, with our errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.store import S3Store as ObstoreS3

from codegen_mcp.core.errors import NotFound
from codegen_mcp.stores.base import ObjectInfo
from codegen_mcp.stores.s3_config import S3Config
from codegen_mcp.stores.s3_errors import EXPECTED, AnswerLost, translate

if TYPE_CHECKING:  # obstore has these in its stubs only
    from obstore import ObjectMeta
    from obstore.store import S3Config as Options

_WHOLE_BODY = timedelta(days=1)
"""A body may take as long as it flows: the wait for the next bytes is what is bounded."""
WRITER = "codegen-writer"
"""Metadata of an object: who created it, to know one's own after a lost answer."""


def connect(config: S3Config) -> ObstoreS3:
    """Make obstore's store. Nothing is sent."""
    options: Options = {
        "endpoint": config.base_url,
        "region": config.region,
        "access_key_id": config.access_key_id,
        "secret_access_key": config.secret_access_key,
        "virtual_hosted_style_request": False,
        "checksum_algorithm": "SHA256",
        "conditional_put": "etag",
        "copy_if_not_exists": "multipart",
        "disable_bulk_delete": True,
    }
    if config.session_token:
        options["session_token"] = config.session_token
    return ObstoreS3(
        config.bucket,
        prefix=config.prefix or None,
        config=options,
        client_options={
            "allow_http": config.allow_http,
            "connect_timeout": timedelta(seconds=config.connect_timeout_s),
            "read_timeout": timedelta(seconds=config.request_timeout_s),
            "timeout": _WHOLE_BODY,
        },
        retry_config={
            "max_retries": config.max_retries,
            "retry_timeout": timedelta(seconds=config.retry_timeout_s),
            "backoff": {
                "init_backoff": timedelta(seconds=config.first_retry_s),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


class S3Requests:
    """What ``S3Store`` and its uploads ask of the service. Keys are checked by them."""

    def __init__(self, config: S3Config) -> None:
        self.config = config
        self.store = connect(config)
        self._longest_s = config.retry_timeout_s + config.request_timeout_s

    @asynccontextmanager
    async def answered(self, key: str, *, extra_s: float = 0.0) -> AsyncIterator[None]:
        """Bound what is awaited inside, and raise our errors for obstore's."""
        try:
            async with asyncio.timeout(self._longest_s + extra_s):
                yield
        except EXPECTED as error:
            raise translate(error, self.config.url, key) from error

    async def head(self, key: str) -> ObjectInfo:
        """Size and time. NotFound when there is none."""
        try:
            async with self.answered(key):
                return info(key, await obstore.head_async(self.store, key))
        except NotFound:
            # The answer to HEAD has no body that could tell a missing bucket from a missing key.
            async with self.answered(key):
                return info(key, (await obstore.get_async(self.store, key)).meta)

    async def writer(self, key: str) -> str | None:
        """Who created it; None when there is none."""
        try:
            async with self.answered(key):
                found = await obstore.get_async(self.store, key, options={"head": True})
                return found.attributes.get(WRITER, "")
        except NotFound:
            return None

    async def create(self, key: str, data: bytes, writer: str) -> None:
        """Send a whole object. AlreadyExists when there is one: perhaps our own, sent twice."""

        async def send() -> None:
            async with self.answered(key, extra_s=len(data) / self.config.slowest_bytes_per_s):
                await obstore.put_async(
                    self.store,
                    key,
                    data,
                    mode="create",
                    use_multipart=False,
                    attributes={WRITER: writer},
                )

        await self._again(send)

    async def copy(self, source: str, key: str, size: int) -> None:
        """Copy within the service. AlreadyExists when there is one."""
        async with self.answered(key, extra_s=size / self.config.slowest_bytes_per_s):
            await obstore.copy_async(self.store, source, key, overwrite=False)

    async def delete(self, key: str) -> None:
        """Delete; missing is fine."""

        async def send() -> None:
            async with self.answered(key):
                await obstore.delete_async(self.store, key)

        await self._again(send)

    async def _again(self, send: Callable[[], Awaitable[None]]) -> None:
        """Send anew what may be sent twice; obstore does so only after an answer of 5xx."""
        for attempt in range(self.config.max_retries):
            try:
                await send()
                return
            except AnswerLost:
                await asyncio.sleep(self.config.first_retry_s * 2 ** min(attempt, 5))
        await send()


def info(key: str, meta: ObjectMeta) -> ObjectInfo:
    """Our facts of obstore's."""
    modified_ms = int(meta["last_modified"].timestamp() * 1000)
    return ObjectInfo(key=key, size=meta["size"], modified_ms=modified_ms)
