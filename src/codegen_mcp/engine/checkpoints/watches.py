"""Chooses the watch for a session's trees: the first that this process can have."""

from __future__ import annotations

from collections.abc import Collection

from codegen_mcp.engine.checkpoints.tree_watch import NoWatch, TreeWatch


def start_watch(root_fd: int, names: Collection[bytes]) -> TreeWatch:
    """Start a watch. Blocks (inotify walks the trees): for a thread; the caller closes it.

    Args:
        root_fd: The directory that holds the trees (a volume's root), open; stays the caller's.
        names: Of the trees in it, for example ``workspace`` and ``venv``.
    """
    return NoWatch()
