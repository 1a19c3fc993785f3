"""Creating objects in S3, each only if absent.

A small one is a single PUT with ``If-None-Match: *`` (RFC 9110, 13.1.2). A large one goes up in
parts to ``~staging/<random>`` (no key has a ``~``), is checked there, and is then copied within the
service to its key by a multipart upload that is completed with ``If-None-Match: *``: the only one
that obstore can make conditional. Before that is a HEAD, for services that do not heed the
condition there: with those, and above what can be copied in one request (5 GiB), the last of
several writers at the same moment wins. So it is for objects of any size with services that look
and write in two steps (Amazon S3 does both in one; OpenStack Swift does not).

After a lost answer a small object is known as ours by its metadata; a large one may be reported as
AlreadyExists although it is ours.

A worker killed on the way leaves parts (a lifecycle rule of the bucket removes them:
AbortIncompleteMultipartUpload) or an object in ``~staging/``, which the first large upload a day
later removes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore

from codegen_mcp.core.errors import AlreadyExists, NotFound, StoreUnavailable, WorkerError
from codegen_mcp.stores.s3_requests import S3Requests
from codegen_mcp.stores.source import hashed_pieces, open_source
from codegen_mcp.stores.threads import StopFlag

STAGING = "~staging"
_ATTEMPTS = 3
_MOST_PARTS = 9_000
"""10,000 are allowed; obstore's last part may be small."""
_ABORT_S = 30.0


async def create_small(requests: S3Requests, key: str, data: bytes) -> None:
    """Create from bytes.

    Raises:
        AlreadyExists: There is one of somebody else.
    """
    writer = secrets.token_hex(16)
    for _ in range(_ATTEMPTS):
        try:
            await requests.create(key, data, writer)
            return
        except AlreadyExists:
            found = await requests.writer(key)
            if found == writer:
                return
            if found is not None:
                raise
            # 409: another writer was under way, and has failed since.
    raise StoreUnavailable(f"{key!r} could not be created: others keep failing to; try again")


async def create_large(
    requests: S3Requests, key: str, path: Path, *, sha256: str, size: int, stop: StopFlag
) -> None:
    """Create from a file, in parts. Ends early, and clean, once ``stop`` is set.

    Raises:
        AlreadyExists: There is one. Corrupt: Another sha256. Stopped.
    """
    await _check_absent(requests, key)
    if size > requests.config.copy_bytes:
        await _send(requests, key, path, sha256, size, stop)
        return
    staged = f"{STAGING}/{secrets.token_hex(16)}"
    try:
        await _send(requests, staged, path, sha256, size, stop)
        stop.check()
        await _check_absent(requests, key)
        await requests.copy(staged, key, size)
    finally:
        with suppress(WorkerError):  # then it is stale some day
            await requests.delete(staged)
            await _remove_stale(requests)


async def _check_absent(requests: S3Requests, key: str) -> None:
    with suppress(NotFound):
        await requests.head(key)
        raise AlreadyExists(f"there is an object {key!r} already")


async def _send(
    requests: S3Requests, key: str, path: Path, sha256: str, size: int, stop: StopFlag
) -> None:
    """Upload in parts; memory use is that of a few of them.

    obstore asks for the pieces in threads of its own. What the iterator raises aborts the upload.
    """
    config = requests.config
    ended = StopFlag()

    def pieces() -> Iterator[bytes]:
        with open_source(path) as source:
            for piece in hashed_pieces(source, sha256, str(path), stop):
                ended.check()
                yield bytes(piece)
            sent = os.fstat(source).st_size
        if sent != size:
            raise StoreUnavailable(f"{str(path)!r} changed while it was stored; try again")

    async with requests.answered(key, extra_s=size / config.slowest_bytes_per_s):
        upload = asyncio.ensure_future(
            obstore.put_async(
                requests.store,
                key,
                pieces(),
                use_multipart=True,
                chunk_size=max(config.part_bytes, -(-size // _MOST_PARTS)),
                max_concurrency=config.parallel_parts,
            )
        )
        try:
            await asyncio.shield(upload)
        except asyncio.CancelledError:
            # Cancelling obstore's own future would leave the parts; an error makes it abort them.
            ended.set()
            await asyncio.wait([upload], timeout=_ABORT_S)
            upload.cancel()
            if upload.done() and not upload.cancelled():
                upload.exception()
            raise


async def _remove_stale(requests: S3Requests) -> None:
    """Delete what killed workers left, a day after."""
    before = datetime.now(UTC) - timedelta(seconds=requests.config.staging_kept_s)
    async with requests.answered(""):
        stream = obstore.list(requests.store, STAGING)
        while batch := await anext(stream, None):
            for meta in batch:
                if meta["last_modified"] < before:
                    await obstore.delete_async(requests.store, meta["path"])
