"""Making directories in a workspace while others rearrange it."""

from __future__ import annotations

import contextlib
import errno
import os

from codegen_mcp.core.paths import Parts
from codegen_mcp.engine.workspace_tree import LISTABLE, Tree, open_parent
from codegen_mcp.sandbox.openat2 import DIRECTORY, open_beneath

_DIRECTORY_MODE = 0o755
_ATTEMPTS = 16


def make_dirs(tree: Tree, parts: Parts, made: list[Parts]) -> None:
    """Make the directory ``parts`` and its parents, owned by the session.

    Args:
        tree: The workspace.
        parts: The directory; links on the way are followed inside.
        made: Gets each directory that was made, also when this fails.

    Raises:
        OSError: ENOTDIR where a file is in the way; EEXIST where a link to nowhere is.
    """
    for attempt in range(_ATTEMPTS):
        depth, current = _deepest(tree, parts)
        try:
            while depth < len(parts):
                os.mkdir(parts[depth], _DIRECTORY_MODE, dir_fd=current)
                made.append(parts[: depth + 1])
                below = _open_made(tree, current, parts[depth])
                depth += 1
                os.close(current)
                current = below
            return
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            # Somebody made, moved or replaced the same name meanwhile: look again.
            if attempt == _ATTEMPTS - 1:
                raise error
        except OSError as error:
            if error.errno != errno.ELOOP or attempt == _ATTEMPTS - 1:
                raise
        finally:
            os.close(current)


def remove_made(tree: Tree, made: list[Parts]) -> None:
    """Take back directories that were made for nothing, as long as they are empty."""
    for parts in reversed(made):
        with contextlib.suppress(OSError):
            dir_fd, owned = open_parent(tree, parts)
            try:
                os.rmdir(parts[-1], dir_fd=dir_fd)
            finally:
                if owned:
                    os.close(dir_fd)


def _deepest(tree: Tree, parts: Parts) -> tuple[int, int]:
    """(how many of ``parts`` exist as directories, descriptor of the last of them)."""
    for depth in range(len(parts), 0, -1):
        try:
            return depth, open_beneath(tree.fd, b"/".join(parts[:depth]), DIRECTORY)
        except FileNotFoundError:
            continue
    return 0, open_beneath(tree.fd, b".", DIRECTORY)


def _open_made(tree: Tree, dir_fd: int, name: bytes) -> int:
    """Open and hand over; what was swapped in meanwhile is the session's own in any case."""
    fd = os.open(name, LISTABLE | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        tree.give(fd)
        os.fchmod(fd, _DIRECTORY_MODE)
    except BaseException:
        os.close(fd)
        raise
    return fd
