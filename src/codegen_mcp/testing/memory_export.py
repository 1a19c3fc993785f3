"""One file for one checkpoint of ``MemoryCheckpoints``: a tar.gz with its facts and its files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo, parse_checkpoint_id
from codegen_mcp.core.errors import AlreadyExists, Corrupt, WorkerError
from codegen_mcp.engine.checkpoints.metadata import decode_info, encode_info
from codegen_mcp.testing.memory_workspace import Entry

DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    WorkerError,
)
"""What reading a damaged file may raise."""


def pack(info: CheckpointInfo, entries: Mapping[bytes, Entry], target: Path) -> int:
    """Write them to a new file; its size.

    Raises:
        AlreadyExists: There is a file of that name.
    """
    if target.exists():
        raise AlreadyExists(f"{str(target)!r} is there already; name another file")
    listed = [
        [
            path.hex(),
            None if entry.data is None else base64.b64encode(entry.data).decode(),
            entry.mode,
            entry.mtime_ns,
        ]
        for path, entry in entries.items()
    ]
    members = {
        "id": str(info.checkpoint_id).encode(),
        "info.json": encode_info(info),
        "files.json": json.dumps(listed).encode(),
    }
    with tarfile.open(target, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.stat().st_size


def unpack(source: Path) -> tuple[CheckpointInfo, dict[bytes, Entry]]:
    """Read them.

    Raises:
        Corrupt: The file is another, or damaged.
    """
    try:
        with tarfile.open(source, "r:gz") as archive:
            checkpoint_id: CheckpointId = parse_checkpoint_id(member(archive, "id").decode())
            info = decode_info(member(archive, "info.json"), checkpoint_id)
            listed = json.loads(member(archive, "files.json"))
        return info, {
            bytes.fromhex(path): Entry(
                None if data is None else base64.b64decode(data), mode, mtime_ns
            )
            for path, data, mode, mtime_ns in listed
        }
    except DAMAGE as error:
        raise Corrupt(
            f"{str(source)!r} is no exported checkpoint, or damaged ({error}); export it again",
            reason="EXPORT_DAMAGED",
        ) from error


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the bytes of one member; KeyError when it is missing."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()
