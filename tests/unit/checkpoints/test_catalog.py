"""What is in the store decides which checkpoints there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import Corrupt, NotFound
from codegen_mcp.engine.checkpoints.catalog import (
    ARCHIVE,
    INFO,
    JOURNAL,
    MANIFEST,
    TOMBSTONE,
    Catalog,
    parse_key,
)
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.stores.memory import MemoryStore

SESSION = "ses_" + "c" * 32
ONE = CheckpointId(SESSION, 1, 1)


def info(number: int = 1, **more: object) -> CheckpointInfo:
    one = CheckpointInfo(
        checkpoint_id=CheckpointId(SESSION, 1, number),
        chain=(number,),
        sha256="0" * 64,
        manifest_sha256="0" * 64,
    )
    return replace(one, **more)  # type: ignore[arg-type]


@given(
    st.integers(1, 9_999_999_999),
    st.integers(1, 9_999_999_999),
    st.sampled_from([ARCHIVE, MANIFEST, JOURNAL, INFO, TOMBSTONE]),
)
def test_keys_are_read_as_they_were_made(epoch: int, number: int, suffix: str) -> None:
    checkpoint_id = CheckpointId(SESSION, epoch, number)
    assert parse_key(checkpoint_id.key + suffix) == (checkpoint_id, suffix)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ONE.key,
        ONE.key + ".json.old",
        ONE.key + ".txt",
        f"{SESSION}/1/1.json",
        f"{SESSION}/0000000001/1.json",
        f"{SESSION}/0000000001/00000000001.json",
        f"{SESSION}/0000000001/-000000001.json",
        f"x/{ONE.key}.json",
        "artifacts/0000000001/0000000001.json",
    ],
)
def test_no_other_key_is_taken_for_one(key: str) -> None:
    assert parse_key(key) is None


async def test_only_what_has_metadata_exists_and_a_tombstone_hides_it() -> None:
    async with MemoryStore() as store:
        catalog = Catalog(store)
        await store.put_bytes(ONE.key + ARCHIVE, b"x")
        with pytest.raises(NotFound):
            await catalog.info(ONE)
        assert (await catalog.shelf(SESSION)).visible == []
        await store.put_bytes(ONE.key + INFO, encode_info(info()))
        assert await catalog.info(ONE) == info()
        assert (await catalog.shelf(SESSION)).visible == [ONE]
        await catalog.hide(ONE)
        await catalog.hide(ONE)
        with pytest.raises(NotFound) as refused:
            await catalog.info(ONE)
        assert refused.value.reason == "CHECKPOINT_NOT_FOUND"
        assert await catalog.info(ONE, hidden=True) == info()
        shelf = await catalog.shelf(SESSION)
        assert (shelf.visible, shelf.complete, shelf.newest) == ([], [ONE], 1)
        await catalog.unhide(ONE)
        assert await catalog.info(ONE) == info()


async def test_metadata_that_changed_in_the_store_is_read_anew() -> None:
    async with MemoryStore() as store:
        catalog = Catalog(store)
        await store.put_bytes(ONE.key + INFO, encode_info(info()))
        await catalog.info(ONE)
        await store.delete(ONE.key + INFO)
        await store.put_bytes(ONE.key + INFO, b"damaged")
        with pytest.raises(Corrupt):
            await catalog.info(ONE)


async def test_a_hidden_checkpoint_stays_hidden_while_it_is_removed() -> None:
    """Whoever is interrupted in between leaves nothing that can be seen."""
    suffixes = (ARCHIVE, MANIFEST, JOURNAL, INFO, TOMBSTONE)

    class Interrupted(MemoryStore):
        left = 0

        async def delete(self, key: str) -> bool:
            if not self.left:
                raise ConnectionError
            self.left -= 1
            return await super().delete(key)

    for left in range(len(suffixes)):
        async with Interrupted() as store:
            catalog = Catalog(store)
            for suffix in suffixes:
                await store.put_bytes(ONE.key + suffix, b"x")
            store.left = left
            with pytest.raises(ConnectionError):
                await catalog.remove(ONE, suffixes)
            assert (await catalog.shelf(SESSION)).visible == []
            store.left = 99
            await catalog.remove(ONE, suffixes)
            assert (await catalog.shelf(SESSION)).objects == {}


@pytest.mark.parametrize("what", ["manifest", "journal"])
async def test_objects_are_compared_with_the_metadata(what: str) -> None:
    async with MemoryStore() as store:
        catalog = Catalog(store)
        one = info(journal_sha256="0" * 64)
        read = catalog.manifest if what == "manifest" else catalog.journal
        with pytest.raises(NotFound) as missing:
            await read(one)
        assert missing.value.reason == "CHECKPOINT_INCOMPLETE"
        suffix = MANIFEST if what == "manifest" else JOURNAL
        await store.put_bytes(ONE.key + suffix, b"something else")
        with pytest.raises(Corrupt) as damaged:
            await read(one)
        assert damaged.value.reason == "CHECKPOINT_DAMAGED"
