from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.errors import AlreadyExists, Corrupt, InvalidRequest, StoreUnavailable
from codegen_mcp.stores import local_files
from codegen_mcp.stores.local import LocalStore

MIB = 1024 * 1024
ENDLESS = 1 << 40
"""Bytes of a sparse file that no copy gets to the end of."""
WITHIN_S = 10.0
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))

STORE_ENDLESS_FILE = """
import asyncio, sys
from pathlib import Path
from codegen_mcp.stores.local import LocalStore

async def main():
    async with LocalStore(Path(sys.argv[1])) as store:
        await store.put_file("a/b/key", Path(sys.argv[2]), sha256="0" * 64)

asyncio.run(main())
"""

MEASURE = """
import asyncio, hashlib, sys
from pathlib import Path
from codegen_mcp.stores.local import LocalStore

def peak():  # not ru_maxrss: that has what the process had before execve(2), too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

async def main():
    async with LocalStore(Path(sys.argv[1])) as store:
        await store.put_bytes("warm", b"x")
        async for _ in store.get("warm"):
            pass
        before = peak()
        await store.put_file("key", Path(sys.argv[2]), sha256=sys.argv[3])
        digest = hashlib.sha256()
        async for piece in store.get("key"):
            digest.update(piece)
        assert digest.hexdigest() == sys.argv[3]
        print(peak() - before)

asyncio.run(main())
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state/objects"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalStore]:
    async with LocalStore(root) as opened:
        yield opened


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.truncate(ENDLESS)
    return path


async def keys(store: LocalStore) -> list[str]:
    return [one.key async for one in store.list("")]


def temporary(root: Path) -> list[Path]:
    return list((root / local_files.TEMPORARY).glob("*"))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)


def being_written(root: Path) -> bool:
    return any(path.stat().st_size for path in temporary(root))


async def test_a_killed_writer_leaves_nothing_that_is_listed_and_the_next_open_removes_the_rest(
    root: Path, endless: Path
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", STORE_ENDLESS_FILE, root, endless])
    try:
        await until(lambda: being_written(root))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(temporary(root)) == 1
    async with LocalStore(root) as store:
        assert temporary(root) == []
        assert await keys(store) == []
        await store.put_bytes("a/b/key", b"again")


async def test_opening_leaves_alone_what_a_living_writer_writes(root: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def fill(file: int) -> int:
        os.write(file, b"data")
        entered.set()
        assert go_on.wait(WITHIN_S)
        return 4

    async with LocalStore(root) as first:
        directory = os.open(root, os.O_RDONLY)
        writing = asyncio.create_task(asyncio.to_thread(local_files.create, directory, "key", fill))
        assert await asyncio.to_thread(entered.wait, WITHIN_S)
        async with LocalStore(root) as second:
            assert len(temporary(root)) == 1
            go_on.set()
            await writing
            assert await keys(first) == await keys(second) == ["key"]
        os.close(directory)


async def test_writers_and_openings_at_the_same_moment_do_not_disturb_each_other(
    root: Path, store: LocalStore
) -> None:
    done = threading.Event()

    def open_again_and_again() -> None:
        directory = os.open(root, os.O_RDONLY)
        while not done.is_set():
            local_files.remove_stale(directory)
        os.close(directory)

    opening = asyncio.create_task(asyncio.to_thread(open_again_and_again))
    try:
        await asyncio.gather(*(store.put_bytes(f"{number}", b"x") for number in range(100)))
    finally:
        done.set()
        await opening
    assert len(await keys(store)) == 100


async def test_writers_and_deletions_in_one_directory_do_not_disturb_each_other(
    store: LocalStore, root: Path
) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(10):
            await store.put_bytes(f"a/b/{number}", b"x")
            assert await store.delete(f"a/b/{number}")

    await asyncio.gather(*(come_and_go(number) for number in range(8)))
    assert await keys(store) == []
    assert [path.name for path in root.iterdir()] == [local_files.TEMPORARY]


async def test_a_cancelled_writer_leaves_nothing(
    store: LocalStore, root: Path, endless: Path
) -> None:
    writing = asyncio.create_task(store.put_file("a/key", endless, sha256="0" * 64))
    await until(lambda: being_written(root))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(writing, WITHIN_S)
    assert temporary(root) == []
    assert await keys(store) == []


async def test_a_write_that_fails_leaves_nothing(
    store: LocalStore, root: Path, tmp_path: Path
) -> None:
    data = os.urandom(2 * MIB)
    source = tmp_path / "source"
    source.write_bytes(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(StoreUnavailable, match="File too large"):
            await store.put_file("a/key", source, sha256=hashlib.sha256(data).hexdigest())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert temporary(root) == []
    assert await keys(store) == []


async def test_only_the_owner_may_look(root: Path, store: LocalStore) -> None:
    await store.put_bytes("a/b/key", b"x")
    for directory in (root.parent, root, root / "a", root / "a/b", root / local_files.TEMPORARY):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "a/b/key").stat().st_mode) == 0o600


async def test_an_object_is_no_other_name_of_the_file_it_came_from(
    root: Path, store: LocalStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"before")
    await store.put_file("key", source, sha256=hashlib.sha256(b"before").hexdigest())
    with source.open("r+b") as file:
        file.write(b"later!")
    assert (root / "key").read_bytes() == b"before"
    assert (root / "key").stat().st_nlink == 1


async def test_a_file_that_is_given_is_kept_itself_and_stays_when_its_first_name_goes(
    root: Path, store: LocalStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"given")
    source.chmod(0o644)
    sha256 = hashlib.sha256(b"given").hexdigest()
    put = await store.put_file("a/key", source, sha256=sha256, given=True)
    assert put == await store.stat("a/key")
    assert (root / "a/key").samefile(source)
    with pytest.raises(AlreadyExists):
        await store.put_file("a/key", source, sha256=sha256, given=True)
    source.unlink()
    assert [piece async for piece in store.get("a/key")] == [b"given"]
    assert stat.S_IMODE((root / "a/key").stat().st_mode) == 0o600
    assert temporary(root) == []


async def test_a_file_that_is_given_and_damaged_is_not_stored(
    store: LocalStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"other")
    with pytest.raises(Corrupt):
        await store.put_file("key", source, sha256="0" * 64, given=True)
    assert await keys(store) == []


@pytest.mark.parametrize("refusal", [errno.EXDEV, errno.EPERM, errno.EMLINK])
async def test_a_file_that_is_given_and_cannot_be_kept_is_copied(
    root: Path,
    store: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: int,
) -> None:
    link = os.link

    def refuse(source: str, *args: Any, **kwargs: Any) -> None:
        if source.startswith("/proc/"):
            raise OSError(refusal, os.strerror(refusal))
        link(source, *args, **kwargs)

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(b"given")
    await store.put_file("key", source, sha256=hashlib.sha256(b"given").hexdigest(), given=True)
    assert (root / "key").read_bytes() == b"given"
    assert not (root / "key").samefile(source)


async def test_a_key_below_an_object_or_above_others_is_refused(store: LocalStore) -> None:
    await store.put_bytes("a/b", b"1")
    with pytest.raises(InvalidRequest, match="below an object"):
        await store.put_bytes("a/b/c", b"2")
    with pytest.raises(InvalidRequest, match="directory of others"):
        await store.put_bytes("a", b"2")
    assert await keys(store) == ["a/b"]


async def test_two_stores_of_one_directory_see_the_same_objects(
    root: Path, store: LocalStore
) -> None:
    async with LocalStore(root) as other:
        await store.put_bytes("key", b"x")
        with pytest.raises(AlreadyExists):
            await other.put_bytes("key", b"y")
        assert await other.delete("key")
    assert await keys(store) == []


async def test_what_is_no_object_is_left_alone_and_not_listed(
    root: Path, store: LocalStore
) -> None:
    (root / "a note").write_text("by an administrator")
    (root / "link").symlink_to("a note")
    (root / "empty").mkdir()
    await store.put_bytes("key", b"x")
    assert await keys(store) == ["key"]
    async with LocalStore(root):
        assert (root / "a note").exists()


async def test_a_store_whose_directory_was_removed_does_not_say_not_found(
    root: Path, store: LocalStore, tmp_path: Path
) -> None:
    await store.put_bytes("key", b"x")
    await store.delete("key")
    (root / local_files.TEMPORARY).rmdir()
    root.rmdir()
    for call in (
        store.stat("key"),
        store.delete("key"),
        store.put_bytes("key", b"x"),
        anext(store.get("key")),
        keys(store),
    ):
        with pytest.raises(StoreUnavailable, match=str(root)):
            await call


async def test_a_place_that_cannot_be_had_is_said_when_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        async with LocalStore(tmp_path / "file/objects"):
            pass
    with pytest.raises(StoreUnavailable, match="file"):
        async with LocalStore(tmp_path / "file"):
            pass


async def test_a_closed_store_does_not_answer(root: Path) -> None:
    async with LocalStore(root) as store:
        await store.put_bytes("key", b"x")
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.stat("key")


def test_memory_use_does_not_depend_on_the_size(tmp_path: Path, root: Path) -> None:
    source, digest = tmp_path / "source", hashlib.sha256()
    piece = os.urandom(MIB)
    with source.open("wb") as file:
        for _ in range(256 if SOAK else 64):
            file.write(piece)
            digest.update(piece)
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, root, source, digest.hexdigest()],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    (root / "key").unlink()
    source.unlink()
    assert int(said) < 12 * MIB
