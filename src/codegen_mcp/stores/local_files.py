"""Files of a local store: created whole and durable, removed, listed. Everything here blocks.

Writing goes to ``~tmp/<random>`` (no key has a ``~``) under flock(2), is synced, and gets its name
by link(2), which fails when there is one. Then every directory up to the root is synced, since
fsync(2) of a file does not cover its name. A file that was given to the store gets its second name
the same way. A file in ``~tmp`` that nobody has locked is a dead
writer's.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from codegen_mcp.core.errors import AlreadyExists, InvalidRequest, StoreUnavailable
from codegen_mcp.stores.base import ObjectInfo, is_key

TEMPORARY = "~tmp"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 100
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What looking for an object raises when there is none."""


def remove_stale(root: int) -> None:
    """Make the directory of temporary files, and remove what dead writers left in it."""
    with suppress(FileExistsError):
        os.mkdir(TEMPORARY, 0o700, dir_fd=root)
        os.fsync(root)
    directory = os.open(TEMPORARY, _DIRECTORY, dir_fd=root)
    try:
        for name in os.listdir(directory):
            with suppress(FileNotFoundError, BlockingIOError):
                _remove_unlocked(name, directory)
    finally:
        os.close(directory)


def _remove_unlocked(name: str, directory: int) -> None:
    file = os.open(name, os.O_RDWR | _FILE, dir_fd=directory)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(file)


def create(root: int, key: str, fill: Callable[[int], int]) -> ObjectInfo:
    """Create an object from what ``fill`` writes into a descriptor (and counts).

    Raises:
        AlreadyExists: There is one. InvalidRequest: The key is a directory, or below an object.
    """
    _check_absent(root, key)
    with _temporary(root) as (file, name):
        size = fill(file)
        os.fsync(file)
        written = os.fstat(file)
        if written.st_size != size:
            raise StoreUnavailable(f"{written.st_size} bytes of {key!r} were written, not {size}")
        _name(root, key, name)
    return ObjectInfo(key=key, size=size, modified_ms=written.st_mtime_ns // 1_000_000)


def keep(root: int, key: str, file: int, size: int) -> ObjectInfo | None:
    """Make an open file of ours an object, by a second name; None where it cannot have one here.

    Raises: as ``create``.
    """
    if os.fstat(file).st_dev != os.fstat(root).st_dev:
        return None
    _check_absent(root, key)
    os.fchmod(file, 0o600)
    os.fsync(file)
    found = os.fstat(file)
    if found.st_size != size:
        raise StoreUnavailable(f"{key!r} has {found.st_size} bytes, not the {size} that were read")
    try:
        _name(root, key, f"/proc/self/fd/{file}")  # of that very file, whatever its name is now
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        return None
    return ObjectInfo(key=key, size=size, modified_ms=found.st_mtime_ns // 1_000_000)


@contextmanager
def _temporary(root: int) -> Iterator[tuple[int, str]]:
    """A new locked file; yields descriptor and name, which is gone at the end."""
    name = f"{TEMPORARY}/{secrets.token_hex(16)}"
    while True:
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=root)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Somebody who just opened the store may have found it before it was locked.
            if os.fstat(file).st_nlink:
                yield file, name
                return
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=root)
            os.close(file)


def _name(root: int, key: str, temporary: str) -> None:
    """Give a written file its name."""
    leaf = key.rpartition("/")[2]
    for _ in range(_ATTEMPTS):
        try:
            with _parents(root, key, make=True) as directories:
                os.link(temporary, leaf, src_dir_fd=root, dst_dir_fd=directories[-1])
                _sync(directories)
                return
        except FileNotFoundError:
            continue  # a delete removed an empty parent meanwhile
        except FileExistsError:
            _check_absent(root, key)  # or it was deleted again
    raise StoreUnavailable(f"{key!r} could not be given its name; is the store being removed?")


