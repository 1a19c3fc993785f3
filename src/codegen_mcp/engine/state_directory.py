"""The worker's state directory: its layout, its lock and its format version.

::

    lock            flock'ed by the living worker; free means that the worker is dead
    state.json      format version of everything below
    slots/N/        booted ahead, nobody's yet; renamed to sessions/ID when claimed
    sessions/ID/    volume/ (the session's files) and session.json, tasks.jsonl (ours, 0600)
    trash/          renamed away, being deleted

Other owners keep templates/, guest/, tools/ and wheels/ beside these. A session's host user
must be able to pass, never to list: directories are 0711, the trash 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from codegen_mcp.core.errors import Corrupt, Unavailable, WrongState
from codegen_mcp.engine.durable import write_file

FORMAT = 1


class StateDirectory:
    """An open, locked state directory."""

    def __init__(self, root: Path) -> None:
        """Name it; ``open`` makes and locks it."""
        self.root = root
        self.slots = root / "slots"
        self.sessions = root / "sessions"
        self.trash = root / "trash"
        self._numbers = itertools.count(1)
        self._lock_fd = -1

    def open(self) -> None:
        """Make what is missing, take the lock, check the format.

        Raises:
            Unavailable: Another worker lives in it, or it cannot be written to.
            WrongState: A newer version of this program wrote it.
            Corrupt: ``state.json`` cannot be read.
        """
        try:
            _make(self.root, 0o711)
            self._take_lock()
            try:
                self._check_format()
                for path, mode in (
                    (self.slots, 0o711),
                    (self.sessions, 0o711),
                    (self.trash, 0o700),
                ):
                    _make(path, mode)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise Unavailable(
                f"state directory {str(self.root)!r} cannot be used ({error.strerror}); make it "
                "writable, or name another one with --workspace"
            ) from error

    def close(self) -> None:
        """Release the lock; idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[StateDirectory]:
        """``open`` for as long as the block lasts."""
        self.open()
        try:
            yield self
        finally:
            self.close()

    def new_slot(self) -> Path:
        """Make an empty slot directory."""
        while True:
            path = self.slots / str(next(self._numbers))
            try:
                path.mkdir(mode=0o711)
            except FileExistsError:
                continue
            path.chmod(0o711)
            return path

    def session(self, session_id: str) -> Path:
        """Return where a session lies."""
        return self.sessions / session_id

    def new_trash(self) -> Path:
        """Return a free name in the trash."""
        return self.trash / secrets.token_hex(8)

    def _take_lock(self) -> None:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Unavailable(
                f"another worker lives in state directory {str(self.root)!r}; stop it, or name "
                "another directory with --workspace",
                reason="STATE_DIRECTORY_IN_USE",
            ) from error
        self._lock_fd = fd

    def _check_format(self) -> None:
        path = self.root / "state.json"
        try:
            found = json.loads(path.read_bytes())["format"]
        except FileNotFoundError:
            write_file(path, json.dumps({"format": FORMAT}).encode() + b"\n", durable=True)
            return
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(
                f"{str(path)!r} cannot be read ({error}); restore it, or move the directory away"
            ) from error
        check_format(path, found, FORMAT)


def check_format(path: Path, found: object, known: int) -> int:
    """Accept a format version up to ours.

    Raises:
        WrongState: It is newer.
        Corrupt: It is no version.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise Corrupt(f"{str(path)!r} has format {found!r}, which is none; restore the file")
    if found > known:
        raise WrongState(
            f"{str(path)!r} has format {found}, which is newer than the {known} that this version "
            "knows; start the version that wrote it, or a newer one",
            reason="FORMAT_TOO_NEW",
        )
    return found


def _make(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    # Under /tmp anybody may have made it, or a link of that name, before us.
    owner = next((o for o in (path.lstat().st_uid, path.stat().st_uid) if o != os.geteuid()), None)
    if owner is not None:
        raise Unavailable(
            f"directory {str(path)!r} belongs to uid {owner}, not to this worker's "
            f"{os.geteuid()}; remove it, or name another one with --workspace"
        )
    path.chmod(mode)
