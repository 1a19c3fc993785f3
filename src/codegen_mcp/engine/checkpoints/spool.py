"""Where checkpoints are made before they are in the store, and wait while it does not answer.

::

    <root>/<session>.<epoch>.<number>/   archive.tar.gz manifest.gz journal.gz info.json
                                         ready: empty; everything before it is whole and durable

A directory without ``ready`` is half-made and deleted at the next start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from codegen_mcp.core.checkpoint import CheckpointId, parse_checkpoint_id
from codegen_mcp.core.errors import NotFound
from codegen_mcp.engine.checkpoints.room import Room
from codegen_mcp.sandbox.volumes.attributes import spread_children
from codegen_mcp.sandbox.volumes.space import free_on


@dataclass(frozen=True, slots=True)
class Draft:
    """One checkpoint in the making; blocking file work, for threads."""

    directory: Path

    @property
    def archive(self) -> Path:
        """The archive."""
        return self.directory / "archive.tar.gz"

    @property
    def manifest(self) -> Path:
        """The manifest object."""
        return self.directory / "manifest.gz"

    @property
    def journal(self) -> Path:
        """The journal object; missing when there is none."""
        return self.directory / "journal.gz"

    @property
    def info(self) -> Path:
        """The metadata object."""
        return self.directory / "info.json"

    @property
    def ready(self) -> bool:
        """Whether it is whole and durable."""
        return (self.directory / "ready").exists()

    def make_ready(self) -> None:
        """Sync everything, then say that it is whole. OSError as of fsync(2)."""
        for path in (self.archive, self.manifest, self.journal, self.info):
            if path.exists():
                _sync(path)
        (self.directory / "ready").touch(mode=0o600)
        _sync(self.directory)
        _sync(self.directory.parent)

    def remove(self) -> None:
        """Delete it; never raises."""
        with suppress(OSError):
            (self.directory / "ready").unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):  # a scratch file whose maker died before it had unlinked it
            self.directory.unlink(missing_ok=True)


class Spool:
    """The directory of all drafts of a worker."""

    def __init__(self, root: Path, room: Callable[[], int] | None = None) -> None:
        """Name it.

        Args:
            root: Made when it is opened.
            room: Bytes that may still be written there; None is as many as the disk takes.
        """
        self._root = root
        self._room = room

    def room(self) -> Room:
        """Return what may be used of the disk now; for the event loop."""
        if self._room is None:
            return Room(self._root, 0)
        return Room(self._root, free_on(self._root) - self._room())

    def open(self) -> list[tuple[CheckpointId, Draft]]:
        """Make the directory, delete what is half-made, return what waits, oldest first."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        spread_children(self._root)
        waiting = []
        for path in self._root.iterdir():
            draft = Draft(path)
            try:
                checkpoint_id = parse_checkpoint_id(path.name)
            except NotFound:
                draft.remove()
                continue
            if draft.ready:
                waiting.append((checkpoint_id, draft))
            else:
                draft.remove()
        return sorted(waiting, key=lambda one: (one[0].session_id, one[0].epoch, one[0].number))

    def new(self, checkpoint_id: CheckpointId) -> Draft:
        """Make an empty draft, in place of an older one of the same id that came to nothing."""
        draft = Draft(self._root / str(checkpoint_id))
        if draft.directory.exists():
            draft.remove()
        draft.directory.mkdir(mode=0o700)
        return draft

    def numbers(self, session_id: str) -> list[int]:
        """Numbers of the drafts of a session that there are."""
        found = []
        for path in self._root.iterdir():
            with suppress(NotFound):
                checkpoint_id = parse_checkpoint_id(path.name)
                if checkpoint_id.session_id == session_id:
                    found.append(checkpoint_id.number)
        return found

    def directory(self) -> Path:
        """Make an empty directory; the caller deletes it, or the next start."""
        return Path(tempfile.mkdtemp(prefix="import-", dir=self._root))

    def scratch(self) -> int:
        """Open a file without a name here (O_TMPFILE; else unlinked at once); the caller's."""
        try:
            return os.open(self._root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            path = self._root / f".scratch-{os.getpid()}-{os.urandom(8).hex()}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            path.unlink()
            return fd


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
