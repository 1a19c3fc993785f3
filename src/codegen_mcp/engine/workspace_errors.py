"""What the kernel refuses, said in the words of ``core.errors``: the only table for file work."""

from __future__ import annotations

import errno
from types import TracebackType

from codegen_mcp.core.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PathEscape,
    Unavailable,
    WorkerError,
    WrongState,
)
from codegen_mcp.core.paths import show_path

_TABLE: dict[int, tuple[type[WorkerError], str]] = {
    errno.ENOENT: (NotFound, "{} does not exist; fs.list shows what is there"),
    errno.EXDEV: (PathEscape, "{} crosses a link that leaves the workspace; use the real path"),
    errno.ELOOP: (
        PathEscape,
        "{} crosses a link that cannot be followed (a loop, one into /proc, or one that is "
        "refused here); use the real path",
    ),
    errno.ENAMETOOLONG: (InvalidRequest, "{} is too long for the file system; shorten it"),
    errno.EINVAL: (InvalidRequest, "{} cannot be used so (a directory moved into itself?)"),
    errno.ENOTDIR: (WrongState, "a part of {} is not a directory"),
    errno.EISDIR: (WrongState, "{} is a directory; a file is needed"),
    errno.ENOTEMPTY: (WrongState, "directory {} is not empty; ask for recursive to remove it all"),
    errno.EEXIST: (WrongState, "{} exists already; ask for overwrite, or choose another name"),
    errno.ENXIO: (WrongState, "{} is not a regular file; only those can be read or written"),
    errno.EACCES: (WrongState, "the permissions of {} forbid it; change them with chmod first"),
    errno.EPERM: (WrongState, "{} does not permit it; look at its owner and permissions"),
    errno.EROFS: (WrongState, "{} lies on a read-only file system"),
    errno.EBUSY: (WrongState, "{} is in use as a mount point"),
    errno.EMLINK: (LimitExceeded, "the directory of {} is full"),
    errno.EAGAIN: (Conflict, "{} is being changed or leased by the session; try again"),
    errno.ETXTBSY: (Conflict, "{} is being executed; try again when it has ended"),
    errno.ENOSPC: (
        LimitExceeded,
        "the session's disk is full, {} was not written; delete files, or use a session with a "
        "larger disk limit",
    ),
    errno.EFBIG: (LimitExceeded, "{} would be longer than a file may be; write several files"),
    errno.EMFILE: (Unavailable, "the worker has no descriptor left for {}; try again"),
    errno.ENFILE: (Unavailable, "the host has no descriptor left for {}; try again"),
}
_TABLE[errno.EDQUOT] = _TABLE[errno.ENOSPC]


def translate(error: OSError, path: bytes) -> WorkerError:
    """Return the typed error for what happened at ``path``."""
    kind, text = _TABLE.get(
        error.errno or 0, (WorkerError, f"the file system failed at {{}}: {error.strerror}")
    )
    return kind(text.replace("{}", show_path(path)))


class reporting:
    """Turn every OSError of the block into a typed error about ``path``."""

    __slots__ = ("_path",)

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise translate(error, self._path) from error
