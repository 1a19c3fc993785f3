"""One checkpoint as one file: everything that a restore needs, in a tar.gz.

Members are the objects of the chain under their keys, metadata last, as ``Catalog`` names them.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, EntryKind
from codegen_mcp.core.errors import (
    AlreadyExists,
    Corrupt,
    Full,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from codegen_mcp.core.limits import MIB
from codegen_mcp.engine.checkpoints.archive_reader import verify_archive
from codegen_mcp.engine.checkpoints.catalog import (
    ARCHIVE,
    INFO,
    JOURNAL,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    TOMBSTONE,
    Catalog,
    parse_key,
)
from codegen_mcp.engine.checkpoints.manifest import Manifest, decode_manifest
from codegen_mcp.engine.checkpoints.metadata import MAX_BYTES, MAX_CHAIN, decode_info
from codegen_mcp.engine.checkpoints.read_back import HEAD_ROOM
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.sandbox.volumes.space import free_on
from codegen_mcp.sandbox.volumes.threads import to_end

_PIECE = 1024 * 1024
_ORDER = (ARCHIVE, MANIFEST, JOURNAL, INFO)
_MOST = {MANIFEST: MAX_MANIFEST_BYTES, JOURNAL: MAX_MANIFEST_BYTES, INFO: MAX_BYTES}
MAX_PARTS = len(_ORDER) * MAX_CHAIN
FREE_BYTES = 256 * MIB
"""What an import leaves free: a few bytes of gzip can stand for any number."""


async def export_checkpoint(catalog: Catalog, info: CheckpointInfo, target: Path) -> int:
    """Write a checkpoint and its chain to a new file; its bytes.

    Raises:
        AlreadyExists: There is a file of that name. NotFound: A part is missing.
        Unavailable: It cannot be written.
    """
    try:
        file = await to_end(lambda: _create(target), lambda opened: opened.close())
    except FileExistsError as error:
        raise AlreadyExists(f"{str(target)!r} is there already; name another file") from error
    except OSError as error:
        raise Unavailable(f"{str(target)!r} cannot be written: {error.strerror}") from error
    try:
        with (
            file,
            tarfile.open(
                fileobj=file, mode="w:gz", compresslevel=1, format=tarfile.GNU_FORMAT
            ) as archive,
        ):
            for number in info.chain:
                await _export_one(catalog, replace(info.checkpoint_id, number=number), archive)
        return await to_end(lambda: _synced(target))
    except BaseException:
        await to_end(lambda: target.unlink(missing_ok=True))
        raise


async def _export_one(
    catalog: Catalog, checkpoint_id: CheckpointId, archive: tarfile.TarFile
) -> None:
    for suffix in _ORDER:
        key = checkpoint_id.key + suffix
        try:
            size = (await catalog.store.stat(key)).size
        except NotFound:
            if suffix == JOURNAL:
                continue
            raise
        with tempfile.TemporaryFile() as copy:
            async with aclosing(catalog.store.get(key)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    await asyncio.to_thread(copy.write, piece)
            copy.seek(0)
            member = tarfile.TarInfo(key)
            member.size, member.mode = size, 0o644
            await to_end(lambda m=member, c=copy: archive.addfile(m, c))  # type: ignore[misc]


async def import_checkpoint(
    catalog: Catalog, spool: Spool, locks: SessionLocks, source: Path
) -> CheckpointInfo:
    """Take in what ``export_checkpoint`` wrote; everything is verified before anything is stored.

    Raises:
        Corrupt: Damaged, or not such a file. AlreadyExists: That checkpoint is here already.
    """
    parcel = await to_end(lambda: _open(source, spool), _Parcel.close)
    try:
        info = await to_end(parcel.verify)
        async with locks.hold(info.checkpoint_id.session_id):
            await _take_in(catalog, parcel, info)
        return info
    finally:
        await to_end(parcel.close)


async def _take_in(catalog: Catalog, parcel: _Parcel, info: CheckpointInfo) -> None:
    asked = info.checkpoint_id
    there = (await catalog.shelf(asked.session_id)).objects
    chain = [replace(asked, number=number) for number in info.chain]
    complete = [one for one in chain if INFO in there.get(one, ())]
    for one in complete:
        same = await catalog.info(one, hidden=True) == parcel.infos[one]
        if not same or (one == asked and TOMBSTONE not in there[asked]):
            raise AlreadyExists(f"checkpoint {str(one)!r} is here already", reason="ALREADY_EXISTS")
    for one in chain:
        if one not in complete:
            await catalog.remove(one, there.get(one, set()) - {TOMBSTONE})  # of a dead attempt
            if one != asked:
                await catalog.hide(one)  # only its archive was asked for
            await parcel.store(catalog, one)
    if TOMBSTONE in there.get(asked, ()):
        await catalog.unhide(asked)  # it was deleted once


@dataclass(slots=True)
class _Parcel:
    """The parts of an exported file, each in a file of ours."""

    directory: Path
    parts: dict[str, IO[bytes]] = field(default_factory=dict)
    infos: dict[CheckpointId, CheckpointInfo] = field(default_factory=dict)

    def close(self) -> None:
        for part in self.parts.values():
            part.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def admit(self, member: tarfile.TarInfo) -> None:
        """Accept a part before its bytes are taken.

        Raises:
            Corrupt: It is no object of ours, there already, one too many, or too long. Full: There
            is no room for it.
        """
        parsed = parse_key(member.name)
        if parsed is None or parsed[1] == TOMBSTONE:
            raise Corrupt(f"the file holds {member.name[:120]!r}, no object of ours")
        if member.name in self.parts:
            raise Corrupt(f"the file holds {member.name!r} twice")
        if len(self.parts) == MAX_PARTS or member.size > _MOST.get(parsed[1], member.size):
            raise Corrupt(f"the file holds too many objects, or a too long one: {member.name!r}")
        if member.size > free_on(self.directory) - FREE_BYTES:
            raise Full(
                f"{str(self.directory)!r} has no room for {member.name!r} of {member.size} bytes; "
                "free space there, or name another directory with TMPDIR",
                reason="DISK_FULL",
            )

    def verify(self) -> CheckpointInfo:
        """Check every part against its metadata, and that the chain is whole."""
        for key in self.parts:
            parsed = parse_key(key)
            if parsed is not None and parsed[1] == INFO:
                self.infos[parsed[0]] = decode_info(self._read(key, MAX_BYTES), parsed[0])
        if not self.infos or len({one.session_id for one in self.infos}) != 1:
            raise Corrupt("the file holds no checkpoint, or those of several sessions")
        info = self.infos[max(self.infos, key=lambda one: (one.epoch, one.number))]
        chain = {replace(info.checkpoint_id, number=number) for number in info.chain}
        if set(self.infos) != chain:
            raise Corrupt("the file does not hold exactly the chain of its checkpoint")
        manifests = {one.checkpoint_id.number: self._verify(one) for one in self.infos.values()}
        for number, files in _needed(manifests[info.checkpoint_id.number]).items():
            if number not in manifests or not files <= _needed(manifests[number])[number]:
                raise Corrupt("a manifest in the file needs bytes that no archive in it holds")
        return info

    async def store(self, catalog: Catalog, checkpoint_id: CheckpointId) -> None:
        """Store the objects of one checkpoint, metadata last."""
        for suffix in _ORDER:
            part = self.parts.get(checkpoint_id.key + suffix)
            if part is None:
                continue
            path = Path(part.name)
            digest = await to_end(lambda p=part: _digest(p))  # type: ignore[misc]
            with _present_is_fine(suffix):
                await catalog.store.put_file(checkpoint_id.key + suffix, path, sha256=digest)

    def _verify(self, info: CheckpointInfo) -> Manifest:
        key = info.checkpoint_id.key
        data = self._read(key + MANIFEST, MAX_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != info.manifest_sha256:
            raise Corrupt("a manifest in the file is damaged")
        manifest = decode_manifest(data, expected_checkpoint=str(info.checkpoint_id))
        if info.journal_sha256:
            journal = self._read(key + JOURNAL, MAX_MANIFEST_BYTES)
            if hashlib.sha256(journal).hexdigest() != info.journal_sha256:
                raise Corrupt("a task journal in the file is damaged")
        found = verify_archive(
            _pieces(self._part(key + ARCHIVE)),
            manifest,
            info.checkpoint_id.number,
            sha256=info.sha256,
            max_inflated=info.inflated_bytes + info.total_bytes + HEAD_ROOM,
        )
        if (found.size, found.inflated_bytes) != (info.size_bytes, info.inflated_bytes):
            raise Corrupt("an archive in the file is not as long as its metadata says")
        return manifest

    def _part(self, key: str) -> IO[bytes]:
        try:
            return self.parts[key]
        except KeyError:
            raise Corrupt(f"the file lacks {key!r}") from None

    def _read(self, key: str, limit: int) -> bytes:
        part = self._part(key)
        part.seek(0)
        data = part.read(limit + 1)
        if len(data) > limit:
            raise Corrupt(f"{key!r} is longer than {limit} bytes")
        return data


def _needed(manifest: Manifest) -> dict[int, set[tuple[bytes, int, bytes, bool]]]:
    """Return what each archive must hold, by its number."""
    found: dict[int, set[tuple[bytes, int, bytes, bool]]] = defaultdict(set)
    for one in manifest.entries:
        if one.kind is EntryKind.FILE:
            found[one.source].add((one.path, one.size, one.sha256, one.sparse))
    return found


class _present_is_fine:
    """An archive, manifest or journal that is there already: the metadata decides, and is last."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, AlreadyExists) and self._suffix != INFO


