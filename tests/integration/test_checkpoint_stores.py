"""What checkpoints and artifacts promise, on every store, with sessions of a real engine."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from codegen_mcp.core.checkpoint import parse_checkpoint_id
from codegen_mcp.core.clock import SystemClock
from codegen_mcp.core.errors import AlreadyExists, Corrupt, NotFound
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.engine.checkpoints.checkpointer import Checkpointer
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.stores.registry import open_store
from codegen_mcp.testing.checkpoint_rig import (
    CheckpointRig,
    checkpoint_rig,
    drafts_in,
    ids,
    impatient,
    keys,
    problems,
)
from codegen_mcp.testing.worker import state_directory

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ["memory", "local", "s3"]
FIRST = """
import os
os.makedirs("d/e"); open("a.txt", "w").write("first"); open("d/e/b", "wb").write(bytes(70_000))
os.symlink("a.txt", "l"); os.link("a.txt", "h"); os.chmod("d/e/b", 0o600)
"""
SEEN = """
import os
print(open("a.txt").read(), os.readlink("l"), os.stat("h").st_nlink,
      os.stat("d/e/b").st_size, oct(os.stat("d/e/b").st_mode & 0o777))
"""
FIRST_SEEN = "first a.txt 2 70000 0o600"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[CheckpointRig]:
    async with state_directory() as state:
        async with checkpoint_rig(state) as opened:
            yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other() -> AsyncIterator[CheckpointRig]:
    """A second worker."""
    async with state_directory() as state:
        async with checkpoint_rig(state) as opened:
            yield opened


@dataclass
class Bench:
    rig: CheckpointRig
    store: ObjectStore
    checkpoints: Checkpointer
    drafts: Path


@pytest_asyncio.fixture(params=KINDS, loop_scope="module")
async def bench(
    request: pytest.FixtureRequest, rig: CheckpointRig, tmp_path: Path
) -> AsyncIterator[Bench]:
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        store: ObjectStore = impatient(server, server.new_url(), request_timeout_s=20.0)
    else:
        store = open_store({"memory": "memory:", "local": str(tmp_path / "store")}[request.param])
    drafts = tmp_path / "drafts"
    async with store, rig.checkpoints(store, drafts, keep=3) as checkpoints:
        yield Bench(rig, store, checkpoints, drafts)
        for view in rig.engine.sessions.list():
            await rig.engine.sessions.destroy(view.session_id, force=True)
    assert drafts_in(drafts) == []


async def put(store: ObjectStore, key: str, data: bytes) -> None:
    await store.delete(key)
    await store.put_bytes(key, data)


async def read(store: ObjectStore, key: str) -> bytes:
    return b"".join([piece async for piece in store.get(key)])


async def test_who_lists_right_after_a_save_does_not_see_what_it_retires(bench):
    checkpoints = bench.checkpoints
    session = await bench.rig.session()
    saved = [await checkpoints.save(session) for _ in range(3)]
    saved.append(await checkpoints.save(session))
    assert await checkpoints.list(session) == saved[:0:-1]
    await checkpoints.save(session)
    with pytest.raises(NotFound):
        await checkpoints.get(str(saved[1].checkpoint_id))


async def test_full_and_incremental_checkpoints_restore_in_a_new_session_and_in_place(bench):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session(env={"A": "b"}, metadata={"m": "1"})
    await rig.run(session, FIRST)
    first = await checkpoints.save(session, name="first")
    await rig.run(session, 'open("a.txt", "w").write("second")')
    second = await checkpoints.save(session, incremental=True)
    assert (first.parent, list(first.chain), first.name) == (0, [1], "first")
    assert (second.parent, list(second.chain)) == (1, [1, 2])
    assert second.size_bytes < first.size_bytes
    assert first.storage_url == bench.store.url(first.checkpoint_id.key + ".tar.gz")
    assert await checkpoints.list(session) == [second, first]
    assert await checkpoints.get(str(first.checkpoint_id)) == first
    assert checkpoints.last(session) == str(second.checkpoint_id)
    assert await rig.content(checkpoints, str(first.checkpoint_id), SEEN) == FIRST_SEEN
    await rig.run(session, 'open("a.txt", "w").write("third")')
    restored = await checkpoints.restore(str(second.checkpoint_id), create_new_session=False)
    assert restored.session_id == session
    assert restored.lost
    assert await rig.run(session, SEEN) == FIRST_SEEN.replace("first", "second")
    assert await rig.run(session, 'import os; print(os.environ["A"])') == "b"
    assert await problems(checkpoints) == []


async def test_what_a_later_one_needs_outlives_deletion_and_numbers_are_used_once(bench):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session()
    await rig.run(session, FIRST)
    first = await checkpoints.save(session)
    await rig.run(session, 'open("n", "w").write("n")')
    second = await checkpoints.save(session, incremental=True)
    await checkpoints.delete(str(first.checkpoint_id))
    assert await ids(checkpoints) == [str(second.checkpoint_id)]
    with pytest.raises(NotFound, match="there is no checkpoint"):
        await checkpoints.delete(str(first.checkpoint_id))
    assert await rig.content(checkpoints, str(second.checkpoint_id), SEEN) == FIRST_SEEN
    await checkpoints.delete(str(second.checkpoint_id))
    assert await ids(checkpoints) == []
    assert checkpoints.last(session) == ""
    assert await keys(bench.store) == [second.checkpoint_id.key + ".deleted"]
    async with rig.checkpoints(bench.store, bench.drafts) as restarted:
        third = await restarted.save(session, incremental=True)
    assert (third.checkpoint_id.number, third.parent) == (3, 0)


async def test_the_oldest_go_and_what_is_kept_restores(bench):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session()
    await rig.run(session, FIRST)
    for number in range(4):
        await rig.run(session, f'open("a.txt", "w").write("{number}")')
        await checkpoints.save(session, incremental=True)
    kept = await checkpoints.list(session)
    assert [info.checkpoint_id.number for info in kept] == [4, 3, 2]
    seen = await rig.content(checkpoints, str(kept[-1].checkpoint_id), SEEN)
    assert seen == FIRST_SEEN.replace("first", "1")
    last = await checkpoints.save(session)
    for info in await checkpoints.list(session):
        if info != last:
            await checkpoints.delete(str(info.checkpoint_id))
    left = {key.partition(".")[0] for key in await keys(bench.store)}
    assert left == {last.checkpoint_id.key}


async def test_an_exported_checkpoint_comes_back_also_after_it_was_deleted(bench, tmp_path):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session()
    await rig.run(session, FIRST)
    await checkpoints.save(session)
    await rig.run(session, 'open("a.txt", "w").write("second")')
    second = str((await checkpoints.save(session, incremental=True)).checkpoint_id)
    size = await checkpoints.export(second, tmp_path / "exported")
    assert size == (tmp_path / "exported").stat().st_size
    with pytest.raises(AlreadyExists, match=second):
        await checkpoints.import_(tmp_path / "exported")
    for checkpoint_id in await ids(checkpoints):
        await checkpoints.delete(checkpoint_id)
    imported = await checkpoints.import_(tmp_path / "exported")
    assert str(imported.checkpoint_id) == second
    assert await ids(checkpoints) == [second]
    seen = await rig.content(checkpoints, second, SEEN)
    assert seen == FIRST_SEEN.replace("first", "second")


@pytest.mark.parametrize("suffix", [".tar.gz", ".manifest.gz", ".journal.gz", ".json"])
async def test_a_damaged_or_missing_object_is_a_typed_error_and_verify_finds_it(bench, suffix):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session()
    await rig.run(session, FIRST)
    info = await checkpoints.save(session)
    checkpoint_id, key = str(info.checkpoint_id), info.checkpoint_id.key + suffix
    before = [view.session_id for view in rig.engine.sessions.list()]
    whole = await read(bench.store, key)
    middle = len(whole) // 2
    await put(bench.store, key, whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    async with rig.checkpoints(bench.store, bench.drafts) as fresh:
        with pytest.raises(Corrupt, match=checkpoint_id) as damaged:
            await fresh.restore(checkpoint_id, create_new_session=True)
        assert len(await problems(fresh)) == 1
        assert damaged.value.reason == "CHECKPOINT_DAMAGED"
        await bench.store.delete(key)
        with pytest.raises(NotFound, match=checkpoint_id):
            await fresh.restore(checkpoint_id, create_new_session=False)
        assert len(await problems(fresh)) == (0 if suffix == ".json" else 1)
        await bench.store.put_bytes(key, whole)
        assert await problems(fresh) == []
        assert await rig.content(fresh, checkpoint_id, SEEN) == FIRST_SEEN
    assert [view.session_id for view in rig.engine.sessions.list()] == before


async def test_damaged_metadata_or_that_of_a_newer_version_does_not_hide_the_others(bench):
    rig, checkpoints = bench.rig, bench.checkpoints
    session = await rig.session()
    infos = [await checkpoints.save(session) for _ in range(3)]
    key = infos[2].checkpoint_id.key + ".json"
    whole = await read(bench.store, key)
    for other in (b"{", whole.replace(b'"format": 1', b'"format": 999')):
        await put(bench.store, key, other)
        async with rig.checkpoints(bench.store, bench.drafts, keep=9) as fresh:
            found = await ids(fresh)
            assert found[-2:] == [str(infos[1].checkpoint_id), str(infos[0].checkpoint_id)]
            assert str(infos[2].checkpoint_id) not in found
            assert (await fresh.save(session, incremental=True)).parent != 3
    async with rig.checkpoints(bench.store, bench.drafts, keep=9) as fresh:
        await fresh.delete(str(infos[2].checkpoint_id))
        assert str(infos[2].checkpoint_id) not in await ids(fresh)
    left = await keys(bench.store, infos[2].checkpoint_id.key)
    assert left == []


async def test_an_exclusive_store_is_cleaned_at_the_start_and_a_shared_one_is_not(bench):
    half = "ses_" + "0" * 32 + "/0000000001/0000000001.tar.gz"
    await bench.store.put_bytes(half, b"begun by a worker that died, or by one that lives")
    session = await bench.rig.session()
    async with bench.rig.checkpoints(bench.store, bench.drafts) as shared:
        await shared.save(session)
        await shared.stock_taken()
        assert half in await keys(bench.store)
    async with bench.rig.checkpoints(bench.store, bench.drafts, exclusive=True) as alone:
        await alone.stock_taken()
        assert half not in await keys(bench.store)
        assert len(await ids(alone)) == 1


async def test_two_engines_on_one_store_do_not_disturb_each_other(bench, other, tmp_path):
    async with other.checkpoints(bench.store, tmp_path / "others") as theirs:
        mine, their = await bench.rig.session(), await other.session()
        await bench.rig.run(mine, FIRST)
        await other.run(their, FIRST)
        first = await bench.checkpoints.save(mine)
        await theirs.save(their)
        await bench.checkpoints.delete(str(first.checkpoint_id))
        last = [await bench.checkpoints.save(mine), await theirs.save(their, incremental=True)]
        assert {str(one.checkpoint_id) for one in last} <= set(await ids(theirs))
        assert len(await ids(bench.checkpoints)) == 3
        here = await bench.rig.content(bench.checkpoints, str(last[1].checkpoint_id), SEEN)
        there = await other.content(theirs, str(last[0].checkpoint_id), SEEN)
        assert here == there == FIRST_SEEN
        await other.engine.sessions.destroy(their, force=True)


async def test_artifacts_are_kept_read_in_parts_linked_listed_and_deleted(bench, tmp_path):
    keeper = ArtifactKeeper(
        bench.store,
        tmp_path / "uploads",
        find_session=bench.rig.engine.sessions.get,
        room=lambda: 1 << 40,
        config=ArtifactConfig(),
        clock=SystemClock(),
    )
    session = await bench.rig.session()
    data = os.urandom(300_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    async with keeper:
        info = await keeper.put(
            session_id=session,
            task_id="t",
            name="a b.bin",
            content_type="application/octet-stream",
            labels={"k": "v"},
            size_bytes=len(data),
            data=pieces(),
        )
        assert (info.size_bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        part = [piece async for piece in keeper.read(info.artifact_id, offset=10, length=20)]
        assert b"".join(part) == data[10:30]
        assert await keeper.list(session) == [info]
        assert await keeper.get(info.artifact_id) == info
        link = await keeper.download_link(info)
        assert bool(link) == (bench.store.name == "s3")
        if link:
            with urllib.request.urlopen(link, timeout=10) as answer:
                assert answer.read() == data
        saved = await bench.checkpoints.save(session)
        assert await ids(bench.checkpoints) == [str(saved.checkpoint_id)]
        assert await keeper.delete(info.artifact_id)
        with pytest.raises(NotFound):
            await keeper.get(info.artifact_id)
        assert await ids(bench.checkpoints) == [str(parse_checkpoint_id(str(saved.checkpoint_id)))]
