"""The wheelhouse: verified wheels that every session may read and none may write.

::

    wheels/                 mounted read-only in sessions
    ├── files/              <sha256>.whl, each once, whatever index it came from
    ├── sources/            <sha256>: source distributions, only ever built in a session
    ├── views/<random>/     hard links under the wheels' own names: one resolution each
    ├── local/              the operator's own wheels, for offline use
    └── index.json          what is here, 0600

A session installs from one view, so it sees the wheels that its request resolved to: no other
session's pins or pre-releases, no yanked release, no file of another index. ``files`` and
``views`` can be entered but not listed, so that sessions do not see what others installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)

from codegen_mcp.core.clock import Clock, SystemClock
from codegen_mcp.core.errors import Corrupt, LimitExceeded
from codegen_mcp.core.limits import MIB
from codegen_mcp.languages.python import wheelhouse_index
from codegen_mcp.languages.python.fetcher_lock import check_file_name, check_sha256
from codegen_mcp.languages.python.wheelhouse_index import StoredFile, View, stored_path
from codegen_mcp.sandbox import openat2

_log = structlog.get_logger()

_CHUNK = 1 * MIB
_MAX_VIEWS = 5000


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that the fetcher brought, not yet trusted."""

    name: str
    sha256: str
    """What the index says; empty where it says nothing."""


