"""What a new checkpoint would build on is looked at, and read again where it changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from codegen_mcp.core.checkpoint import CheckpointId, CheckpointInfo
from codegen_mcp.core.errors import Corrupt, NotFound
from codegen_mcp.engine.checkpoints.catalog import ARCHIVE, INFO, Catalog
from codegen_mcp.engine.checkpoints.metadata import encode_info
from codegen_mcp.engine.checkpoints.sound_chains import SoundChains
from codegen_mcp.stores.local import LocalStore

SESSION = "ses_" + "e" * 32
DATA = b"archive"


def info(*chain: int) -> CheckpointInfo:
    return CheckpointInfo(
        checkpoint_id=CheckpointId(SESSION, 1, chain[-1]),
        chain=chain,
        size_bytes=len(DATA),
        sha256=hashlib.sha256(DATA).hexdigest(),
        manifest_sha256="0" * 64,
    )


class Counting(Catalog):
    """Counts the archives that are read."""

    read = 0

    def archive(self, checkpoint_id: CheckpointId):  # type: ignore[no-untyped-def]
        self.read += 1
        return super().archive(checkpoint_id)


async def put(store: LocalStore, one: CheckpointInfo) -> None:
    await store.put_bytes(one.checkpoint_id.key + ARCHIVE, DATA)
    await store.put_bytes(one.checkpoint_id.key + INFO, encode_info(one))


def archive(root: Path, number: int) -> Path:
    return root / (CheckpointId(SESSION, 1, number).key + ARCHIVE)


async def test_what_was_just_stored_is_not_read_again(tmp_path: Path) -> None:
    async with LocalStore(tmp_path) as store:
        catalog = Counting(store)
        chains = SoundChains(catalog, remote=False)
        await put(store, info(1))
        await chains.note(info(1))
        await chains.check(info(1))
        assert catalog.read == 0


async def test_what_is_not_known_is_read_once(tmp_path: Path) -> None:
    async with LocalStore(tmp_path) as store:
        catalog = Counting(store)
        chains = SoundChains(catalog, remote=False)
        for one in (info(1), info(1, 2)):
            await put(store, one)
        for _ in range(3):
            await chains.check(info(1, 2))
        assert catalog.read == 2


@pytest.mark.parametrize("changed", [b"Archive", b"archiv", b""])
async def test_an_archive_that_changed_is_damaged(tmp_path: Path, changed: bytes) -> None:
    async with LocalStore(tmp_path) as store:
        chains = SoundChains(Catalog(store), remote=False)
        for one in (info(1), info(1, 2)):
            await put(store, one)
        await chains.check(info(1, 2))
        archive(tmp_path, 1).write_bytes(changed)
        for _ in range(2):
            with pytest.raises(Corrupt):
                await chains.check(info(1, 2))


async def test_what_is_missing_is_told(tmp_path: Path) -> None:
    async with LocalStore(tmp_path) as store:
        chains = SoundChains(Catalog(store), remote=False)
        for one in (info(1), info(1, 2)):
            await put(store, one)
        archive(tmp_path, 1).unlink()
        with pytest.raises(NotFound) as missing:
            await chains.check(info(1, 2))
        assert missing.value.reason == "CHECKPOINT_INCOMPLETE"


async def test_beyond_a_network_only_sizes_are_looked_at(tmp_path: Path) -> None:
    async with LocalStore(tmp_path) as store:
        catalog = Counting(store)
        chains = SoundChains(catalog, remote=True)
        await put(store, info(1))
        await chains.check(info(1))
        assert catalog.read == 0
        archive(tmp_path, 1).write_bytes(b"short")
        with pytest.raises(Corrupt):
            await chains.check(info(1))
