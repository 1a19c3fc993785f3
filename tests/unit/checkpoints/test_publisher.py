"""Drafts on their way into a store that fails at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import Conflict, Corrupt, NotFound, StoreUnavailable
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, INFO, Catalog
from codegen_mcp.engine.checkpoints.library import Library
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.publisher import ATTEMPTS, Publisher
from codegen_mcp.engine.checkpoints.retention import Retention
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.stores.base import ObjectStore
from codegen_mcp.testing.archive_rig import SESSION
from codegen_mcp.testing.draft_rig import FailingStore, make_draft

CONTENTS = {b"workspace/a": b"content", b"workspace/b": bytes(100_000)}
ID = f"{SESSION}.1.1"
CALLS = 10
"""More than one attempt at a draft makes none; a test shows that."""


class Away(Exception):
    """As if the worker was killed: nothing that comes after it is done."""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "drafts")
    made.open()
    return made


@asynccontextmanager
async def publisher(
    store: ObjectStore, *, keeps: bool = True, settled: list[CheckpointInfo] | None = None
) -> AsyncIterator[Publisher]:
    tasks = OwnedTasks()

    async def settle(info: CheckpointInfo) -> None:
        if settled is not None:
            settled.append(info)

    try:
        yield Publisher(
            Catalog(store), tasks, SessionLocks(), keeps=keeps, retry_s=(0.0,), settle=settle
        )
    finally:
        await tasks.aclose()


async def listed(store: ObjectStore, spool: Spool) -> list[str]:
    """What is listed; each is whole."""
    library = Library(Catalog(store), spool)
    assert [one.problem async for one in library.verify() if not one.ok] == []
    return [str(info.checkpoint_id) for info in await library.list()]


async def keys(store: ObjectStore) -> list[str]:
    return [item.key async for item in store.list("")]


async def test_a_published_draft_is_a_checkpoint_and_needed_no_more(spool):
    store = FailingStore()
    async with publisher(store) as made:
        draft, info, manifest = make_draft(spool, CONTENTS)
        await made.publish(draft, info, manifest)
        draft.remove()
        assert store.calls < CALLS
        assert await listed(store, spool) == [ID]
        assert made.waiting == 0


async def test_damage_of_a_hidden_checkpoint_is_told_only_while_another_needs_it(spool):
    store = FailingStore()
    async with publisher(store) as made:
        draft, info, manifest = make_draft(spool, CONTENTS)
        await made.publish(draft, info, manifest)
        draft.remove()
    catalog = Catalog(store)
    library = Library(catalog, spool)

    async def damaged() -> list[str]:
        return [str(one.checkpoint_id) async for one in library.verify() if not one.ok]

    await store.delete(info.checkpoint_id.key + ARCHIVE)
    assert await damaged() == [ID]
    await catalog.hide(info.checkpoint_id)
    assert await damaged() == []  # it is being deleted, piece by piece
    second = replace(info, checkpoint_id=replace(info.checkpoint_id, number=2), chain=(1, 2))
    await store.put_bytes(second.checkpoint_id.key + INFO, encode_info(second))
    assert ID in await damaged()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", range(CALLS))
async def test_a_failure_at_any_call_delays_and_loses_nothing(spool, call, late):
    store, settled = FailingStore(), []
    async with publisher(store, settled=settled) as made:
        draft, info, manifest = make_draft(spool, CONTENTS)
        store.fail_at(call, late=late)
        try:
            await made.publish(draft, info, manifest)
            draft.remove()
            assert store.failures
        except StoreUnavailable as error:
            assert error.reason == "CHECKPOINT_NOT_STORED"  # noqa: PT017 - or it is stored
            assert spool.numbers(SESSION) == [1]
            assert made.needed(SESSION) == {info.checkpoint_id}
            await made.stored()
            assert settled == [info]
        store.failures.clear()
        assert await listed(store, spool) == [ID]
        assert made.waiting == 0
    assert spool.open() == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", range(CALLS))
async def test_a_worker_that_ends_at_any_call_leaves_a_draft_that_the_next_one_stores(
    spool, call, late, monkeypatch
):
    store = FailingStore()
    async with publisher(store) as made:
        draft, info, manifest = make_draft(spool, CONTENTS)
        store.fail_at(call, late=late, error=Away())
        with monkeypatch.context() as dead:
            dead.setattr(type(draft), "remove", lambda _: None)
            try:
                await made.publish(draft, info, manifest)
            except Away:
                assert await listed(store, spool) in ([], [ID])
    store.failures.clear()
    async with publisher(store) as restarted:
        for checkpoint_id, waiting in spool.open():
            await restarted.resume(checkpoint_id, waiting)
        await restarted.stored()
    assert await listed(store, spool) == [ID]
    assert spool.open() == []


@pytest.mark.parametrize("call", range(CALLS))
async def test_where_drafts_are_not_kept_a_failure_leaves_nothing(spool, call):
    store = FailingStore()
    async with publisher(store, keeps=False) as made:
        store.fail_at(call)
        try:
            await made.publish(*make_draft(spool, CONTENTS))
            assert store.failures
        except StoreUnavailable as error:
            assert error.reason == "STORE_UNAVAILABLE"  # noqa: PT017 - or it is stored
            assert await listed(store, spool) in ([], [ID])
            assert await listed(store, spool) or await keys(store) == []
    assert spool.open() == []


async def test_another_workers_checkpoint_of_the_same_number_is_never_replaced(spool):
    store = FailingStore()
    async with publisher(store) as made:
        await made.publish(*make_draft(spool, CONTENTS))
        before = {key: b"".join([p async for p in store.get(key)]) for key in await keys(store)}
        for contents in ({b"workspace/a": b"other"}, {**CONTENTS, b"workspace/a": b"CONTENT"}):
            with pytest.raises((Conflict, Corrupt)):
                await made.publish(*make_draft(spool, contents))
        assert {k: b"".join([p async for p in store.get(k)]) for k in await keys(store)} == before
        assert spool.open() == []


async def test_a_draft_that_cannot_be_stored_is_given_up_and_stays(spool):
    store = FailingStore()
    draft, _, _ = make_draft(spool, CONTENTS)
    draft.make_ready()
    draft.archive.write_bytes(b"damaged on the disk")
    async with publisher(store) as made:
        for checkpoint_id, waiting in spool.open():
            await made.resume(checkpoint_id, waiting)
        await made.stored()
        assert made.waiting == 1
        assert store.calls >= ATTEMPTS
    assert await keys(store) == []
    assert spool.numbers(SESSION) == [1]


async def test_a_draft_with_damaged_facts_stays_and_disturbs_nobody(spool):
    for number in (1, 2):
        draft, _, _ = make_draft(spool, CONTENTS, number)
        draft.make_ready()
        if number == 1:
            draft.info.write_bytes(b"{")
    store = FailingStore()
    async with publisher(store) as made:
        for checkpoint_id, waiting in spool.open():
            await made.resume(checkpoint_id, waiting)
        await made.stored()
    assert await listed(store, spool) == [f"{SESSION}.1.2"]
    assert spool.numbers(SESSION) == [1]


async def test_a_checkpoint_whose_chain_is_gone_is_not_listed(spool):
    store = FailingStore()
    draft, info, _ = make_draft(spool, CONTENTS, 2)
    draft.info.write_bytes(encode_info(replace(info, chain=(1, 2), parent=1)))
    draft.make_ready()
    async with publisher(store) as made:
        await made.resume(info.checkpoint_id, draft)
        await made.stored()
        assert made.waiting == 1
    assert await keys(store) == []


async def test_closing_leaves_what_waits_on_the_disk(spool):
    store = FailingStore()
    draft, info, manifest = make_draft(spool, CONTENTS)
    async with publisher(store) as made:
        away = StoreUnavailable("the store is away")
        with pytest.raises(StoreUnavailable, match="away"):
            await made.publish(draft, info, manifest, away=away)
        assert store.calls == 0
    assert [one.checkpoint_id for one in [info]] == [one for one, _ in spool.open()]


def test_what_is_half_made_goes_at_the_start_and_what_is_whole_stays(spool, tmp_path):
    whole, _, _ = make_draft(spool, CONTENTS, 3)
    whole.make_ready()
    make_draft(spool, CONTENTS, 4)
    root = tmp_path / "drafts"
    (root / ".scratch-1-abc").write_bytes(b"left")
    (root / "import-abc").mkdir()
    (root / "import-abc" / "part").write_bytes(b"left")
    found = spool.open()
    assert [str(checkpoint_id) for checkpoint_id, _ in found] == [f"{SESSION}.1.3"]
    assert [path.name for path in root.iterdir()] == [f"{SESSION}.1.3"]
    assert found[0][1] == whole


@pytest.mark.parametrize("exclusive", [False, True])
async def test_the_number_of_a_deleted_checkpoint_is_kept_though_a_later_attempt_is_cleaned_away(
    spool, exclusive
):
    store = FailingStore()
    catalog = Catalog(store)
    retention = Retention(catalog, keep=10, waiting=lambda _: ())
    async with publisher(store) as made:
        _, info, _ = draft = make_draft(spool, CONTENTS, 4)
        await made.publish(*draft)
    await store.put_bytes(f"{SESSION}/0000000001/0000000005.tar.gz", b"begun")
    await catalog.hide(info.checkpoint_id)
    await retention.sweep(SESSION)
    await retention.clean(SESSION, await catalog.shelf(SESSION))
    assert await keys(store) == [info.checkpoint_id.key + ".deleted"]
    assert (await catalog.shelf(SESSION)).newest == 4


async def test_cleaning_spares_what_is_on_its_way(spool):
    store = FailingStore()
    catalog = Catalog(store)
    _, info, _ = make_draft(spool, CONTENTS, 1)
    await store.put_bytes(info.checkpoint_id.key + ".tar.gz", b"begun")
    await store.put_bytes(f"{SESSION}/0000000001/0000000002.tar.gz", b"begun")
    retention = Retention(catalog, keep=1, waiting=lambda _: {info.checkpoint_id})
    await retention.clean(SESSION, await catalog.shelf(SESSION))
    assert await keys(store) == [info.checkpoint_id.key + ".tar.gz"]
    with pytest.raises(NotFound):
        await catalog.info(info.checkpoint_id)


async def test_uploads_that_wait_take_turns(spool):
    """A worker that starts with many drafts has only few of them in memory."""

    class Slow(FailingStore):
        at_once = most = puts = most_puts = 0

        async def put_file(self, key, path, *, sha256, given=False):
            self.at_once += key.endswith(ARCHIVE)
            self.puts += 1
            self.most, self.most_puts = max(self.most, self.at_once), max(self.most_puts, self.puts)
            try:
                await asyncio.sleep(0)
                return await super().put_file(key, path, sha256=sha256, given=given)
            finally:
                self.at_once -= key.endswith(ARCHIVE)
                self.puts -= 1

    store = Slow()
    for number in range(1, 9):
        make_draft(spool, CONTENTS, number)[0].make_ready()
    async with publisher(store) as made:
        for checkpoint_id, waiting in spool.open():
            await made.resume(checkpoint_id, waiting)
        await made.stored()
    assert len(await listed(store, spool)) == 8
    assert store.most <= 2
    assert store.most_puts <= 2 * 3  # archive, manifest and journal of each
