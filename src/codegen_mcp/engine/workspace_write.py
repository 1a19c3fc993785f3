"""Writing files of a workspace: readers see the old file or the whole new one, nothing between.

The bytes go into an inode without a name (O_TMPFILE), so that whatever happens, the death of the
worker included, nothing is left of a write that was not finished. A link or a rename then makes
it visible. File systems without O_TMPFILE get an unguessable hidden name instead. There is no
fsync: a finished write survives the worker, not necessarily the loss of power.

https://man7.org/linux/man-pages/man2/open.2.html (O_TMPFILE)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat

from codegen_mcp.core.errors import Conflict, InvalidRequest
from codegen_mcp.core.paths import Parts, join_path, show_path
from codegen_mcp.engine.workspace_dirs import make_dirs, remove_made
from codegen_mcp.engine.workspace_threads import Stop
from codegen_mcp.engine.workspace_tree import (
    INLINE_BYTES,
    Place,
    Tree,
    check_regular,
    locate_followed,
)

_NEW_FILE_MODE = 0o644
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def check_mode(mode: int | None) -> None:
    """Accept permission bits only.

    Raises:
        InvalidRequest: It has the setuid, setgid or sticky bit, or bits beyond.
    """
    if mode is not None and not 0 <= mode <= 0o777:
        raise InvalidRequest(
            f"mode {mode:#o} is not allowed; use permission bits from 0o000 to 0o777 "
            "(no setuid, setgid or sticky bit)"
        )


class Draft:
    """A file that is being written and has no name yet. Publish it or discard it.

    Not thread-safe; its methods may be called from one thread after another. They raise OSError
    as the kernel does, LimitExceeded for our own limits.
    """

    def __init__(self, tree: Tree, parts: Parts, *, create_dirs: bool, mode: int | None) -> None:
        """Find the target and open the nameless file beside it."""
        check_mode(mode)
        self._tree = tree
        self._parts = parts
        self._made: list[Parts] = []
        self._fd = -1
        self._hidden = b""
        self._place: Place | None = None
        self._digest = hashlib.sha256()
        self.size = 0
        try:
            self._place = place = self._find(create_dirs)
            if place.found is not None:
                check_regular(tree, parts, place.found)
            self._mode = _mode_for(mode, place.found)
            self._fd = self._open(place)
        except BaseException:
            self.discard()
            raise

    def append(self, data: bytes | memoryview) -> None:
        """Write all of ``data`` at the end."""
        self._tree.check_room(self.size, len(data), join_path(self._parts))
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what was appended so far."""
        return self._digest.hexdigest()

    def publish(self) -> tuple[int, str]:
        """Give the file to the session and make it visible; (length on disk, sha256).

        Raises:
            Conflict: The length on disk is not what was written.
        """
        place = self._opened_place()
        self._tree.give(self._fd)
        os.fchmod(self._fd, self._mode)
        on_disk = os.fstat(self._fd).st_size
        if on_disk != self.size:
            raise Conflict(
                f"{show_path(join_path(self._parts))} has {on_disk} bytes on disk where "
                f"{self.size} were written; write it again"
            )
        if not self._link_new(place):
            if not self._hidden:
                self._link(self._take_hidden_name(), place.dir_fd)
            os.rename(self._hidden, place.name, src_dir_fd=place.dir_fd, dst_dir_fd=place.dir_fd)
            self._forget_hidden_name()
        self._made.clear()
        self.discard()
        return on_disk, self.sha256

    def discard(self) -> None:
        """Leave nothing behind (nor change what was published); idempotent, never raises."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._place is not None:
            if self._hidden:
                with contextlib.suppress(OSError):
                    os.unlink(self._hidden, dir_fd=self._place.dir_fd)
                self._forget_hidden_name()
            self._place.close()
            self._place = None
        remove_made(self._tree, self._made)
        self._made = []

    def _find(self, create_dirs: bool) -> Place:
        try:
            return locate_followed(self._tree, self._parts)
        except FileNotFoundError:
            if not create_dirs or len(self._parts) == 1:
                raise
        make_dirs(self._tree, self._parts[:-1], self._made)
        return locate_followed(self._tree, self._parts)

    def _open(self, place: Place) -> int:
        if self._tree.nameless:
            try:
                return os.open(
                    b".",
                    os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC,
                    0o600,
                    dir_fd=place.dir_fd,
                )
            except OSError as error:
                if os.fstat(place.dir_fd).st_nlink == 0:  # ext4 calls a removed directory EPERM
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
                if error.errno not in _NO_TMPFILE:
                    raise
                self._tree.nameless = False
        return os.open(
            self._take_hidden_name(),
            os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=place.dir_fd,
        )

    def _link_new(self, place: Place) -> bool:
        """Give a nameless file its final name at once, where that name is free."""
        if self._hidden or place.found is not None:
            return False
        try:
            self._link(place.name, place.dir_fd)
        except FileExistsError:
            return False
        return True

    def _link(self, name: bytes, dir_fd: int) -> None:
        os.link(b"/proc/self/fd/%d" % self._fd, name, dst_dir_fd=dir_fd, follow_symlinks=True)

    def _take_hidden_name(self) -> bytes:
        self._hidden = b".codegen-" + secrets.token_hex(16).encode()
        self._tree.hidden.add(self._hidden)
        return self._hidden

    def _forget_hidden_name(self) -> None:
        self._tree.hidden.discard(self._hidden)
        self._hidden = b""

    def _opened_place(self) -> Place:
        if self._place is None:
            raise Conflict("the write was already ended; start it again")
        return self._place


def write_file(
    tree: Tree,
    parts: Parts,
    data: bytes,
    *,
    create_dirs: bool,
    mode: int | None,
    stop: Stop | None = None,
) -> tuple[int, str]:
    """Write ``data`` as the whole file; (length on disk, sha256)."""
    draft = Draft(tree, parts, create_dirs=create_dirs, mode=mode)
    try:
        if len(data) <= INLINE_BYTES:
            draft.append(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), INLINE_BYTES):
                if stop is not None:
                    stop.check()
                draft.append(view[start : start + INLINE_BYTES])
        return draft.publish()
    finally:
        draft.discard()


def _mode_for(mode: int | None, found: os.stat_result | None) -> int:
    if mode is not None:
        return mode
    return stat.S_IMODE(found.st_mode) & 0o777 if found is not None else _NEW_FILE_MODE
