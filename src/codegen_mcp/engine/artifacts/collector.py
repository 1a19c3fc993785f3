"""Registers the files that code left in ``artifacts/``. Implements ``task_ports.CollectsFiles``."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from codegen_mcp.core.errors import Conflict, NotFound, WorkerError
from codegen_mcp.core.paths import show_path
from codegen_mcp.engine.artifacts.base import ArtifactInfo, Artifacts
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.facts import DEFAULT_TYPE, MAX_NAME_BYTES
from codegen_mcp.engine.artifacts.left_files import (
    MAX_SCANNED,
    MAX_SCANNED_BYTES,
    LeftFile,
    LeftFiles,
    Seen,
)
from codegen_mcp.engine.artifacts.seen_files import load_seen, save_seen
from codegen_mcp.engine.task_ports import Collected, TaskSession

log = structlog.get_logger()

_SHOWN = 5
"""Files named in a note."""
_TYPES = mimetypes.MimeTypes(filenames=())
"""Python's own table: the same on every machine."""
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


@dataclass(slots=True)
class _Out:
    """What was left out."""

    files: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, file: LeftFile, why: str) -> None:
        self.count += 1
        if len(self.files) < _SHOWN:
            self.files.append(f"{show_path(file.path)} ({why})")

    def note(self) -> str:
        if not self.count:
            return ""
        more = f" and {self.count - len(self.files)} more" if self.count > len(self.files) else ""
        what = "file of artifacts/ was" if self.count == 1 else "files of artifacts/ were"
        return f"{self.count} {what} not registered: {', '.join(self.files)}{more}"


class FileCollector:
    """Stateless; what was registered before is remembered with each session's workspace."""

    def __init__(self, artifacts: Artifacts, config: ArtifactConfig) -> None:
        self._artifacts = artifacts
        self._config = config

    def wanted(self, session: TaskSession) -> bool:
        """One fstatat(2)."""
        return session.workspace.left_files.present()

    async def collect(self, session: TaskSession, task_id: str, collected: Collected) -> None:
        """Register what is new or changed, in the order of the paths."""
        out = _Out()
        try:
            async with asyncio.timeout(self._config.task_s):
                await self._collect(session, task_id, collected, out)
        except TimeoutError:
            collected.note = "registering the files of artifacts/ took too long; "
        except WorkerError as error:
            collected.note = f"files of artifacts/ could not be registered: {error.message}; "
        except Exception:
            log.exception("artifact.collect_failed", session_id=session.session_id, task_id=task_id)
            collected.note = "files of artifacts/ could not be registered; the log says why; "
        if collected.note:
            collected.note += "the next run tries again"
        collected.note = "; ".join(part for part in (out.note(), collected.note) if part)

    async def _collect(
        self, session: TaskSession, task_id: str, collected: Collected, out: _Out
    ) -> None:
        left = session.workspace.left_files
        if left.seen is None:
            left.seen = await load_seen(session.directory)
        scan = await left.scan()
        if scan.whole:
            there = {file.path for file in scan.files}
            for path in [path for path in left.seen if path not in there]:
                del left.seen[path]
        fresh = [file for file in scan.files if _changed(left.seen, file)]
        if not fresh:
            return
        total = 0
        try:
            for file in fresh:
                if await self._only_touched(left, file):
                    continue
                if why := self._unfit(file):
                    out.add(file, why)
                    left.seen[file.path] = Seen(file.mark, "")  # told once
                elif len(collected.artifacts) >= self._config.task_files:
                    out.add(file, f"beyond {self._config.task_files} files; the next run's turn")
                elif total + file.size > self._config.task_bytes:
                    out.add(file, f"beyond {self._config.task_bytes} bytes; the next run's turn")
                elif info := await self._put(session, task_id, left, file, out):
                    collected.artifacts.append(info.artifact_id)
                    left.seen[file.path] = Seen(file.mark, info.sha256)
                    total += file.size
        finally:
            if _too_much(left.seen):
                there = {file.path for file in scan.files}
                left.seen = {path: one for path, one in left.seen.items() if path in there}
            await save_seen(session.directory, left.seen)

    def _unfit(self, file: LeftFile) -> str:
        """Say why it never can be registered as it is."""
        if file.kind != "file":
            return f"a {file.kind}, not a regular file"
        most = min(self._config.task_bytes, self._config.max_bytes)
        if file.size > most:
            return f"{file.size} bytes, at most {most} are registered; download it"
        return ""

    async def _put(
        self, session: TaskSession, task_id: str, left: LeftFiles, file: LeftFile, out: _Out
    ) -> ArtifactInfo | None:
        name = name_of(file.path)
        try:
            async with aclosing(left.read(file)) as data:  # type: ignore[type-var]
                return await self._artifacts.put(
                    session_id=session.session_id,
                    task_id=task_id,
                    name=name,
                    content_type=type_of(name),
                    labels={"path": text_of(file.path)},
                    size_bytes=file.size,
                    data=data,
                )
        except (Conflict, NotFound):
            out.add(file, "changed while it was read; the next run's turn")
            return None

    async def _only_touched(self, left: LeftFiles, file: LeftFile) -> bool:
        """Whether it still has the bytes that were registered; then its new mark is noted."""
        assert left.seen is not None
        known = left.seen.get(file.path)
        if known is None or not known.touched(file.mark):
            return False
        if known.sha256:
            digest = hashlib.sha256()
            try:
                async with aclosing(left.read(file)) as data:  # type: ignore[type-var]
                    async for piece in data:
                        await asyncio.to_thread(digest.update, piece)
            except (Conflict, NotFound):
                return False
            if digest.hexdigest() != known.sha256:
                return False
        left.seen[file.path] = Seen(file.mark, known.sha256)
        return True


def _too_much(seen: dict[bytes, Seen]) -> bool:
    """Whether more is remembered than code can leave at a time: names may come and go for ever."""
    return len(seen) > 2 * MAX_SCANNED or sum(map(len, seen)) > 2 * MAX_SCANNED_BYTES


def _changed(seen: dict[bytes, Seen], file: LeftFile) -> bool:
    known = seen.get(file.path)
    return known is None or known.mark != file.mark


def text_of(path: bytes) -> str:
    """Return a path as one line of text; what is no UTF-8 or breaks a line is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(
        one if one.isprintable() or one == " " else one.encode("unicode_escape").decode()
        for one in text
    )


def name_of(path: bytes) -> str:
    """Return the name of a file as an artifact may have it."""
    name = text_of(path.rpartition(b"/")[2])
    if len(name.encode()) > MAX_NAME_BYTES:  # escapes are longer than what they stand for
        name = name.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    return name


def type_of(name: str) -> str:
    """Guess a media type by the name alone."""
    kind, encoding = _TYPES.guess_type("file:" + name.replace("#", "_"), strict=True)
    if encoding is not None:
        return _COMPRESSED.get(encoding, DEFAULT_TYPE)
    return kind or DEFAULT_TYPE