class Wheelhouse:
    """Safe to use from several threads; one worker at a time (the state directory's lock)."""

    def __init__(
        self, root: Path, *, max_bytes: int, max_file_bytes: int, clock: Clock | None = None
    ) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._files: dict[str, StoredFile] = {}
        self._views: dict[str, View] = {}
        self._use_lock = threading.Lock()
        self._in_use: Counter[str] = Counter()
        self._generation = 0
        self._everything: dict[str, tuple[int, int]] = {}

    @property
    def total_bytes(self) -> int:
        """Size of all wheels."""
        with self._lock:
            return sum(file.size for file in self._files.values())

    def open(self) -> None:
        """Make what is missing, read the index, and delete what it does not know.

        Raises:
            Corrupt: The index was written by a newer version.
        """
        for name in (".", "files", "sources", "views", "local"):
            path = self.root / name
            path.mkdir(parents=True, exist_ok=True)
            os.chmod(path, 0o755 if name in (".", "local") else 0o711)
        with self._lock:
            self._files, self._views = wheelhouse_index.load(self.root)
            known = {
                stored_path(self.root, sha256, file.name) for sha256, file in self._files.items()
            }
            for path in [*(self.root / "files").iterdir(), *(self.root / "sources").iterdir()]:
                if path not in known:
                    path.unlink()
            directories = {view.directory for view in self._views.values()}
            for entry in os.scandir(self.root / "views"):
                if entry.name not in directories:
                    shutil.rmtree(entry.path)

    def find(self, key: str) -> View | None:
        """Return the view of a resolution, however old; it counts as used now. Never waits."""
        view = self._views.get(key)
        if view is not None:
            view.used_ms = self._clock.unix_ms()
        return view

    def has(self, sha256: str) -> bool:
        """Whether a wheel is here. Never waits."""
        return sha256 in self._files

    def age_s(self, view: View) -> float:
        """Seconds since the index was asked."""
        return (self._clock.unix_ms() - view.created_ms) / 1000

    def take_in(self, job: Path, staged: StagedFile, index: str) -> str:
        """Copy a fetched file out of ``job/out`` into the store and return its sha256.

        It is copied, not moved: whoever still holds it open cannot change it any more.

        Raises:
            Corrupt: It is no regular file, no wheel by name, or its hash is not the index's.
            LimitExceeded: It is too large.
        """
        try:
            if staged.name.endswith(".whl"):
                parse_wheel_filename(check_file_name(staged.name))
            else:
                parse_sdist_filename(check_file_name(staged.name))
            check_sha256(staged.sha256)
        except (InvalidWheelFilename, InvalidSdistFilename, ValueError) as error:
            raise Corrupt(f"the package index offers {staged.name[:200]!r}: {error}") from None
        temporary = self.root / "files" / f".{secrets.token_hex(8)}"
        try:
            sha256, size = self._copy(job, f"out/{staged.name}".encode(), temporary)
            if staged.sha256 and sha256 != staged.sha256:
                raise Corrupt(
                    f"{staged.name} has sha256 {sha256}, and the index says {staged.sha256}; "
                    "nothing of it was kept"
                )
            os.rename(temporary, stored_path(self.root, sha256, staged.name))
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            self._note(sha256, staged.name, size, index)
        return sha256

    def add_view(
        self, key: str, wheels: Mapping[str, str], index: str, *, pinned: bool
    ) -> View | None:
        """Make the view of a resolution and return it; None when a wheel was evicted meanwhile.

        Args:
            key: What was asked for.
            wheels: sha256 to file name.
            index: Where they came from.
            pinned: See ``View.pinned``.
        """
        with self._lock:
            if any(sha256 not in self._files for sha256 in wheels):
                return None
            for sha256, name in wheels.items():
                self._note(sha256, name, self._files[sha256].size, index)
            view = self._link(key, wheels, pinned=pinned)
            self._replace(view)
            self._evict(keep=view)
            wheelhouse_index.save(self.root, self._files, self._views)
            return view

    def add_everything(self, key: str, indexes: Iterable[str]) -> View:
        """Make a view of all wheels from these indexes and of the operator's local ones."""
        asked = set(indexes)
        with self._lock:
            state = (self._generation, os.stat(self.root / "local").st_mtime_ns)
            old = self._views.get(key)
            if old is not None and self._everything.get(key) == state:
                return old
            by_age = sorted(self._files.items(), key=lambda item: item[1].used_ms)
            newest = {
                file.name: sha256
                for sha256, file in by_age
                if asked & set(file.indexes) and file.name.endswith(".whl")
            }
            view = self._link(key, {sha256: name for name, sha256 in newest.items()})
            for wheel in sorted((self.root / "local").glob("*.whl")):
                _link_or_copy(wheel, self.root / "views" / view.directory / wheel.name)
            self._replace(view)
            self._everything[key] = state
            return view

    @contextlib.contextmanager
    def using(self, view: View) -> Iterator[str]:
        """Keep a view from being removed; gives its path relative to the wheelhouse.

        Waits for nothing longer than a count.
        """
        now = self._clock.unix_ms()
        with self._use_lock:
            self._in_use[view.directory] += 1
        view.used_ms = now
        for sha256 in view.files:
            if (file := self._files.get(sha256)) is not None:
                file.used_ms = now
        try:
            yield f"views/{view.directory}"
        finally:
            with self._use_lock:
                self._in_use[view.directory] -= 1
                left = not self._in_use[view.directory]
                if left:
                    del self._in_use[view.directory]
            if left and self._views.get(view.key) is not view:
                self._remove_directory(view.directory)

    def _copy(self, job: Path, path: bytes, target: Path) -> tuple[str, int]:
        directory = os.open(job, openat2.DIRECTORY | os.O_CLOEXEC)
        try:
            source = openat2.open_beneath(directory, path, os.O_RDONLY, resolve=openat2.NO_LINKS)
        except OSError as error:
            raise Corrupt(f"a fetched file cannot be read: {error}") from None
        finally:
            os.close(directory)
        digest, size = hashlib.sha256(), 0
        with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                raise Corrupt("a fetched file is not a regular file")
            while data := reader.read(_CHUNK):
                size += len(data)
                if size > self._max_file_bytes:
                    raise LimitExceeded(
                        f"a wheel is larger than {self._max_file_bytes} bytes, the largest "
                        "that this worker takes in"
                    )
                digest.update(data)
                writer.write(data)
            os.fchmod(writer.fileno(), 0o444)
        return digest.hexdigest(), size

    def _note(self, sha256: str, name: str, size: int, index: str) -> None:
        now = self._clock.unix_ms()
        file = self._files.setdefault(sha256, StoredFile(name, size, [], now))
        file.used_ms = now
        if index not in file.indexes:
            file.indexes.append(index)
            self._generation += 1

    def _link(self, key: str, wheels: Mapping[str, str], *, pinned: bool = False) -> View:
        directory = secrets.token_hex(16)
        path = self.root / "views" / directory
        path.mkdir()
        os.chmod(path, 0o755)
        for sha256, name in wheels.items():
            os.link(stored_path(self.root, sha256, name), path / name)
        now = self._clock.unix_ms()
        return View(key, directory, now, now, pinned, list(wheels))

    def _replace(self, view: View) -> None:
        old = self._views.get(view.key)
        self._views[view.key] = view
        if old is not None and not self._is_used(old):
            self._remove_directory(old.directory)

    def _is_used(self, view: View) -> bool:
        with self._use_lock:
            return view.directory in self._in_use

    def _remove_directory(self, directory: str) -> None:
        shutil.rmtree(self.root / "views" / directory, ignore_errors=True)

    def _drop_view(self, view: View) -> None:
        del self._views[view.key]
        if not self._is_used(view):
            self._remove_directory(view.directory)

    def _evict(self, keep: View) -> None:
        """Delete what was not used for longest until the size fits."""
        views = sorted(self._views.values(), key=lambda view: view.used_ms)
        for view in views[: max(0, len(views) - _MAX_VIEWS)]:
            self._drop_view(view)
        total = sum(file.size for file in self._files.values())
        kept = set(keep.files)
        for sha256, file in sorted(self._files.items(), key=lambda item: item[1].used_ms):
            if total <= self._max_bytes:
                break
            holders = [view for view in self._views.values() if sha256 in view.files]
            if sha256 in kept or any(self._is_used(view) for view in holders):
                continue
            for view in holders:
                self._drop_view(view)
            stored_path(self.root, sha256, file.name).unlink(missing_ok=True)
            del self._files[sha256]
            self._generation += 1
            total -= file.size
            _log.info("packages.wheel_evicted", wheel=file.name, size_bytes=file.size)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        if not target.exists():
            os.link(source, target)
    except OSError:  # another file system, or an owner whose files may not be linked
        shutil.copyfile(source, target)
        os.chmod(target, 0o444)


def view_key(parts: Sequence[str]) -> str:
    """Name a resolution by everything that decides it."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
