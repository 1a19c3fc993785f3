"""Trees for the tests of a refill: made, saved as a checkpoint, refilled by the program itself."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codegen_mcp.core.checkpoint import Entry, EntryKind
from codegen_mcp.core.limits import MIB, ResourceLimits, RunLimits, Usage
from codegen_mcp.core.output import OutputSink
from codegen_mcp.core.task import Argv, Command, EndedBy, Outcome, Stream
from codegen_mcp.engine.checkpoints.archive_writer import ArchiveWriter
from codegen_mcp.engine.checkpoints.manifest import Manifest, encode_manifest
from codegen_mcp.engine.checkpoints.refill import refill
from codegen_mcp.engine.checkpoints.refill_feed import ArchiveSource
from codegen_mcp.engine.checkpoints.refill_program import refill_program
from codegen_mcp.engine.checkpoints.scan import Seen
from codegen_mcp.engine.checkpoints.source_files import (
    data_segments,
    hash_whole,
    open_entry,
    reader,
)
from codegen_mcp.engine.checkpoints.tree_compare import first_difference, walk_volume
from codegen_mcp.sandbox.base import FreezeReport
from codegen_mcp.testing.sandbox_rig import Rig

SESSION = "ses_" + "7" * 32
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One checkpoint of a tree, in memory."""

    number: int
    manifest: Manifest
    lines: bytes
    archive: bytes
    """As in a store."""
    chain: Sequence[Saved] = ()
    """Those before it."""

    @property
    def tar(self) -> bytes:
        """The archive, inflated."""
        return gzip.decompress(self.archive)

    def sources(self, piece_bytes: int = 65536) -> list[ArchiveSource]:
        """What ``refill`` takes."""
        return [
            ArchiveSource(
                number=one.number,
                inflated_bytes=len(one.tar),
                pieces=in_pieces(one.archive, piece_bytes),
            )
            for one in (*self.chain, self)
        ]


async def in_pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    """Give bytes as a store does."""
    for at in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[at : at + size]


def make_volume(directory: Path) -> Path:
    """Make an empty volume."""
    for name in ("workspace", "venv"):
        (directory / name).mkdir(parents=True)
    return directory


def save(root: Path, parent: Saved | None = None) -> Saved:
    """Save what lies in a volume; only what changed when there is a parent."""
    number = parent.number + 1 if parent else 1
    before = {one.path: one for one in parent.manifest.entries} if parent else {}
    entries: list[Entry] = []
    file = io.BytesIO()
    fd = os.open(root, os.O_PATH)
    try:
        with ArchiveWriter(file) as writer:
            for seen in walk_volume(root):
                entry = _entry(seen, number)
                if entry.kind is EntryKind.FILE:
                    entry = _add_file(writer, fd, entry, before.get(entry.path))
                elif parent is None:
                    writer.add(entry)
                entries.append(entry)
            writer.finish()
    finally:
        os.close(fd)
    manifest = Manifest(f"{SESSION}.1.{number}", number - 1, tuple(entries))
    chain = (*parent.chain, parent) if parent else ()
    lines = gzip.decompress(encode_manifest(manifest))
    return Saved(
        number=number, manifest=manifest, lines=lines, archive=file.getvalue(), chain=chain
    )


def _entry(seen: Seen, number: int) -> Entry:
    assert seen.kind is not None
    is_file = seen.kind is EntryKind.FILE
    return Entry(
        seen.path,
        seen.kind,
        seen.mode,
        seen.mtime_ns,
        seen.size if is_file else 0,
        b"",
        seen.target,
        number if is_file else 0,
    )


def _add_file(writer: ArchiveWriter, root: int, entry: Entry, known: Entry | None) -> Entry:
    fd = open_entry(root, entry.path, os.O_RDONLY)
    try:
        if known is not None and known.sha256 == hash_whole(fd, entry.size)[1]:
            return replace(entry, sha256=known.sha256, source=known.source, sparse=known.sparse)
        segments = data_segments(fd, os.fstat(fd))
        os.lseek(fd, 0, os.SEEK_SET)
        if segments is None:
            return writer.add(entry, reader(fd))
        # Without data there is one part of no length: no parts at all would mean all of it.
        return writer.add(replace(entry, sparse=True), reader(fd), segments or [(0, 0)])
    finally:
        os.close(fd)


