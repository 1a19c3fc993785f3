"""An archive may be stored while its draft is still written, and leaves nothing if that fails."""

import asyncio
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Conflict
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, Catalog
from codegen_mcp.engine.checkpoints.publisher import Publisher
from codegen_mcp.engine.checkpoints.session_locks import SessionLocks
from codegen_mcp.engine.checkpoints.spool import Spool
from codegen_mcp.engine.owned_tasks import OwnedTasks
from codegen_mcp.stores.base import ObjectInfo
from codegen_mcp.stores.memory import MemoryStore
from codegen_mcp.testing.draft_rig import make_draft

CONTENTS = {b"workspace/a": b"one"}


class Counting(MemoryStore):
    """Counts how often each object is stored, and waits before it does where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def put_file(
        self, key: str, path: Path, *, sha256: str, given: bool = False
    ) -> ObjectInfo:
        self.puts.append(key)
        await self.gate.wait()
        return await super().put_file(key, path, sha256=sha256, given=given)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "drafts")
    made.open()
    return made


def publisher(store: MemoryStore, *, keeps: bool = False) -> Publisher:
    return Publisher(Catalog(store), OwnedTasks(), SessionLocks(), keeps=keeps)


async def keys(store: MemoryStore) -> list[str]:
    return [item.key async for item in store.list("")]


async def test_an_archive_that_was_begun_is_stored_once(spool: Spool) -> None:
    store = Counting()
    made = publisher(store)
    draft, info, manifest = make_draft(spool, CONTENTS)
    upload = made.begin(draft, info.checkpoint_id, info.sha256)
    assert upload is not None
    await made.publish(draft, info, manifest, upload=upload)
    assert [key for key in store.puts if key.endswith(ARCHIVE)] == [
        info.checkpoint_id.key + ARCHIVE
    ]


async def test_an_archive_that_was_begun_and_is_not_wanted_leaves_nothing(spool: Spool) -> None:
    store = Counting()
    draft, info, _ = make_draft(spool, CONTENTS)
    upload = publisher(store).begin(draft, info.checkpoint_id, info.sha256)
    assert upload is not None
    await upload.done()
    assert await keys(store) == [info.checkpoint_id.key + ARCHIVE]
    await upload.undo()
    assert await keys(store) == []


async def test_one_that_is_under_way_is_ended_and_leaves_nothing(spool: Spool) -> None:
    store = Counting()
    store.gate.clear()
    draft, info, _ = make_draft(spool, CONTENTS)
    upload = publisher(store).begin(draft, info.checkpoint_id, info.sha256)
    assert upload is not None
    await asyncio.sleep(0)
    await upload.undo()
    store.gate.set()
    assert await keys(store) == []


async def test_a_checkpoint_that_fails_after_its_archive_was_begun_leaves_nothing(
    spool: Spool,
) -> None:
    store = Counting()
    made = publisher(store)
    draft, info, manifest = make_draft(spool, CONTENTS)
    draft.manifest.write_bytes(b"other than announced")
    upload = made.begin(draft, info.checkpoint_id, info.sha256)
    with pytest.raises(Exception, match="nothing was stored"):
        await made.publish(draft, info, manifest, upload=upload)
    assert await keys(store) == []
    assert spool.numbers(info.checkpoint_id.session_id) == []


async def test_an_archive_of_another_worker_under_the_same_name_is_told(spool: Spool) -> None:
    store = Counting()
    made = publisher(store)
    draft, info, manifest = make_draft(spool, CONTENTS)
    await store.put_bytes(info.checkpoint_id.key + ARCHIVE, b"of somebody else")
    upload = made.begin(draft, info.checkpoint_id, info.sha256)
    with pytest.raises(Conflict):
        await made.publish(draft, info, manifest, upload=upload)


async def test_where_drafts_are_kept_nothing_is_stored_before_they_are_whole(spool: Spool) -> None:
    draft, info, _ = make_draft(spool, CONTENTS)
    assert publisher(Counting(), keeps=True).begin(draft, info.checkpoint_id, info.sha256) is None
