"""How much one session may make the worker hold while it is saved or restored.

A file costs the session an inode, but a name of it only a few bytes of a directory: a gigabyte has
room for tens of millions, each of which takes about a kilobyte of the worker's memory here.
"""

from __future__ import annotations

from codegen_mcp.core.errors import LimitExceeded
from codegen_mcp.core.limits import GIB, MIB

MAX_ENTRIES = 1_000_000
"""Names of one checkpoint: about a gigabyte of memory."""
MAX_NAMES_BYTES = 128 * MIB
"""All paths and link texts together: a tree may nest so deep that each path has 32 KiB."""
MAX_MANIFEST_BYTES = 512 * MIB
"""Of a manifest before it is packed."""
MAX_HOLES_BYTES = 16 * GIB
"""All holes of its files together: they take no room, but are hashed like any other bytes."""


def check_entries(count: int) -> None:
    """Raise LimitExceeded for more than MAX_ENTRIES names."""
    if count > MAX_ENTRIES:
        raise LimitExceeded(
            f"the session has more than {MAX_ENTRIES} names of files and directories, as many as "
            "a checkpoint may have; delete some, or pack them into an archive",
            reason="TOO_MANY_FILES",
        )


def check_names_bytes(count: int) -> None:
    """Raise LimitExceeded for more than MAX_NAMES_BYTES of names."""
    if count > MAX_NAMES_BYTES:
        raise LimitExceeded(
            f"the paths of the session's files have more than {MAX_NAMES_BYTES} bytes together, "
            "as many as a checkpoint may have; nest directories less deep, or delete some",
            reason="TOO_MANY_FILES",
        )


def check_holes(count: int) -> None:
    """Raise LimitExceeded for more than MAX_HOLES_BYTES of holes."""
    if count > MAX_HOLES_BYTES:
        raise LimitExceeded(
            f"the holes of the session's files have more than {MAX_HOLES_BYTES} bytes together, "
            "as many as a checkpoint may have; shorten or delete sparse files",
            reason="TOO_MANY_HOLES",
        )


def check_manifest_bytes(count: int) -> None:
    """Raise LimitExceeded for a manifest of more than MAX_MANIFEST_BYTES."""
    if count > MAX_MANIFEST_BYTES:
        raise LimitExceeded(
            f"the list of the session's files has more than {MAX_MANIFEST_BYTES} bytes, as many as "
            "a checkpoint may have; delete some, or nest directories less deep",
            reason="TOO_MANY_FILES",
        )
