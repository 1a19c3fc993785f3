"""Removing files and trees of a workspace, by directory descriptor and without recursion.

A tree is taken down depth first with at most ``_MAX_OPEN`` directories open. What lies deeper is
moved up into the tree's top directory and taken from there, so that a tree of any depth goes with
a constant number of descriptors, and no path is ever looked up again.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from codegen_mcp.core.errors import WrongState
from codegen_mcp.core.paths import Parts, join_path, show_path
from codegen_mcp.engine.workspace_threads import Stop
from codegen_mcp.engine.workspace_tree import LISTABLE, Tree, locate
from codegen_mcp.sandbox.openat2 import DIRECTORY, NO_LINKS, open_beneath

_MAX_OPEN = 32
_MAX_PASSES = 100
"""Over one directory into which others keep writing."""


def delete_one(tree: Tree, parts: Parts, *, must_be_empty: bool) -> bool:
    """Remove a file, link or empty directory; False for one with entries that may have some."""
    place = locate(tree, parts)
    try:
        if place.found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not stat.S_ISDIR(place.found.st_mode):
            os.unlink(place.name, dir_fd=place.dir_fd)
            return True
        try:
            os.rmdir(place.name, dir_fd=place.dir_fd)
        except OSError as error:
            if must_be_empty or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True
    finally:
        place.close()


def delete_tree(tree: Tree, parts: Parts, stop: Stop) -> int:
    """Remove a directory with all that is in it; returns how many entries went."""
    place = locate(tree, parts)
    try:
        return _Removal(parts, stop).remove(place.dir_fd, place.name)
    finally:
        place.close()


@dataclass(slots=True)
class _Level:
    """An open directory on the way down."""

    fd: int
    name: bytes
    entries: Iterator[tuple[bytes, bool]]
    passes: int = 1
    received: bool = False
    """Whether deeper directories were moved into it since its last pass began."""


class _Removal:
    def __init__(self, parts: Parts, stop: Stop) -> None:
        self._parts = parts
        self._stop = stop
        self._levels: list[_Level] = []
        self._count = 0

    def remove(self, parent_fd: int, name: bytes) -> int:
        try:
            self._enter(parent_fd, name)
            while self._levels:
                self._stop.check()
                self._step(parent_fd)
        finally:
            for level in self._levels:
                os.close(level.fd)
        return self._count

    def _step(self, top_parent_fd: int) -> None:
        level = self._levels[-1]
        entry = next(level.entries, None)
        if entry is not None:
            name, is_directory = entry
            if is_directory:
                self._enter(level.fd, name)
            else:
                self._unlink(level.fd, name)
            return
        above = self._levels[-2].fd if len(self._levels) > 1 else top_parent_fd
        try:
            os.rmdir(level.name, dir_fd=above)
            self._count += 1
        except FileNotFoundError:
            pass  # moved away meanwhile, now empty
        except NotADirectoryError:
            self._unlink(above, level.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._look_again(level)
            return
        self._levels.pop()
        os.close(level.fd)

    def _look_again(self, level: _Level) -> None:
        if not level.received:
            level.passes += 1
            if level.passes > _MAX_PASSES:
                raise WrongState(
                    f"{show_path(join_path(self._parts))} is being written to while it is "
                    "deleted; end what writes there and delete it again"
                )
        level.received = False
        level.entries = _names(level.fd)

    def _enter(self, dir_fd: int, name: bytes) -> None:
        if len(self._levels) >= _MAX_OPEN:
            self._move_to_top(dir_fd, name)
            return
        try:
            fd = _open_directory(dir_fd, name)
        except FileNotFoundError:
            if not self._levels:
                raise
            return
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            self._unlink(dir_fd, name)  # a file or link was swapped in
            return
        self._levels.append(_Level(fd, name, _names(fd)))

    def _move_to_top(self, dir_fd: int, name: bytes) -> None:
        top = self._levels[0]
        aside = b".codegen-" + secrets.token_hex(16).encode()
        try:
            try:
                os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=top.fd)
            except PermissionError:
                _make_accessible(dir_fd, name)
                os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=top.fd)
        except FileNotFoundError:
            return
        top.received = True

    def _unlink(self, dir_fd: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=dir_fd)
            self._count += 1
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            pass  # a directory was swapped in; the next pass over its parent takes it


def _open_directory(dir_fd: int, name: bytes) -> int:
    try:
        fd = open_beneath(dir_fd, name, LISTABLE, resolve=NO_LINKS)
    except PermissionError:
        _make_accessible(dir_fd, name)
        return open_beneath(dir_fd, name, LISTABLE, resolve=NO_LINKS)
    if os.geteuid() != 0:
        try:
            _let_owner_write(fd)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _let_owner_write(fd: int) -> None:
    """Without root, what lies in a read-only directory of ours (Go's module cache) stays."""
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)


def _make_accessible(dir_fd: int, name: bytes) -> None:
    handle = open_beneath(dir_fd, name, DIRECTORY, resolve=NO_LINKS)
    try:
        os.chmod(b"/proc/self/fd/%d" % handle, 0o700)
    finally:
        os.close(handle)


def _names(dir_fd: int) -> Iterator[tuple[bytes, bool]]:
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            yield os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)
