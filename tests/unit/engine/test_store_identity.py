"""The id that lies in a store of checkpoints."""

from __future__ import annotations

import asyncio

import pytest

from codegen_mcp.engine.store_identity import KEY, StoreIdentity
from codegen_mcp.stores.memory import MemoryStore

pytestmark = pytest.mark.asyncio


async def test_all_who_ask_of_one_store_read_one_id_and_another_store_has_another():
    async with MemoryStore() as store, MemoryStore() as other:
        found = await asyncio.gather(*(StoreIdentity(store).get() for _ in range(8)))
        assert len(set(found)) == 1
        assert await StoreIdentity(store).get() == found[0]
        assert await StoreIdentity(other).get() != found[0]
        assert [item.key async for item in store.list("")] == [KEY]
