"""Writes an audit log, one process at a time. Everything here blocks: call it in its own thread.

What a crash tore off in the middle of a line stays where it is: a record of kind ``torn`` after it
says how many bytes it has and what their digest is, and goes on from the last whole record.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from codegen_mcp.telemetry.audit_chain import Head, seal
from codegen_mcp.telemetry.audit_config import AuditConfig
from codegen_mcp.telemetry.audit_files import (
    AuditFile,
    compress,
    list_files,
    lock,
    name_of,
    sync_directory,
)
from codegen_mcp.telemetry.audit_reader import read_end, torn_record

log = structlog.get_logger()

Record = Mapping[str, Any]
FORMAT = 1


class AuditWriter:
    """The open end of the log.

    Attributes:
        head: Of what is written.
        full: Whether there are full files that ``tidy`` has not seen.
    """

    def __init__(self, config: AuditConfig) -> None:
        self._config = config
        self._directory = config.directory
        self._fd = -1
        self._lock = -1
        self._length = 0
        self._unsynced = False
        self._broken = ""
        self._current: AuditFile | None = None
        self.head = Head()
        self.full = False

    def open(self, stamp: str) -> None:
        """Go on after what is there; the newest file is read as a whole.

        Args:
            stamp: The time, for records that opening adds.

        Raises:
            Corrupt: The newest file is damaged other than by a torn end: nothing may hide behind
            new records. Conflict: Another process writes here. OSError.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock(self._directory)
        try:
            self._recover(stamp)
        except BaseException:
            self.close()
            raise

    def _recover(self, stamp: str) -> None:
        for leftover in self._directory.glob("audit-*.jsonl.gz.tmp"):
            leftover.unlink()
        files = list_files(self._directory)
        end = None
        while files and end is None:
            end = read_end(files[-1])
            if end is None:  # a crash came while it was made: it has never had a record
                files.pop().path.unlink()
        if end is None:
            self._begin(stamp)
            return
        last = files[-1]
        self.head, self.full = end.head, len(files) > 1
        if last.compressed:
            self._begin(stamp)
            return
        self._current, self._length = last, end.length
        self._fd = os.open(last.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not end.clean:
            log.warning("audit.torn", path=str(last.path), bytes=len(end.torn))
            line, head = seal(self.head, {"at": stamp, **torn_record(end.torn)})
            self._write((b"" if end.fed else b"\n") + line + b"\n")
            self.head = head
        self._unsynced = True
        self.sync()

    def append(self, records: Sequence[Record], stamp: str) -> None:
        """Write records: all of them, or none.

        Raises:
            OSError: Nothing of it counts; the log ends as before.
        """
        if self._length >= self._config.file_bytes:
            self._rotate(stamp)
        head, written = self.head, bytearray()
        for record in records:
            line, head = seal(head, record)
            written += line + b"\n"
        self._write(bytes(written))
        self.head = head

    def _write(self, data: bytes) -> None:
        """Append; what was half written is taken back."""
        if self._fd < 0 or self._broken:
            raise OSError(errno.EIO, self._broken or "the audit log is not open")
        start = self._length
        found = os.fstat(self._fd)
        if not found.st_nlink or found.st_size != start:
            # Nothing is added to a log that somebody cut or deleted under us: it would look whole.
            self._broken = "it was cut, lengthened or deleted by somebody else; look, then restart"
            raise OSError(errno.ESTALE, self._broken)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        self._length = start + len(data)
        self._unsynced = True

    def sync(self) -> None:
        """Wait until all of it is on the disk.

        Raises:
            OSError: As fsync(2).
        """
        if self._unsynced:
            try:
                os.fdatasync(self._fd)
            except OSError:
                # The kernel forgets what it could not write: to try again would seem to succeed.
                self._broken = "an error of the disk may have lost a part of it; look, then restart"
                raise
            self._unsynced = False

    @property
    def unsynced(self) -> bool:
        """Whether something was written since the last ``sync``."""
        return self._unsynced

    def _rotate(self, stamp: str) -> None:
        self.sync()
        full, fd, length = self._current, self._fd, self._length
        try:
            self._begin(stamp)
        except OSError:
            self._fd, self._length, self._current = fd, length, full
            raise
        os.close(fd)
        self.full = True

    def tidy(self) -> None:
        """Compress and delete files that are full. Beside ``append``, in any one thread.

        Raises:
            OSError: No room, for example; every file can be read as it is.
        """
        self.full = False
        current = self._current
        full = [one for one in list_files(self._directory) if one != current]
        if self._config.keep_files:
            for file in full[: -self._config.keep_files]:
                log.info("audit.deleted", path=str(file.path))
                file.path.unlink()
                full.remove(file)
        if self._config.compress:
            for file in full:
                if not file.compressed:
                    compress(file)

    def _begin(self, stamp: str) -> None:
        """Open a new file, whose first record names what was before."""
        first = self.head.sequence + 1
        path = self._directory / name_of(first)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        before = self.head
        self._fd = os.open(path, flags, 0o600)
        self._length, self._current = 0, AuditFile(path, first, False)
        told = {"at": stamp, "kind": "file", "format": FORMAT, "after": str(before)}
        line, head = seal(before, told)
        try:
            self._write(line + b"\n")
            self.sync()
            sync_directory(self._directory)
        except OSError:
            os.close(self._fd)
            self._fd = -1
            path.unlink()
            raise
        self.head = head

    def close(self) -> None:
        """Let go; idempotent."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
