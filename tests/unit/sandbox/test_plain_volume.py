"""The watched directory: what is counted, when a writer must be stopped, what is promised."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import GIB, MIB
from codegen_mcp.sandbox.volumes.plain import PlainDriver, PlainVolume, disk_usage
from codegen_mcp.sandbox.volumes.records import RECORD
from codegen_mcp.sandbox.volumes.space import VolumeConfig, free_on

SIZE = 2 * MIB


@pytest.fixture
def driver(tmp_path: Path) -> PlainDriver:
    return PlainDriver(VolumeConfig(state_directory=tmp_path, reserve_bytes=0))


@pytest.fixture
async def volume(driver: PlainDriver, tmp_path: Path) -> AsyncIterator[PlainVolume]:
    slot = tmp_path / "slot"
    slot.mkdir()
    made = await driver.create(slot, SIZE, None)
    yield made
    await made.detach()


async def until(volume: PlainVolume, *, exceeded: bool) -> None:
    async with asyncio.timeout(10):
        while volume.usage().exceeded is not exceeded:
            await asyncio.sleep(0.01)


async def test_a_writer_above_the_size_must_be_stopped_until_it_rests(
    volume: PlainVolume,
) -> None:
    assert not volume.usage().exceeded
    (volume.root / "workspace" / "big").write_bytes(b"x" * (3 * MIB))
    await until(volume, exceeded=True)
    await until(volume, exceeded=False)  # nothing grows any more: a run that cleans up may go on
    assert volume.usage().full
    (volume.root / "workspace" / "big").unlink()
    async with asyncio.timeout(10):
        while volume.usage().full:
            await asyncio.sleep(0.01)


async def test_no_depth_of_directories_hides_a_file(tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(1500):  # far beyond what a path may be long
        os.mkdir("d" * 8, dir_fd=descriptor)
        below = os.open("d" * 8, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("hidden", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.write(file, b"x" * MIB)
    os.close(file)
    os.close(descriptor)
    found = await disk_usage(top)
    assert found is not None
    assert found > MIB
    removal = await asyncio.create_subprocess_exec("rm", "-rf", str(top))
    assert await removal.wait() == 0


async def test_links_count_once_and_holes_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * MIB)
    os.link(tmp_path / "file", tmp_path / "again")
    (tmp_path / "away").symlink_to("/usr")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(GIB)
    found = await disk_usage(tmp_path)
    assert found is not None
    assert MIB <= found < 2 * MIB


async def test_a_count_that_is_cancelled_ends_its_program(tmp_path: Path) -> None:
    counting = asyncio.ensure_future(disk_usage(Path("/usr")))
    await asyncio.sleep(0.01)
    counting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await counting


async def test_what_vanished_is_not_counted(tmp_path: Path) -> None:
    assert await disk_usage(tmp_path / "gone") is None


async def test_what_is_promised_and_unused_cannot_be_promised_again(
    driver: PlainDriver, tmp_path: Path
) -> None:
    half = free_on(tmp_path) * 6 // 10
    slots = [tmp_path / "first", tmp_path / "second"]
    for slot in slots:
        slot.mkdir()
    first = await driver.create(slots[0], half, None)
    try:
        with pytest.raises(Full):
            await driver.create(slots[1], half, None)
    finally:
        await first.detach()


async def test_overcommit_promises_it_all_the_same(tmp_path: Path) -> None:
    config = VolumeConfig(state_directory=tmp_path, reserve_bytes=0, overcommit=True)
    driver = PlainDriver(config)
    slot = tmp_path / "slot"
    slot.mkdir()
    volume = await driver.create(slot, free_on(tmp_path) * 2, None)
    await volume.detach()


async def test_a_record_of_a_newer_version_is_refused_by_name(
    driver: PlainDriver, volume: PlainVolume, tmp_path: Path
) -> None:
    await volume.detach()
    record = tmp_path / "slot" / RECORD
    record.write_text(json.dumps({"format": 2, "kind": "plain", "size_bytes": 1}))
    with pytest.raises(Corrupt, match="format 2"):
        await driver.adopt(tmp_path / "slot", None)


async def test_a_volume_that_is_there_is_never_overwritten(
    driver: PlainDriver, volume: PlainVolume, tmp_path: Path
) -> None:
    (volume.root / "workspace" / "kept").touch()
    with pytest.raises(FileExistsError):
        await driver.create(tmp_path / "slot", SIZE, None)
    assert (volume.root / "workspace" / "kept").exists()
    assert driver.free_bytes() > 0


async def test_an_overcommitted_host_that_runs_low_stops_writers(tmp_path: Path) -> None:
    enough = VolumeConfig(state_directory=tmp_path, reserve_bytes=0, overcommit=True)
    low = VolumeConfig(state_directory=tmp_path, reserve_bytes=free_on(tmp_path) * 2)
    overcommitted = dataclasses.replace(low, overcommit=True)
    (tmp_path / "volume").mkdir()
    for config, expected in ((enough, False), (low, False), (overcommitted, True)):
        usage = PlainVolume(tmp_path, SIZE, config).usage()
        assert (usage.exceeded, usage.full) == (expected, expected)


def test_a_negative_reserve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reserve_bytes=-1"):
        VolumeConfig(state_directory=tmp_path, reserve_bytes=-1)