def stream(lines: bytes, archives: Mapping[int, bytes]) -> bytes:
    """Return what the program reads: manifest lines, and number to tar."""
    told = [{"number": number, "bytes": len(tar)} for number, tar in archives.items()]
    head = {"format": 1, "manifest_bytes": len(lines), "archives": told}
    return b"".join((json.dumps(head).encode(), b"\n", lines, *archives.values()))


def run_program(
    root: Path, data: bytes, *, python: str = sys.executable, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run the program on a volume, as an ordinary process without walls."""
    return subprocess.run(
        [*prefix, python, "-I", "-S", "-c", refill_program(), *program_arguments(root)],
        input=data,
        capture_output=True,
        timeout=_TIMEOUT_S,
        env={"PATH": os.defpath},
        check=False,
    )


def program_arguments(root: Path) -> list[str]:
    """Return those that name this volume."""
    paths = [root / "workspace", root / "venv"]
    found = [path.stat() for path in paths]
    return [*(f"{one.st_dev}:{one.st_ino}" for one in found), *map(str, paths)]


class ChildSandbox:
    """A sandbox without walls, whose runs are ordinary child processes of the test."""

    def __init__(self) -> None:
        self.alive = True
        self.runs = 0
        """How many were begun."""

    async def run(self, command: Command, sink: OutputSink) -> Outcome:
        """Run an argument vector; a cancelled one is killed."""
        assert isinstance(command.program, Argv)
        assert command.stdin_fd is not None
        self.runs += 1
        process = await asyncio.create_subprocess_exec(
            *command.program.argv,
            stdin=command.stdin_fd,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(command.env),
        )
        try:
            async with asyncio.timeout(command.limits.timeout_s):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            return Outcome(ended_by=EndedBy.TIMEOUT, exit_code=124, remedy="allow it more time")
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        for stream_of, data in ((Stream.STDOUT, stdout), (Stream.STDERR, stderr)):
            if data:
                await sink.write(stream_of, data)
        code = process.returncode or 0
        if code < 0:
            return Outcome(ended_by=EndedBy.SIGNAL, exit_code=128 - code, signal=-code)
        return Outcome(ended_by=EndedBy.EXIT, exit_code=code)

    async def set_environment(self, env: Mapping[str, str]) -> None:
        """Ignore it."""

    async def set_limits(self, limits: ResourceLimits) -> None:
        """Ignore them."""

    def moved(self, directory: Path) -> None:
        """Ignore it."""

    async def packages_changed(self) -> None:
        """Nothing is warm."""

    def usage(self) -> Usage:
        """Count nothing."""
        return Usage()

    def processes(self) -> list[int]:
        """There are none between runs."""
        return []

    async def freeze(self) -> FreezeReport:
        """It cannot."""
        return FreezeReport(frozen=False, how="none")

    async def thaw(self) -> None:
        """Nothing was frozen."""

    async def aclose(self) -> None:
        """End it."""
        self.alive = False


async def refill_and_compare(rig: Rig, directory: Path) -> str:
    """Refill a sandbox of a rig from a tree with closed directories; the first difference."""
    source = make_volume(directory / "refill-source")
    inner = source / "workspace/outer/inner"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(os.urandom(3000))
    (inner / "file").chmod(0o400)
    os.link(inner / "file", source / "workspace/hard")
    os.symlink("text", source / "venv/link")
    os.mkfifo(source / "venv/pipe", 0o600)
    saved = save(source)
    closed = [
        replace(one, mode=0) if one.path.endswith(b"inner") else one
        for one in saved.manifest.entries
    ]
    manifest = replace(saved.manifest, entries=tuple(closed))
    place = await rig.place()
    await refill(
        place.sandbox,
        manifest=manifest,
        manifest_lines=gzip.decompress(encode_manifest(manifest)),
        archives=saved.sources(),
        limits=RunLimits(timeout_s=20, output_bytes=MIB),
        python=place.spec.interpreter.executable,
        root=place.spec.volume.root,
    )
    return first_difference(closed, walk_volume(place.spec.volume.root))
