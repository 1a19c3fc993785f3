"""Files left in ``artifacts/``: which are registered, and that nothing is followed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import StoreUnavailable
from codegen_mcp.engine.artifacts.collector import FileCollector
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.engine.artifacts.left_files import LeftFile, LeftFiles, Scan
from codegen_mcp.engine.task_ports import Collected
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.stores.memory import MemoryStore


@dataclass
class Session:
    session_id: str
    directory: Path
    workspace: SessionWorkspace


class Bed:
    def __init__(self, session: Session, keeper: ArtifactKeeper, collector: FileCollector) -> None:
        self.session = session
        self.keeper = keeper
        self.collector = collector
        self.root = session.workspace.root
        self.left = self.root / "artifacts"

    def write(self, name: str, data: bytes = b"x") -> Path:
        path = self.left / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    async def collect(self) -> Collected:
        collected = Collected()
        if self.collector.wanted(self.session):
            await self.collector.collect(self.session, "task", collected)
        return collected

    async def found(self) -> dict[str, bytes]:
        """Collect; the bytes of what is new by the path where it lay."""
        return {
            info.labels["path"]: b"".join([p async for p in self.keeper.read(info.artifact_id)])
            for one in (await self.collect()).artifacts
            if (info := await self.keeper.get(one))
        }


@asynccontextmanager
async def opened(tmp_path: Path, store: MemoryStore | None = None, **config) -> AsyncIterator[Bed]:
    root = tmp_path / "volume" / "workspace"
    root.mkdir(parents=True, exist_ok=True)
    settings = ArtifactConfig(**config)
    session = Session("ses_" + "0" * 32, tmp_path, SessionWorkspace(root, None))
    keeper = ArtifactKeeper(
        store or MemoryStore(),
        tmp_path / "uploads",
        find_session=lambda _: None,
        room=lambda: 1 << 40,
        config=settings,
        clock=SystemClock(),
    )
    try:
        async with keeper:
            yield Bed(session, keeper, FileCollector(keeper, settings))
    finally:
        await session.workspace.aclose()


@pytest.fixture
async def bed(tmp_path) -> AsyncIterator[Bed]:
    async with opened(tmp_path) as made:
        yield made


async def test_nothing_is_wanted_without_the_directory(bed):
    assert not bed.collector.wanted(bed.session)
    bed.left.write_bytes(b"a file of that name")
    assert not bed.collector.wanted(bed.session)
    bed.left.unlink()
    bed.left.symlink_to("/etc")
    assert not bed.collector.wanted(bed.session)


async def test_new_and_changed_files_are_registered_once(bed):
    bed.write("a.txt", b"1")
    bed.write("deep/er/b.txt", b"2")
    assert await bed.found() == {"artifacts/a.txt": b"1", "artifacts/deep/er/b.txt": b"2"}
    assert await bed.collect() == Collected()
    bed.write("a.txt", b"3")
    bed.write("c.txt", b"")
    assert await bed.found() == {"artifacts/a.txt": b"3", "artifacts/c.txt": b""}
    assert len(await bed.keeper.list(bed.session.session_id)) == 4


async def test_a_file_of_equal_size_and_old_time_is_seen_to_be_another(bed):
    path = bed.write("a.txt", b"old")
    await bed.collect()
    before = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert await bed.found() == {"artifacts/a.txt": b"new"}


async def test_a_file_that_was_only_touched_is_not_registered_again(bed):
    path = bed.write("a.txt", b"same")
    await bed.collect()
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # until the clock of the file system ticks
        path.chmod(0o600)
    assert await bed.collect() == Collected()
    path.chmod(0o644)
    path.write_bytes(b"new!")
    assert await bed.found() == {"artifacts/a.txt": b"new!"}


async def test_a_file_that_went_and_came_back_is_new(bed):
    path = bed.write("a.txt", b"1")
    await bed.collect()
    path.unlink()
    assert await bed.collect() == Collected()
    bed.write("a.txt", b"1")
    assert await bed.found() == {"artifacts/a.txt": b"1"}


async def test_facts_are_those_of_the_file(bed):
    bed.write("plot.png", b"12")
    (artifact_id,) = (await bed.collect()).artifacts
    info = await bed.keeper.get(artifact_id)
    assert (info.name, info.content_type, info.size_bytes) == ("plot.png", "image/png", 2)
    assert (info.session_id, info.task_id) == (bed.session.session_id, "task")


async def test_only_regular_files_are_read_and_the_rest_is_told_once(bed, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    bed.write("real", b"r")
    (bed.left / "link").symlink_to(secret)
    (bed.left / "links").symlink_to(tmp_path)
    os.mkfifo(bed.left / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(bed.left)  # the address of a socket is short
        listener.bind("socket")
    collected = await bed.collect()
    assert len(collected.artifacts) == 1
    assert "4 files of artifacts/ were not registered" in collected.note
    for word in ("'artifacts/link' (a symlink", "'artifacts/fifo' (a fifo", "(a socket"):
        assert word in collected.note
    assert await bed.collect() == Collected()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
async def test_a_hard_link_to_a_strangers_file_is_not_read(bed, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    os.chown(secret, 12345, 12345)
    bed.left.mkdir()
    os.link(secret, bed.left / "mine")
    collected = await bed.collect()
    assert collected.artifacts == []
    assert "hard link to a file that is not the session's" in collected.note


async def test_links_swapped_in_at_the_last_moment_are_not_followed(bed, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345")
    bed.write("a", b"12345")
    bed.write("d/b", b"12345")
    scan = LeftFiles.scan

    async def then_swap(self: LeftFiles) -> Scan:
        found = await scan(self)
        (bed.left / "a").unlink()
        (bed.left / "a").symlink_to(secret)
        (bed.left / "d" / "b").rename(bed.left / "gone")
        (bed.left / "d").rmdir()
        (bed.left / "d").symlink_to(tmp_path)
        (tmp_path / "b").write_bytes(b"12345")
        return found

    monkeypatch.setattr(LeftFiles, "scan", then_swap)
    collected = await bed.collect()
    assert collected.artifacts == []
    assert await bed.keeper.list() == []


async def test_a_file_that_changes_while_it_is_read_is_left_to_the_next_run(bed, monkeypatch):
    path = bed.write("a", b"0" * 3_000_000)
    bed.write("b", b"b")
    read = LeftFiles.read

    async def then_change(self: LeftFiles, file: LeftFile) -> AsyncIterator[bytes]:
        async for piece in read(self, file):
            yield piece
            if file.path.endswith(b"/a") and path.stat().st_size == 3_000_000:
                with path.open("ab") as more:
                    more.write(b"1")

    monkeypatch.setattr(LeftFiles, "read", then_change)
    collected = await bed.collect()
    assert len(collected.artifacts) == 1
    assert "'artifacts/a' (changed while it was read" in collected.note
    assert set(await bed.found()) == {"artifacts/a"}


async def test_at_most_so_many_files_at_once_and_the_others_at_the_next(tmp_path):
    async with opened(tmp_path, task_files=3) as bed:
        for number in range(5):
            bed.write(str(number))
        first = await bed.collect()
        assert len(first.artifacts) == 3
        assert "2 files of artifacts/ were not registered" in first.note
        assert set(await bed.found()) == {"artifacts/3", "artifacts/4"}


async def test_at_most_so_many_bytes_at_once_and_never_one_that_is_larger(tmp_path):
    async with opened(tmp_path, task_bytes=10) as bed:
        bed.write("a", b"1" * 6)
        bed.write("b", b"2" * 6)
        bed.write("c", b"3" * 4)
        with bed.write("huge").open("wb") as file:
            file.truncate(1 << 40)
        first = await bed.collect()
        assert len(first.artifacts) == 2
        assert "'artifacts/huge' (1099511627776 bytes" in first.note
        assert "'artifacts/b' (beyond 10 bytes" in first.note
        second = await bed.collect()
        assert len(second.artifacts) == 1
        assert second.note == ""


async def test_what_was_registered_is_remembered_by_the_next_worker(tmp_path):
    store = MemoryStore()
    async with opened(tmp_path, store) as bed:
        bed.write("a")
        bed.write("b")
        await bed.collect()
        bed.write("b", b"changed")
    async with opened(tmp_path, store) as bed:
        assert set(await bed.found()) == {"artifacts/b"}


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"format":9}', b'{"format":1,"files":{"a":[]}}'])
async def test_a_damaged_memory_registers_again_and_harms_nothing(tmp_path, damaged):
    async with opened(tmp_path) as bed:
        bed.write("a")
        (tmp_path / "artifacts.json").write_bytes(damaged)
        assert set(await bed.found()) == {"artifacts/a"}


async def test_a_quota_is_told_and_the_run_stays_as_it_was(tmp_path):
    async with opened(tmp_path, session_count=1) as bed:
        bed.write("a")
        bed.write("b")
        collected = await bed.collect()
        assert len(collected.artifacts) == 1
        assert "1 artifacts" in collected.note
        assert collected.note.endswith("the next run tries again")


async def test_a_store_that_is_away_is_told_and_tried_again(tmp_path, monkeypatch):
    store = MemoryStore()
    async with opened(tmp_path, store) as bed:
        bed.write("a")

        async def away(*args: object, **kwargs: object) -> None:
            raise StoreUnavailable("the store does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", away)
            collected = await bed.collect()
        assert collected.artifacts == []
        assert "the store does not answer" in collected.note
        assert [one.name for one in (tmp_path / "uploads").iterdir()] == []
        assert set(await bed.found()) == {"artifacts/a"}


async def test_a_store_that_hangs_is_waited_for_so_long(tmp_path, monkeypatch):
    store = MemoryStore()
    async with opened(tmp_path, store, task_s=0.05) as bed:
        bed.write("a")

        async def hang(*args: object, **kwargs: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(store, "put_file", hang)
        collected = await bed.collect()
        assert collected.artifacts == []
        assert "took too long" in collected.note


async def test_names_that_are_no_text_are_escaped(bed):
    os.makedirs(bed.left)
    for name in (b"a\xff", b"b\n", "ü 🎉".encode()):
        with open(os.fsencode(bed.left) + b"/" + name, "wb") as file:
            file.write(name)
    found = await bed.found()
    assert found == {
        "artifacts/a\\xff": b"a\xff",
        "artifacts/b\\n": b"b\n",
        "artifacts/ü 🎉": "ü 🎉".encode(),
    }


async def test_a_closed_workspace_ends_it_in_words(bed):
    bed.write("a")
    bed.session.workspace.close()
    assert not bed.collector.wanted(bed.session)
    collected = Collected()
    await bed.collector.collect(bed.session, "task", collected)
    assert collected.artifacts == []
    assert "closed" in collected.note
