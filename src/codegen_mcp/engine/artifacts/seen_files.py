"""Which files of ``artifacts/`` were registered, beside the session's volume.

Without it the next worker would register all of them again, and no worse: it is not made durable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog

from codegen_mcp.engine.artifacts.left_files import Seen
from codegen_mcp.engine.durable import write_file
from codegen_mcp.sandbox.volumes.threads import to_end

log = structlog.get_logger()

FILE_NAME = "artifacts.json"
FORMAT = 1


async def load_seen(directory: Path) -> dict[bytes, Seen]:
    """Read it; nothing where it is missing, damaged or of another version."""
    return await to_end(lambda: _load(directory / FILE_NAME))


async def save_seen(directory: Path, seen: dict[bytes, Seen]) -> None:
    """Write it; that it cannot be is logged."""
    files = {os.fsdecode(path): [*one.mark, one.sha256] for path, one in seen.items()}

    def write() -> None:
        data = json.dumps({"format": FORMAT, "files": files}, separators=(",", ":")).encode()
        try:
            write_file(directory / FILE_NAME, data, durable=False)
        except OSError as error:
            log.warning("artifact.seen_not_saved", error=error.strerror)

    await to_end(write)


def _load(path: Path) -> dict[bytes, Seen]:
    try:
        fields = json.loads(path.read_bytes())
        if fields["format"] != FORMAT:
            return {}
        return {
            os.fsencode(name): Seen((int(ino), int(size), int(mtime), int(ctime)), str(sha256))
            for name, (ino, size, mtime, ctime, sha256) in fields["files"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        log.warning("artifact.seen_unreadable", error=repr(error))
        return {}