def _check_absent(root: int, key: str) -> None:
    """Refuse a key that is taken. What is found is made durable: the caller will rely on it."""
    try:
        with _parents(root, key, make=False) as directories:
            leaf = key.rpartition("/")[2]
            found = os.stat(leaf, dir_fd=directories[-1], follow_symlinks=False)
            _sync(directories)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise InvalidRequest(f"object key {key!r} is below an object; use another") from error
    if stat.S_ISDIR(found.st_mode):
        raise InvalidRequest(f"object key {key!r} is a directory of others; use another")
    raise AlreadyExists(f"there is an object {key!r} already")


@contextmanager
def _parents(root: int, key: str, *, make: bool) -> Iterator[Sequence[int]]:
    """Open every directory from the root to the key's own."""
    with ExitStack() as stack:
        directories = [root]
        for segment in key.split("/")[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(segment, 0o700, dir_fd=directories[-1])
            directories.append(os.open(segment, _DIRECTORY, dir_fd=directories[-1]))
            stack.callback(os.close, directories[-1])
        yield directories


def _sync(directories: Sequence[int]) -> None:
    """All of them: another writer may have made one and not synced its name yet."""
    for directory in reversed(directories):
        os.fsync(directory)


def remove(root: int, key: str) -> bool:
    """Remove an object, and the directories that it leaves empty; whether there was one."""
    *above, leaf = key.split("/")
    try:
        with _parents(root, key, make=False) as directories:
            try:
                os.unlink(leaf, dir_fd=directories[-1])
            finally:
                os.fsync(directories[-1])  # also when somebody else has just removed it
            for parent, name in reversed(list(zip(directories, above, strict=False))):
                try:
                    os.rmdir(name, dir_fd=parent)
                except OSError:
                    break  # it is in use again, or gone
            return True
    except NOT_THERE:
        check_root(root)
        return False


def open_object(root: int, key: str) -> int:
    """Open for reading. FileNotFoundError when there is none."""
    file = os.open(key, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=root)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)


def look(root: int, key: str) -> ObjectInfo:
    """Size and time. FileNotFoundError when there is none."""
    found = os.stat(key, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
    return _info(key, found)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=found.st_size, modified_ms=found.st_mtime_ns // 1_000_000)


def check_root(root: int) -> None:
    """OSError when the root itself was removed: what is missing then is the store."""
    if not os.fstat(root).st_nlink:
        raise OSError(errno.ESTALE, "the directory was removed")


def objects(root: int, prefix: str) -> Iterator[ObjectInfo]:
    """Objects whose keys begin with a prefix, by key; only directories that may have some are read.

    A prefix that no key has gives none.
    """
    check_root(root)
    below = prefix[: prefix.rfind("/") + 1]
    if below:
        if not is_key(below[:-1]):
            return
        try:
            with _parents(root, below + "any", make=False):
                pass  # directories all the way, and no links
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return
    yield from _walk(root, prefix, below)


def _walk(root: int, prefix: str, below: str) -> Iterator[ObjectInfo]:
    """Walk. A directory is read whole, so that none is open between two of them."""
    for name, is_directory in _sorted_names(root, below):
        key = below + name
        if is_directory:
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(root, prefix, key)
        elif key.startswith(prefix):
            with suppress(FileNotFoundError):
                yield _info(key, os.stat(key, dir_fd=root, follow_symlinks=False))


def _sorted_names(root: int, below: str) -> Sequence[tuple[str, bool]]:
    """Names of keys, directories with their slash: that is how their keys compare."""
    if not below:
        check_root(root)
    try:
        directory = os.open(below or ".", _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return []
    try:
        with os.scandir(directory) as entries:
            found = [
                (entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
            ]
    finally:
        os.close(directory)
    return sorted((key, key != name) for key, name in found if is_key(name))


def batches(objects: Iterator[ObjectInfo], count: int) -> Sequence[ObjectInfo]:
    """Return the next few."""
    return list(itertools.islice(objects, count))
