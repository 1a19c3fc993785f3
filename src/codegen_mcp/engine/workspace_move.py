"""Renaming inside a workspace."""

from __future__ import annotations

import contextlib
import os

from codegen_mcp.core.paths import Parts, join_path
from codegen_mcp.engine.workspace_errors import reporting
from codegen_mcp.engine.workspace_tree import Tree, locate, open_parent
from codegen_mcp.sandbox.openat2 import rename_at


def move_entry(tree: Tree, source: Parts, target: Parts, *, overwrite: bool) -> None:
    """Rename ``source`` to ``target``; neither final name is followed.

    Raises:
        NotFound: No source, or no directory for the target.
        WrongState: The target exists and ``overwrite`` is false, or is of another kind.
        InvalidRequest: A directory would go into itself.
    """
    with reporting(join_path(source)):
        place = locate(tree, source)
    try:
        with reporting(join_path(target)):
            target_fd, owned = open_parent(tree, target)
        try:
            if place.found is None:
                with reporting(join_path(source)):
                    os.stat(place.name, dir_fd=place.dir_fd, follow_symlinks=False)
            with reporting(join_path(target)):
                rename_at(place.dir_fd, place.name, target_fd, target[-1], replace=overwrite)
                if overwrite and place.found is not None and place.found.st_nlink > 1:
                    _drop_other_name(place.dir_fd, place.name, target_fd, target[-1])
        finally:
            if owned:
                os.close(target_fd)
    finally:
        place.close()


def _drop_other_name(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """rename(2) does nothing when both names are links to one file; the caller asked for one."""
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
        new = os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        same_name = source == target and os.path.sameopenfile(source_fd, target_fd)
        if os.path.samestat(old, new) and not same_name:
            os.unlink(source, dir_fd=source_fd)
