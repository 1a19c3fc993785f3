"""Whatever is saved and deleted, what is listed can be restored and nothing else is kept."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, INFO, MANIFEST, TOMBSTONE, Catalog
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.retention import Retention
from codegen_mcp.engine.checkpoints.sound_chains import SoundChains
from codegen_mcp.stores.memory import MemoryStore

SESSION = "ses_" + "d" * 32
DATA = b"the bytes"

STEPS = st.lists(
    st.one_of(
        st.just(("full",)),
        st.tuples(st.just("on top"), st.sets(st.integers(0, 5), max_size=3)),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.just(("die",)),
    ),
    max_size=30,
)


class Session:
    """Checkpoints of one session without bytes that mean anything."""

    def __init__(self, store: MemoryStore, keep: int) -> None:
        self.store = store
        self.catalog = Catalog(store)
        self.retention = Retention(self.catalog, keep=keep, waiting=lambda _: ())
        self.model: list[int] = []
        self.chains: dict[int, tuple[int, ...]] = {}
        self.keep = keep
        self.issued = 0

    async def save(self, needed: tuple[int, ...]) -> None:
        shelf = await self.catalog.shelf(SESSION)
        await self.retention.clean(SESSION, shelf)
        number = max(shelf.newest, self.issued) + 1
        assert number not in self.chains  # never used twice
        await self.begin(number)
        info = CheckpointInfo(
            checkpoint_id=CheckpointId(SESSION, 1, number),
            chain=(*needed, number),
            size_bytes=len(DATA),
            sha256=hashlib.sha256(DATA).hexdigest(),
            manifest_sha256="0" * 64,
        )
        await self.store.put_bytes(info.checkpoint_id.key + INFO, encode_info(info))
        self.chains[number] = tuple(info.chain)
        self.model = [*self.model, number][-self.keep :]
        shelf = await self.catalog.shelf(SESSION)
        if await self.retention.retire(shelf):
            await self.retention.sweep(SESSION, shelf)

    async def begin(self, number: int) -> None:
        key = CheckpointId(SESSION, 1, number).key
        for suffix in (ARCHIVE, MANIFEST):
            await self.store.put_bytes(key + suffix, DATA)

    async def delete(self, number: int) -> None:
        await self.catalog.hide(CheckpointId(SESSION, 1, number))
        await self.retention.sweep(SESSION)
        self.model.remove(number)

    async def check(self) -> None:
        shelf = await self.catalog.shelf(SESSION)
        assert [one.number for one in shelf.visible] == self.model
        chains = SoundChains(self.catalog, remote=False)
        for one in shelf.visible:
            await chains.check(await self.catalog.info(one))
        needed = {number for one in self.model for number in self.chains[one]}
        assert {one.number for one in shelf.complete} == needed
        for one, suffixes in shelf.objects.items():
            assert (suffixes == {TOMBSTONE}) == (one.number not in needed), (one, suffixes)
        alone = [one.number for one in shelf.objects if one.number not in needed]
        assert alone in ([], [max(self.chains, default=0)])


@given(st.integers(1, 5), STEPS)
@settings(deadline=None)
async def test_what_is_listed_has_its_whole_chain_and_nothing_else_is_kept(
    keep: int, steps: list[tuple[object, ...]]
) -> None:
    async with MemoryStore() as store:
        session = Session(store, keep)
        for name, *arguments in steps:
            if name == "delete" and session.model:
                at = arguments[0]
                assert isinstance(at, int)
                await session.delete(session.model[at % len(session.model)])
            elif name == "die":
                # Half-written, by a worker that was killed; the next save clears it away.
                session.issued = (await session.catalog.shelf(SESSION)).newest + 1
                await session.begin(session.issued)
                await session.retention.clean(SESSION, await session.catalog.shelf(SESSION))
            elif name == "on top" and session.model:
                chain = session.chains[session.model[-1]]
                picked = arguments[0]
                assert isinstance(picked, set)
                await session.save(tuple(n for i, n in enumerate(chain) if i in picked))
            elif name == "full":
                await session.save(())
            await session.check()


async def test_what_damaged_metadata_may_need_stays() -> None:
    async with MemoryStore() as store:
        session = Session(store, 2)
        await session.save(())
        await session.save((1,))
        await session.save((1, 2))
        key = CheckpointId(SESSION, 1, 3).key + INFO
        await store.delete(key)
        await store.put_bytes(key, b"damaged")
        session.catalog = Catalog(store)
        retention = Retention(session.catalog, keep=2, waiting=lambda _: ())
        await session.catalog.hide(CheckpointId(SESSION, 1, 2))
        await retention.sweep(SESSION)
        assert {one.number for one in (await session.catalog.shelf(SESSION)).complete} == {1, 2, 3}
        await session.catalog.hide(CheckpointId(SESSION, 1, 3))
        await retention.sweep(SESSION)
        assert (await session.catalog.shelf(SESSION)).complete == []


async def test_what_waits_for_the_store_keeps_what_it_needs() -> None:
    async with MemoryStore() as store:
        session = Session(store, 1)
        first = CheckpointId(SESSION, 1, 1)
        await session.save(())
        retention = Retention(session.catalog, keep=1, waiting=lambda _: {first})
        await session.catalog.hide(first)
        await retention.sweep(SESSION)
        assert (await session.catalog.shelf(SESSION)).complete == [first]
