"""Bytes on their way into the store, and what uploads were announced: files of this worker.

::

    ID.json     an announced upload, durable before its link is given out
    ID.part     being written
    ID.data     whole

What has no ``ID.json`` belongs to nobody once the worker that wrote it has ended.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import structlog

from codegen_mcp.core.errors import Full, InvalidRequest, LimitExceeded, Unavailable, WorkerError
from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.artifacts.record import Announced, read_announced, write_announced
from codegen_mcp.engine.durable import reserve, write_file
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

BATCH_BYTES = 1 * MIB
"""Small pieces are gathered up to this: a hand-over to a thread costs more than they do."""
RETRY_AFTER_S = 30.0


class Spool:
    """One directory, mode 0700, of one worker at a time."""

    def __init__(self, directory: Path, room: Callable[[], int]) -> None:
        """Name it.

        Args:
            directory: On the disk that ``room`` speaks of.
            room: Bytes that may still be written there.
        """
        self._directory = directory
        self._room = room

    async def open(self) -> list[Announced]:
        """Make it, delete what a dead worker left half done, return what it had announced."""
        return await to_end(self._open)

    async def announce(self, announced: Announced) -> None:
        """Remember an upload; on disk when this returns."""
        path, data = self._path(announced.artifact_id, "json"), write_announced(announced)
        with reporting():
            await to_end(lambda: write_file(path, data, durable=True))

    async def write(self, artifact_id: str, data: AsyncIterator[bytes], size: int) -> str:
        """Write exactly ``size`` bytes as ``ID.data``; their sha256. Nothing is left of less.

        Raises:
            LimitExceeded: There were more. InvalidRequest: Fewer. Full: The disk has no room.
        """
        if size > self._room():
            raise full(f"for {size} bytes")
        part = self._path(artifact_id, "part")
        digest, got, batch = hashlib.sha256(), 0, bytearray()
        with reporting():
            fd = await to_end(lambda: _create(part, size), lambda fd: _discard(fd, part))
        try:
            async for piece in data:
                got += len(piece)
                if got > size:
                    raise LimitExceeded(
                        f"more than the announced {size} bytes came; nothing was kept, announce "
                        "the size that it has"
                    )
                batch += piece
                if len(batch) >= BATCH_BYTES:
                    whole, batch = batch, bytearray()
                    with reporting():
                        await to_end(lambda whole=whole: _append(fd, digest, whole))  # type: ignore[misc]
            if got != size:
                raise InvalidRequest(
                    f"{got} bytes came, but {size} were announced; nothing was kept, send it again"
                )
            with reporting():
                await to_end(lambda: _append(fd, digest, batch))
                await to_end(lambda: os.replace(part, self.path(artifact_id)))
        except BaseException:
            await to_end(lambda: _discard(fd, part))
            raise
        os.close(fd)
        return digest.hexdigest()

    def path(self, artifact_id: str) -> Path:
        """Where the bytes of a whole one lie."""
        return self._path(artifact_id, "data")

    async def size(self, artifact_id: str) -> int | None:
        """How many bytes are there; None when none were sent."""
        path = self.path(artifact_id)
        return await to_end(lambda: path.stat().st_size if path.exists() else None)

    async def drop(self, artifact_id: str, *, announced: bool = True) -> None:
        """Delete its bytes and, unless it may be sent again, that it was announced."""
        paths = [self.path(artifact_id)]
        if announced:
            paths.append(self._path(artifact_id, "json"))
        await to_end(lambda: _unlink(paths))

    def _path(self, artifact_id: str, ending: str) -> Path:
        return self._directory / f"{artifact_id}.{ending}"

    def _open(self) -> list[Announced]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        found: dict[str, Announced] = {}
        for path in self._directory.glob("*.json"):
            try:
                found[path.stem] = read_announced(path.read_bytes())
            except WorkerError as error:
                log.warning("artifact.announcement_unreadable", file=path.name, reason=error.reason)
        for path in list(self._directory.iterdir()):
            if path.suffix in {".part", ".tmp"} or (
                path.suffix == ".data" and path.stem not in found
            ):
                path.unlink()
        return list(found.values())


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Turn an OSError of our own files into a typed error."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full("for the artifact") from error
        raise Unavailable(
            f"artifacts cannot be written to the state directory: {error.strerror}; see to its disk"
        ) from error


def full(what: str) -> Full:
    """Say that the disk has no room."""
    return Full(
        f"the disk of the worker has no room {what}; delete artifacts, or free space on the host",
        reason="DISK_FULL",
        retry_after_s=RETRY_AFTER_S,
    )


def _create(path: Path, size: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    if size:
        reserve(fd, 0, size)  # where it cannot be, the write says so
    return fd


def _append(fd: int, digest: hashlib._Hash, data: bytearray) -> None:
    digest.update(data)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _discard(fd: int, path: Path) -> None:
    os.close(fd)
    path.unlink(missing_ok=True)


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