def _open(source: Path, spool: Spool) -> _Parcel:
    parcel = _Parcel(spool.directory())
    try:
        with tarfile.open(source, mode="r|gz", tarinfo=_Member) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                parcel.admit(member)
                path = parcel.directory / str(len(parcel.parts))
                part = parcel.parts[member.name] = path.open("x+b")
                while piece := content.read(_PIECE):
                    part.write(piece)
                part.flush()
                if part.tell() != member.size:
                    raise Corrupt(f"{member.name!r} is cut off in the file")
    except BaseException as error:
        parcel.close()
        if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
            raise InvalidRequest(f"{str(source)!r} cannot be read: {error.strerror}") from error
        if isinstance(error, tarfile.TarError | EOFError | io.UnsupportedOperation | OSError):
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Corrupt(f"{str(source)!r} is damaged or no exported checkpoint") from error
        raise
    return parcel


class _Member(tarfile.TarInfo):
    """A plain file, or Corrupt: records of long names and the like are read whole by tarfile."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise Corrupt(f"the file holds {self.name[:120]!r}, no object of ours")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def _create(target: Path) -> IO[bytes]:
    """Make a file for our user alone: it holds the session's variables with their values."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(target, flags, 0o600), "wb")


def _pieces(part: IO[bytes]) -> Iterator[bytes]:
    part.seek(0)
    while piece := part.read(_PIECE):
        yield piece


def _digest(part: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(part):
        digest.update(piece)
    return digest.hexdigest()


def _synced(target: Path) -> int:
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)
