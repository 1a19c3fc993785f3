"""Compares two looks at the same file."""

from __future__ import annotations

import os

from codegen_mcp.engine.checkpoints.scan import Seen


def same_content(one: Seen, other: Seen) -> bool:
    """Whether nothing says that a file's content changed between two looks at it."""
    return (one.ino, one.size, one.mtime_ns, one.ctime_ns) == (
        other.ino,
        other.size,
        other.mtime_ns,
        other.ctime_ns,
    )


def is_as(seen: Seen, found: os.stat_result) -> bool:
    """Whether an open file is as it was seen, by what tells of its content."""
    return (
        seen.ctime_ns == found.st_ctime_ns
        and seen.mtime_ns == found.st_mtime_ns
        and seen.size == found.st_size
        and seen.ino == found.st_ino
    )


def refreshed(seen: Seen, found: os.stat_result) -> Seen:
    """Return what was seen with what an open file has now."""
    if (
        is_as(seen, found)
        and seen.mode == found.st_mode & 0o7777
        and seen.blocks == found.st_blocks
        and seen.nlink == found.st_nlink
    ):
        return seen
    return seen._replace(
        mode=found.st_mode & 0o7777,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        size=found.st_size,
        blocks=found.st_blocks,
        nlink=found.st_nlink,
    )
