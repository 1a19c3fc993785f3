"""Chooses the watch for a session's trees: the first that this process can have."""

from __future__ import annotations

from collections.abc import Collection

from codegen_mcp.engine.checkpoints.fanotify_watch import FanotifyWatch
from codegen_mcp.engine.checkpoints.inotify_watch import InotifyWatch
from codegen_mcp.engine.checkpoints.tree_watch import NoWatch, TreeWatch


def start_watch(root_fd: int, names: Collection[bytes]) -> TreeWatch:
    """Start a watch. Blocks (inotify walks the trees): for a thread; the caller closes it.

    Args:
        root_fd: The directory that holds the trees (a volume's root), open; stays the caller's.
        names: Of the trees in it, for example ``workspace`` and ``venv``.
    """
    for kind in (FanotifyWatch, InotifyWatch):
        watch: TreeWatch = kind(root_fd, names)
        try:
            watch.start()
        except OSError:  # not permitted, not known to the kernel or file system, too many
            continue
        return watch
    return NoWatch()
