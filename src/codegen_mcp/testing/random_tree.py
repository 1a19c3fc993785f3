"""Any tree, and any edits to one, for tests: as plain operations that are done one after another.

Operations that the tree or the kernel refuses do nothing, so that any list of them is valid.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hypothesis import strategies as st

Edit = tuple[Any, ...]
"""(operation, arguments...); paths are bytes below the root that ``apply`` is given."""

NAMES = (
    b"a",
    b"b",
    b"c.txt",
    b"d",
    b"\xff\xfe",
    b" two\nlines",
    "\u00fc\u4e2d\U0001f600".encode(),
    b"-rf",
    b"x" * 255,
    b"\\",
    b"a~",
)
SIZES = (0, 1, 511, 512, 513, 4095, 4096, 4097, 65536, 65537, 200_000)
_PUNCH, _KEEP_SIZE, _EXCHANGE, _AT_CWD = 2, 1, 2, -100
_libc = ctypes.CDLL(None, use_errno=True)


def paths(depth: int = 4) -> st.SearchStrategy[bytes]:
    """Paths below ``workspace`` (mostly) and ``venv``, of few names, so that they meet."""
    top = st.sampled_from([b"workspace", b"workspace", b"workspace", b"venv"])
    names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=depth)
    few = st.sampled_from([b"workspace/" + name for name in NAMES[:4]])
    return few | st.builds(lambda root, below: b"/".join([root, *below]), top, names)


def edits(*, large: int = 0) -> st.SearchStrategy[Edit]:
    """One edit of any kind; ``large`` bounds the size of large files in bytes."""
    one = paths()
    seeds = st.integers(0, 1 << 30)
    sizes = st.sampled_from(SIZES) | st.integers(0, 5000)
    if large:
        sizes |= st.integers(0, large)
    times = (
        st.integers(-(2**31) * 10**9, 2**33 * 10**9)
        | st.integers(-(10**9), 10**9)
        | st.sampled_from([0, -1, 10**18 + 123_456_789])
    )
    targets = one | st.sampled_from(
        [b"/etc/passwd", b"..", b".", b"nowhere", b"../" * 20 + b"x", b"\xff", b"t" * 1000]
    )
    layouts = st.lists(st.tuples(st.integers(0, 600), st.integers(1, 4)), max_size=4)
    return st.one_of(
        st.tuples(st.just("write"), one, sizes, seeds),
        st.tuples(st.just("write"), one, sizes, seeds),
        st.tuples(st.just("append"), one, st.integers(1, 5000), seeds),
        st.tuples(st.just("truncate"), one, sizes),
        st.tuples(st.just("disguise"), one, seeds),
        st.tuples(st.just("save"), one, sizes, seeds),
        st.tuples(st.just("mkdir"), one),
        st.tuples(st.just("mkdir"), one),
        st.tuples(st.just("remove"), one),
        st.tuples(st.just("rename"), one, one),
        st.tuples(st.just("swap"), one, one),
        st.tuples(st.just("link"), one, one),
        st.tuples(st.just("symlink"), targets, one),
        st.tuples(st.just("fifo"), one),
        st.tuples(st.just("chmod"), one, st.integers(0, 0o7777)),
        st.tuples(st.just("touch"), one, times),
        st.tuples(st.just("sparse"), one, layouts, st.integers(0, 3_000_000)),
        st.tuples(st.just("punch"), one, st.integers(0, 50), st.integers(1, 50)),
    )


def apply(
    root: bytes,
    changes: Sequence[Edit],
    owner: tuple[int, int] | None = None,
    *,
    two_mounts: bool = False,
) -> None:
    """Do edits below a directory.

    Args:
        root: The directory.
        changes: The edits.
        owner: (uid, gid) of what is new.
        two_mounts: Nothing moves or is linked between ``workspace`` and ``venv``, as in sandboxes.
    """
    editor = _Editor(root, owner, two_mounts)
    for name, *arguments in changes:
        with suppress(OSError):
            getattr(editor, name)(*arguments)


class _Editor:
    def __init__(self, root: bytes, owner: tuple[int, int] | None, two_mounts: bool) -> None:
        self._root = root
        self._owner = owner
        self._two_mounts = two_mounts

    def _at(self, path: bytes) -> bytes:
        """Path of a name; never one that a link of the tree leads out to."""
        whole = self._root + b"/" + path
        above = os.path.realpath(os.path.dirname(whole))
        if not (above + b"/").startswith(os.path.realpath(self._root) + b"/"):
            raise OSError(errno.EXDEV, "a link leads out of the tree")
        return whole

    def _check_mount(self, one: bytes, other: bytes) -> None:
        if self._two_mounts and one.partition(b"/")[0] != other.partition(b"/")[0]:
            raise OSError(errno.EXDEV, "two mounts")

    def _made(self, path: bytes) -> None:
        if self._owner is not None:
            os.chown(self._at(path), *self._owner, follow_symlinks=False)

    def _open(self, path: bytes, flags: int) -> int:
        """Open a regular file, make the directories above it, and never follow a link."""
        above = path.rpartition(b"/")[0]
        if not os.path.lexists(self._at(above)):
            self.mkdir(above)
        fd = os.open(self._at(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "no regular file")
        if self._owner is not None:
            os.fchown(fd, *self._owner)
        return fd

    def write(self, path: bytes, size: int, seed: int) -> None:
        fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(content(seed, size))

    def append(self, path: bytes, size: int, seed: int) -> None:
        with os.fdopen(self._open(path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:
            file.write(content(seed, size))

    def truncate(self, path: bytes, size: int) -> None:
        with os.fdopen(self._open(path, os.O_WRONLY), "wb") as file:
            file.truncate(size)

    def disguise(self, path: bytes, seed: int) -> None:
        """Write as many other bytes, and set all times back."""
        fd = self._open(path, os.O_RDWR)
        try:
            found = os.fstat(fd)
            os.pwrite(fd, content(seed, found.st_size), 0)
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(fd)

    def save(self, path: bytes, size: int, seed: int) -> None:
        """As editors do: a temporary file takes the name."""
        self.write(path[:-1] + b"~", size, seed)
        os.replace(self._at(path[:-1] + b"~"), self._at(path))

    def mkdir(self, path: bytes) -> None:
        above = path.rpartition(b"/")[0]
        if above and not os.path.lexists(self._at(above)):
            self.mkdir(above)
        os.mkdir(self._at(path), 0o755)
        self._made(path)

    def remove(self, path: bytes) -> None:
        whole = self._at(path)
        if os.path.isdir(whole) and not os.path.islink(whole):
            shutil.rmtree(whole)
        else:
            os.unlink(whole)

    def rename(self, old: bytes, new: bytes) -> None:
        """Move a name; what is in the way goes, of whatever kind."""
        self._check_mount(old, new)
        try:
            os.rename(self._at(old), self._at(new))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
                raise
            if not os.path.lexists(self._at(old)) or new.startswith(old + b"/"):
                raise
            if old.startswith(new + b"/"):
                raise
            self.remove(new)
            os.rename(self._at(old), self._at(new))

    def swap(self, one: bytes, other: bytes) -> None:
        """Exchange two names in one step."""
        self._check_mount(one, other)
        code = _libc.renameat2(_AT_CWD, self._at(one), _AT_CWD, self._at(other), _EXCHANGE)
        if code != 0:
            raise OSError(ctypes.get_errno(), "not exchanged")

    def link(self, old: bytes, new: bytes) -> None:
        self._check_mount(old, new)
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))
        self._made(path)

    def fifo(self, path: bytes) -> None:
        os.mkfifo(self._at(path))
        self._made(path)

    def chmod(self, path: bytes, mode: int) -> None:
        if os.path.islink(self._at(path)):
            return
        os.chmod(self._at(path), mode)

    def touch(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def sparse(self, path: bytes, layout: Sequence[tuple[int, int]], size: int) -> None:
        """A file of holes with data (block, blocks) here and there."""
        fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for block, blocks in layout:
                os.pwrite(fd, content(block, blocks * 4096), block * 4096)
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def punch(self, path: bytes, block: int, blocks: int) -> None:
        """Take the data of some blocks away (fallocate(2), FALLOC_FL_PUNCH_HOLE)."""
        fd = self._open(path, os.O_WRONLY)
        try:
            start, size = ctypes.c_int64(block * 4096), ctypes.c_int64(blocks * 4096)
            _libc.fallocate(fd, _PUNCH | _KEEP_SIZE, start, size)
        finally:
            os.close(fd)


def content(seed: int, size: int) -> bytes:
    """Bytes that differ from seed to seed; every fourth seed gives what packs well."""
    if seed % 4 == 0:
        return (b"%d " % seed * (size // 2 + 1))[:size]
    return random.Random(seed).randbytes(size)


class Facts(NamedTuple):
    """What a name must be again after a restore."""

    kind: str
    mode: int
    mtime_ns: int
    size: int
    content: str
    """sha256 of a file, target of a link."""
    names: tuple[bytes, ...]
    """All names of a file, itself included."""


def tree_of(root: bytes) -> dict[bytes, Facts]:
    """Walk ``workspace`` and ``venv`` of a volume; nothing is followed, any depth will do."""
    facts: dict[bytes, Facts] = {}
    inodes: dict[int, list[bytes]] = {}
    for path, found, read in _walk(root):
        what = read() if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode) else ""
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        kind = oct(stat.S_IFMT(found.st_mode))
        mode = stat.S_IMODE(found.st_mode)
        facts[path] = Facts(kind, mode, found.st_mtime_ns, size, what, ())
        if stat.S_ISREG(found.st_mode):
            inodes.setdefault(found.st_ino, []).append(path)
    for names in inodes.values():
        for path in names:
            facts[path] = facts[path]._replace(names=tuple(sorted(names)))
    return facts


def allocated(root: bytes) -> dict[bytes, int]:
    """Bytes that each file of a volume takes on disk."""
    return {
        path: found.st_blocks * 512 for path, found, _ in _walk(root) if stat.S_ISREG(found.st_mode)
    }


def owners(root: bytes) -> set[tuple[int, int]]:
    """(uid, gid) of everything in a volume."""
    return {(found.st_uid, found.st_gid) for _, found, _ in _walk(root)}


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result, Callable[[], str]]]:
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    pending = [(os.open(name, os.O_RDONLY, dir_fd=top), name) for name in (b"workspace", b"venv")]
    os.close(top)
    try:
        while pending:
            fd, path = pending.pop()
            try:
                yield path, os.fstat(fd), str
                for raw in sorted(os.listdir(fd)):
                    name = os.fsencode(raw)
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        flags = os.O_RDONLY | os.O_NOFOLLOW
                        pending.append((os.open(name, flags, dir_fd=fd), path + b"/" + name))
                    else:
                        yield path + b"/" + name, found, _reader(fd, name, found.st_mode)
            finally:
                os.close(fd)
    finally:
        for fd, _ in pending:
            os.close(fd)


def _reader(directory: int, name: bytes, mode: int) -> Callable[[], str]:
    def read() -> str:
        if stat.S_ISLNK(mode):
            return os.readlink(name, dir_fd=directory).hex()
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read
