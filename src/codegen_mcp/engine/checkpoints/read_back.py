"""Reads a stored archive back and compares it with its manifest."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import Corrupt
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.catalog import Catalog
from codegen_mcp.engine.checkpoints.manifest import Manifest
from codegen_mcp.sandbox.volumes.threads import to_end

SMALL_BYTES = 2 * 1024 * 1024
"""Of tar: up to this a second thread costs more than it gives."""
HEAD_ROOM = 64 * 1024 * 1024
"""How much more than its manifest says an archive may inflate to, headers included."""


async def verify_stored(catalog: Catalog, info: CheckpointInfo, manifest: Manifest) -> int:
    """Read an archive back from the store and compare it with its manifest; bytes read.

    Raises:
        NotFound: It is not there. Corrupt: It is damaged.
    """
    loop, left = asyncio.get_running_loop(), threading.Event()
    pieces = catalog.archive(info.checkpoint_id)

    def verify() -> tuple[int, int]:
        verified = verify_archive(
            blocking(loop, pieces, left),
            manifest,
            info.checkpoint_id.number,
            sha256=info.sha256,
            max_inflated=info.inflated_bytes + info.total_bytes + HEAD_ROOM,
            ahead=info.inflated_bytes > SMALL_BYTES,
        )
        return verified.inflated_bytes, verified.size

    try:
        async with catalog.verifying:
            inflated, size = await to_end(verify, stop=left.set)
    except Corrupt as error:
        raise Corrupt(
            f"the archive of checkpoint {str(info.checkpoint_id)!r} is damaged: {error.message}",
            reason="CHECKPOINT_DAMAGED",
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            await pieces.aclose()
    if inflated != info.inflated_bytes:
        raise Corrupt(
            f"the archive of checkpoint {str(info.checkpoint_id)!r} is not as long as recorded",
            reason="CHECKPOINT_DAMAGED",
        )
    return size


def blocking(
    loop: asyncio.AbstractEventLoop, pieces: AsyncIterator[bytes], left: threading.Event
) -> Iterator[bytes]:
    """Read an asynchronous stream from a thread while the loop goes on.

    It ends early, as if the stream did, once ``left`` is set.
    """

    async def following() -> bytes:
        return await anext(pieces, b"")

    while not left.is_set():
        piece = asyncio.run_coroutine_threadsafe(following(), loop).result()
        if not piece:
            return
        yield piece
