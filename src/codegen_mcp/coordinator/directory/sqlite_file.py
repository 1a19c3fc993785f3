"""One SQLite file, opened by one process at a time, in a format that this version knows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen_mcp.coordinator.directory.schema import MIGRATIONS, Statements
from codegen_mcp.core.errors import Corrupt, StoreUnavailable, Unavailable, WorkerError, WrongState

BUSY_MS = 5_000
"""For a foreign program, such as the sqlite3 shell, that holds the file."""


@contextlib.contextmanager
def open_file(
    path: Path, *, migrations: Sequence[Statements] = MIGRATIONS
) -> Iterator[sqlite3.Connection]:
    """Lock it, make or migrate it, and yield its connection, in autocommit.

    WAL with synchronous=FULL: a commit that returned survives a power failure, where the disk
    keeps what it confirms (https://sqlite.org/pragma.html#pragma_synchronous).

    Raises:
        Unavailable: Another coordinator has it open.
        WrongState: It is of a newer format (reason FORMAT_TOO_NEW), or some other database.
        Corrupt: It is damaged.
        StoreUnavailable: It cannot be read or written.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path):
            # Made here, so that nobody else can read whose sessions there are.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA journal_mode = WAL")
                _bring_up(path, connection, migrations)
                _sync(path.parent)
                yield connection
    except OSError as error:
        raise StoreUnavailable(
            f"the directory {str(path)!r} cannot be opened ({error.strerror}); "
            "give a file on a local disk that can be written to"
        ) from error
    except sqlite3.Error as error:
        raise translated(path, error) from error


def translated(path: Path, error: sqlite3.Error) -> WorkerError:
    """Return what this error of SQLite means to a caller."""
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return _damaged(path, error)
    return StoreUnavailable(f"the directory {str(path)!r} does not answer ({error})")


def _damaged(path: Path, what: object) -> Corrupt:
    return Corrupt(
        f"the directory {str(path)!r} is damaged ({what}); move it away and start anew: workers "
        "will register again, sessions that only it knew are lost"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a flock, which the kernel frees with this process however it ends."""
    lock = path.with_name(path.name + ".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"another coordinator has the directory {str(path)!r} open; stop it, or give "
                "this one a file of its own",
                reason="DIRECTORY_LOCKED",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _bring_up(path: Path, connection: sqlite3.Connection, migrations: Sequence[Statements]) -> None:
    """Make the file one of the newest format, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    found = _format(path, connection)
    if found > len(migrations):
        raise WrongState(
            f"the directory {str(path)!r} has format {found}, newer than the {len(migrations)} "
            "that this version knows; use the version that wrote it, or a newer one",
            reason="FORMAT_TOO_NEW",
        )
    for statements in migrations[found:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute("COMMIT")


def _format(path: Path, connection: sqlite3.Connection) -> int:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not tables:
        return 0
    (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if problem != "ok":
        raise _damaged(path, problem)
    rows = connection.execute("SELECT * FROM directory") if "directory" in tables else ()
    match list(rows):
        case [(int(found),)] if found > 0:
            return found
    raise WrongState(
        f"{str(path)!r} is a database of something else; give the coordinator a file of its own"
    )


def _sync(directory: Path) -> None:
    """Make the names of new files durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
