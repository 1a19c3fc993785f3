"""Reading a checkpoint's whole chain before anything of it is used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import CheckpointInfo
from codegen_mcp.core.errors import Corrupt, NotFound, StoreUnavailable, WorkerError
from codegen_mcp.engine.checkpoints.catalog import Catalog
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.restorer import Restorer, Verified
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.testing.draft_rig import FailingStore, make_draft

CONTENTS = {b"workspace/a": os.urandom(3_000_000), b"workspace/b": b"b"}
CALLS = 5
"""More than reading a chain of one makes none; a test shows that."""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "drafts")
    made.open()
    return made


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


async def stored(store: FailingStore, spool: Spool, **changes: object) -> CheckpointInfo:
    draft, info, _ = make_draft(spool, CONTENTS)
    info = replace(info, **changes)
    key = info.checkpoint_id.key
    for suffix, path in (
        (".tar.gz", draft.archive),
        (".manifest.gz", draft.manifest),
        (".journal.gz", draft.journal),
    ):
        await store.put_bytes(key + suffix, path.read_bytes())
    await store.put_bytes(key + ".json", encode_info(info))
    draft.remove()
    store.calls = 0
    return info


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def check_refused(
    store: FailingStore, spool: Spool, info: CheckpointInfo, error: type[WorkerError]
) -> WorkerError:
    """Both ways of reading are refused, and leave no file behind."""
    for copies in (False, True):
        before = descriptors()
        with pytest.raises(error) as refused:
            await Restorer(Catalog(store), spool, copies=copies).verify(info)
        assert descriptors() == before
    assert spool.open() == []
    return refused.value


async def test_over_a_network_an_archive_is_read_only_once(store, spool):
    info = await stored(store, spool)
    verified = await Restorer(Catalog(store), spool, copies=True).verify(info)
    try:
        assert isinstance(verified, Verified)
        assert store.calls < CALLS
        await store.delete(info.checkpoint_id.key + ".tar.gz")
        size = os.fstat(verified.links[0].copy).st_size
        assert size == info.size_bytes
    finally:
        verified.close()


@pytest.mark.parametrize("suffix", [".tar.gz", ".manifest.gz", ".journal.gz"])
async def test_a_part_that_is_damaged_or_missing_is_told(store, spool, suffix):
    info = await stored(store, spool)
    key = info.checkpoint_id.key + suffix
    whole = b"".join([piece async for piece in store.get(key)])
    for damaged in (whole[:-1], whole + b"x", b"", bytes([whole[0] ^ 1]) + whole[1:]):
        await store.delete(key)
        await store.put_bytes(key, damaged)
        error = await check_refused(store, spool, info, Corrupt)
        assert error.reason == "CHECKPOINT_DAMAGED"
        assert str(info.checkpoint_id) in error.message
    await store.delete(key)
    error = await check_refused(store, spool, info, NotFound)
    assert error.reason == "CHECKPOINT_INCOMPLETE"


async def test_a_link_of_the_chain_that_is_gone_is_told(store, spool):
    info = await stored(store, spool)
    info = replace(info, checkpoint_id=replace(info.checkpoint_id, number=1), chain=(9, 1))
    error = await check_refused(store, spool, info, NotFound)
    assert error.reason == "CHECKPOINT_INCOMPLETE"
    assert ".1.9" in error.message


async def test_a_manifest_that_needs_other_archives_than_the_chain_names_is_damaged(store, spool):
    info = replace(await stored(store, spool), chain=(2,))
    error = await check_refused(store, spool, info, Corrupt)
    assert "chain" in error.message


@pytest.mark.parametrize("call", range(CALLS - 1))
async def test_a_store_that_fails_meanwhile_leaves_nothing(store, spool, call):
    info = await stored(store, spool)
    before = descriptors()
    for late in (False, True):
        store.fail_at(call, late=late)
        with pytest.raises(StoreUnavailable):
            await Restorer(Catalog(store), spool, copies=True).verify(info)
    assert descriptors() == before
    assert spool.open() == []
