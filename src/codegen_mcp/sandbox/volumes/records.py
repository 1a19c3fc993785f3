"""What a slot directory says of its volume, where that cannot be read off the volume itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from codegen_mcp.core.errors import Corrupt

RECORD = "volume.json"
FORMAT = 1


def write_record(directory: Path, kind: str, size_bytes: int, **more: int | str) -> None:
    """Write it, in one step; what is 0 or empty is left out."""
    record = {"format": FORMAT, "kind": kind, "size_bytes": size_bytes}
    record |= {name: value for name, value in more.items() if value}
    partial = directory / f"{RECORD}.partial"
    partial.write_text(json.dumps(record))
    os.replace(partial, directory / RECORD)


def read_record(directory: Path) -> Mapping[str, int | str]:
    """Read it; ``kind`` and ``size_bytes`` are always there.

    Raises:
        Corrupt: It cannot be read, or is newer than this version.
    """
    path = directory / RECORD
    try:
        record = json.loads(path.read_text())
        version = int(record["format"])
        found = {
            str(name): value if isinstance(value, str) else int(value)
            for name, value in record.items()
        }
        found["size_bytes"] = int(record["size_bytes"])
        found.setdefault("kind", "plain")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{str(path)!r} cannot be read: {error}") from error
    if version > FORMAT:
        raise Corrupt(f"{str(path)!r} has format {version}; this version reads up to {FORMAT}")
    return found


def number(record: Mapping[str, int | str], name: str) -> int:
    """Return a number of the record; 0 when it is not there."""
    value = record.get(name, 0)
    return value if isinstance(value, int) else 0


def forget(directory: Path) -> None:
    """Remove it; missing is fine."""
    (directory / RECORD).unlink(missing_ok=True)
