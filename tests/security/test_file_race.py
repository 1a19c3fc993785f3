"""The worker's file access against a process that swaps what it looks at, for ten seconds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.sandbox.base import HostIdentity

SECRET = b"the secret of the host"
RACE_S = 10.0
AS_ROOT = os.geteuid() == 0
UID = 200_321 if AS_ROOT else 0
KINDS = ("read", "write", "upload", "delete", "move", "make_dir", "hash", "stream", "stat")
ERRORS = ("NotFound", "PathEscape", "WrongState")
"""What may be answered about a name that exists only outside."""


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    secret = tmp_path / "secret"
    (secret / "sub/deep").mkdir(parents=True)
    for name in ("file", "only_outside", "sub/file", "sub/deep/only_outside"):
        (secret / name).write_bytes(SECRET)
    directories = [secret, secret / "sub", secret / "sub/deep"]
    # No sandbox is around the hostile process here: where it is the same user, what it could
    # carry through its own links must be locked.
    for directory in directories if not AS_ROOT else []:
        directory.chmod(0o555)
    yield secret
    for directory in directories:
        directory.chmod(0o755)


@pytest.fixture
def root(tmp_path: Path, secret: Path) -> Iterator[Path]:
    root = tmp_path / "workspace"
    root.mkdir()
    if AS_ROOT:
        os.chown(root, UID, UID)
    script = Path(__file__).with_name("file_racer.py")
    racer = subprocess.Popen(
        [sys.executable, str(script), str(UID), str(root), str(secret)], stdout=subprocess.PIPE
    )
    try:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"begun\n"
        yield root
        assert racer.poll() is None, "the hostile process ended before the race did"
    finally:
        racer.kill()
        racer.communicate()


def snapshot(directory: Path) -> list[tuple[object, ...]]:
    """Everything that a change outside would change; access times are no change."""
    found = []
    for path in [directory, *sorted(directory.rglob("*"))]:
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        owner = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_size)
        found.append((str(path), stat.st_ino, *owner, stat.st_mtime_ns, stat.st_ctime_ns, content))
    return found


class Race:
    """Every kind of call, each checked for what it must never show."""

    def __init__(self, workspace: SessionWorkspace) -> None:
        self.workspace = workspace
        self.seen: Counter[tuple[str, str]] = Counter()

    async def read(self) -> None:
        for path in ("door/file", "door/sub/file", "plain", "pile/sub/file"):
            await self.call("read", self.workspace.read(path, 0, 100))

    async def hash(self) -> None:
        await self.call("hash", self.workspace.sha256("door/file"))

    async def stream(self) -> None:
        async def whole() -> bytes:
            return b"".join([chunk async for chunk in self.workspace.read_chunks("plain", 100)])

        await self.call("stream", whole())

    async def write(self) -> None:
        for path in ("door/file", "plain", "door/sub/new", "pile/sub/deep/x"):
            await self.call(
                "write", self.workspace.write(path, b"inside", create_dirs=True, mode=None)
            )

    async def upload(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"in"
            yield b"side"

        await self.call(
            "upload",
            self.workspace.write_chunks(
                "door/uploaded",
                chunks(),
                create_dirs=True,
                mode=0o600,
                expected_size=6,
                expected_sha256=None,
            ),
        )

    async def list(self) -> None:
        for path in (".", "door", "pile"):
            await self.call(
                "list", self.workspace.list(path, recursive=True, pattern="", limit=1000)
            )

    async def stat(self) -> None:
        await self.call("stat", self.workspace.stat("door/only_outside"))
        await self.call("stat", self.workspace.stat("door/file"))

    async def delete(self) -> None:
        await self.call("delete", self.workspace.delete("pile/sub", recursive=True))
        await self.call("delete", self.workspace.delete("door/new", recursive=True))
        await self.call("delete", self.workspace.delete("door/only_outside", recursive=False))

    async def move(self) -> None:
        await self.call("move", self.workspace.move("door/file", "stolen", overwrite=True))
        await self.call("move", self.workspace.move("stolen", "door/file", overwrite=True))
        await self.call("move", self.workspace.move("plain", "door/plain", overwrite=True))
        await self.call("move", self.workspace.move("door/plain", "plain", overwrite=True))

    async def make_dir(self) -> None:
        await self.call("make_dir", self.workspace.make_dir("door/made/below"))
        await self.call("make_dir", self.workspace.make_dir("pile/sub/deep"))

    async def call(self, kind: str, call: object) -> None:
        answer: object
        try:
            answer = await call  # type: ignore[misc]
            outcome = "ok"
        except WorkerError as error:
            answer = error
            outcome = type(error).__name__
        assert outcome != "WorkerError", answer
        assert SECRET not in repr(answer).encode(), f"{kind} leaked"
        assert b"only_outside'" not in repr(answer).encode() or outcome in ERRORS, kind
        self.seen[kind, outcome] += 1


async def test_nothing_leaks_and_nothing_outside_changes_while_everything_is_swapped(
    root: Path, secret: Path
) -> None:
    before = snapshot(secret)
    workspace = SessionWorkspace(root, HostIdentity(uid=UID, gid=UID) if AS_ROOT else None)
    race = Race(workspace)

    async def again_and_again() -> None:
        calls = (race.read, race.write, race.list, race.move, race.delete, race.make_dir)
        calls += (race.stat, race.hash, race.stream, race.upload)
        end = time.monotonic() + RACE_S
        while time.monotonic() < end:
            for call in calls:
                await call()

    async with asyncio.TaskGroup() as group:  # two: threads and the loop at the same time
        group.create_task(again_and_again())
        group.create_task(again_and_again())
    await workspace.aclose()

    assert snapshot(secret) == before
    for kind in KINDS:
        assert race.seen[kind, "ok"] > 10, race.seen
        assert race.seen[kind, "PathEscape"] > 10, race.seen
    assert race.seen["list", "ok"] > 10, race.seen
