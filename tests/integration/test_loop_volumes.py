"""Image volumes where the host fills up, the worker dies, or an image is damaged."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import KIB, MIB
from codegen_mcp.sandbox import loop_device
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.loop_device import devices_below
from codegen_mcp.sandbox.mounts import read_mounts
from codegen_mcp.sandbox.volumes import loop
from codegen_mcp.sandbox.volumes.image import ImageTemplates, find_tool, image_bytes
from codegen_mcp.sandbox.volumes.image_clone import clone_image
from codegen_mcp.sandbox.volumes.layout import ROOT
from codegen_mcp.sandbox.volumes.loop import IMAGE, LoopDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig, free_on
from codegen_mcp.testing.kernel_objects import kernel_objects, nothing_left
from codegen_mcp.testing.small_host import fill, small_host

IDENTITY = HostIdentity(uid=200_001, gid=200_001)
OTHER = HostIdentity(uid=200_002, gid=200_002)
SIZE = 16 * MIB


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with nothing_left(tmp_path):
        yield tmp_path
    shutil.rmtree(tmp_path)  # reserved images are too large to be kept for a look


@pytest.fixture
async def driver(home: Path) -> LoopDriver:
    config = VolumeConfig(state_directory=home, reserve_bytes=0)
    if reason := await loop.probe(config):
        pytest.skip(reason)
    return LoopDriver(config)


@pytest.fixture
def slot(home: Path) -> Path:
    directory = home / "slot"
    directory.mkdir()
    return directory


def written_bytes(image: Path) -> int:
    """What is really stored of an image, without what is only reserved."""
    descriptor = os.open(image, os.O_RDONLY)
    try:
        total = offset = 0
        while True:
            try:
                start = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:
                return total
            offset = os.lseek(descriptor, start, os.SEEK_HOLE)
            total += offset - start
    finally:
        os.close(descriptor)


def make_files(directory: Path, count: int) -> None:
    for number in range(count):
        (directory / str(number)).touch()


def check_image(image: Path) -> str:
    tool = find_tool("e2fsck")
    done = subprocess.run([tool, "-fn", str(image)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout


async def test_a_host_that_fills_up_takes_nothing_that_was_acknowledged(
    driver: LoopDriver, home: Path
) -> None:
    with small_host(home, 64 * MIB) as host:
        small = LoopDriver(VolumeConfig(state_directory=host, reserve_bytes=0))
        slot = host / "slot"
        slot.mkdir()
        volume = await small.create(slot, SIZE, IDENTITY)
        workspace = volume.root / "workspace"
        filler = threading.Thread(target=fill, args=(host,))
        acknowledged: dict[str, bytes] = {}
        filler.start()
        for number in range(14):
            content = os.urandom(4096) * 256
            name = f"file-{number}"
            with open(workspace / name, "wb") as file:
                file.write(content)
                file.flush()
                if number % 2:
                    os.fsync(file.fileno())
            acknowledged[name] = content
        filler.join()
        assert free_on(host) < 64 * KIB
        (workspace / "after").write_bytes(b"the host is full now" * 50_000)
        acknowledged["after"] = b"the host is full now" * 50_000
        os.sync()
        await volume.detach()
        assert check_image(slot / IMAGE) == ""
        adopted = await small.adopt(slot, IDENTITY)
        try:
            for name, content in acknowledged.items():
                assert (adopted.root / "workspace" / name).read_bytes() == content
        finally:
            await adopted.detach()


async def test_a_host_without_room_refuses_and_keeps_nothing(
    driver: LoopDriver, home: Path
) -> None:
    with small_host(home, 64 * MIB) as host:
        small = LoopDriver(VolumeConfig(state_directory=host, reserve_bytes=0))
        fill(host, leave_bytes=20 * MIB)
        slot = host / "slot"
        slot.mkdir()
        with pytest.raises(Full):
            await small.create(slot, SIZE, IDENTITY)
        assert list(slot.iterdir()) == []


async def test_overcommit_promises_more_and_stops_writers_before_the_host_is_full(
    driver: LoopDriver, home: Path
) -> None:
    with small_host(home, 64 * MIB) as host:
        config = VolumeConfig(state_directory=host, reserve_bytes=16 * MIB, overcommit=True)
        small = LoopDriver(config)
        slot = host / "slot"
        slot.mkdir()
        volume = await small.create(slot, 256 * MIB, IDENTITY)
        with open(volume.root / "workspace" / "big", "wb", buffering=0) as file:
            while not volume.usage().exceeded:
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        assert volume.usage().full
        assert 12 * MIB < free_on(host) < 16 * MIB
        await volume.detach()


async def test_an_idle_volume_of_a_gigabyte_occupies_little(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, 1024 * MIB, IDENTITY)
    os.sync()
    await volume.detach()
    assert written_bytes(slot / IMAGE) <= 512 * KIB
    assert (slot / IMAGE).stat().st_blocks * 512 >= 1024 * MIB


async def test_running_out_of_inodes_counts_as_full(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, 8 * MIB, IDENTITY)
    workspace = volume.root / "workspace"
    try:
        with pytest.raises(OSError, match="No space left"):
            make_files(workspace, 100_000)
        assert volume.usage().full
    finally:
        await volume.detach()


async def test_nothing_of_a_session_s_is_a_device_or_setuid(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    try:
        flags = os.statvfs(volume.root).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert (slot / IMAGE).stat().st_mode & 0o777 == 0o600
    finally:
        await volume.detach()


async def test_a_volume_that_is_there_is_never_overwritten(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    try:
        (volume.root / "workspace" / "kept").touch()
        with pytest.raises(FileExistsError):
            await driver.create(slot, SIZE, IDENTITY)
        assert (volume.root / "workspace" / "kept").exists()
    finally:
        await volume.detach()


async def test_an_image_that_a_device_still_has_is_not_attached_twice(
    driver: LoopDriver, slot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    try:
        with (
            pytest.raises(BlockingIOError),
            loop_device.attached(slot / IMAGE, wait_s=0.05),
        ):
            pass
    finally:
        await volume.detach()


async def test_what_a_killed_worker_had_written_is_adopted_from_its_own_namespace(
    driver: LoopDriver, home: Path, slot: Path
) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from codegen_mcp.sandbox.mounts import enter_private_namespace
from codegen_mcp.sandbox.volumes.loop import LoopDriver
from codegen_mcp.sandbox.volumes.space import VolumeConfig

enter_private_namespace()

async def main():
    home, slot = Path({str(home)!r}), Path({str(slot)!r})
    driver = LoopDriver(VolumeConfig(state_directory=home, reserve_bytes=0))
    volume = await driver.create(slot, {SIZE}, None)
    with open(volume.root / "workspace" / "data", "wb") as file:
        file.write(b"kept" * 1000)
        file.flush()
        os.fsync(file.fileno())
    (volume.root / "workspace" / "later").write_bytes(b"also kept")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    worker = subprocess.run([sys.executable, "-c", script], check=False)
    assert worker.returncode == -9
    assert not any(line.startswith("mount") for line in kernel_objects(home))
    adopted = await driver.adopt(slot, IDENTITY)
    try:
        assert (adopted.root / "workspace" / "data").read_bytes() == b"kept" * 1000
        assert (adopted.root / "workspace" / "later").read_bytes() == b"also kept"
    finally:
        await adopted.detach()


async def test_noted_damage_is_repaired_at_adoption(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    (volume.root / "workspace" / "data").write_bytes(b"kept")
    await volume.detach()
    # What the kernel does when it meets an inconsistency: set the error flag of the superblock.
    debugfs = find_tool("debugfs")
    command = [debugfs, "-w", "-R", "set_super_value state 2", str(slot / IMAGE)]
    subprocess.run(command, check=True, capture_output=True)
    adopted = await driver.adopt(slot, IDENTITY)
    try:
        assert (adopted.root / "workspace" / "data").read_bytes() == b"kept"
    finally:
        await adopted.detach()
    with open(slot / IMAGE, "rb") as file:
        file.seek(1024 + 0x3A)
        assert struct.unpack("<H", file.read(2)) == (1,)


async def test_garbage_in_place_of_an_image_is_corrupt(driver: LoopDriver, slot: Path) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    await volume.detach()
    with open(slot / IMAGE, "r+b") as file:
        file.write(os.urandom(64 * KIB))
    with pytest.raises(Corrupt):
        await driver.adopt(slot, IDENTITY)


async def test_a_broken_superblock_under_a_whole_label_is_corrupt(
    driver: LoopDriver, slot: Path
) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    await volume.detach()
    with open(slot / IMAGE, "r+b") as file:
        file.seek(1024 + 0x38)
        file.write(b"\0\0")  # the magic number
    with pytest.raises(Corrupt, match="cannot be attached"):
        await driver.adopt(slot, IDENTITY)


def test_templates_are_made_once_for_each_size_and_few_are_kept(home: Path) -> None:
    templates = ImageTemplates(home / "templates")
    first = templates.get(SIZE)
    made_at = first.stat().st_ctime_ns
    inode = first.stat().st_ino
    assert templates.get(SIZE).stat().st_ino == inode
    assert first.stat().st_size == image_bytes(SIZE)
    assert first.stat().st_ctime_ns >= made_at
    for extra in range(1, 20):
        templates.get(SIZE + extra * MIB)
    assert len(list((home / "templates").iterdir())) == 16


async def test_two_workers_never_get_the_same_device(driver: LoopDriver, home: Path) -> None:
    slots = [home / f"many-{number}" for number in range(12)]
    for slot in slots:
        slot.mkdir()
    other = LoopDriver(VolumeConfig(state_directory=home, reserve_bytes=0))
    volumes = await asyncio.gather(
        *(
            (driver if number % 2 else other).create(slot, SIZE, IDENTITY)
            for number, slot in enumerate(slots)
        )
    )
    try:
        assert len(loop_device.devices_below(home)) == len(slots)
    finally:
        for volume in volumes:
            await volume.detach()


async def test_a_clone_is_reserved_in_full_and_copies_only_what_was_written(
    driver: LoopDriver, home: Path, slot: Path
) -> None:
    volume = await driver.create(slot, 256 * MIB, IDENTITY)
    (volume.root / "workspace" / "data").write_bytes(os.urandom(MIB))
    (slot / IMAGE).read_bytes()  # what is only reserved is in the page cache now, as zeros
    clone_slot = home / "clone"
    clone_slot.mkdir()
    clone = await driver.clone(volume, clone_slot, 256 * MIB, OTHER)
    try:
        image = (clone_slot / IMAGE).stat()
        assert image.st_size == image_bytes(256 * MIB)
        assert image.st_blocks * 512 >= image.st_size
    finally:
        await clone.detach()
        await volume.detach()
    assert written_bytes(clone_slot / IMAGE) < 8 * MIB


async def test_a_clone_soon_does_direct_io_and_obeys_barriers(
    driver: LoopDriver, home: Path, slot: Path
) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    clone_slot = home / "clone"
    clone_slot.mkdir()
    clone = await driver.clone(volume, clone_slot, SIZE, OTHER)
    clone_slot.rename(home / "renamed")
    clone.moved(home / "renamed")
    try:
        devices = {path.parent.name: number for number, path in devices_below(home)}
        kept, made = (
            Path(f"/sys/block/loop{devices[name]}/loop/dio") for name in ("slot", "renamed")
        )
        async with asyncio.timeout(10):
            while made.read_text() != kept.read_text() or "nobarrier" in options(clone.root):
                await asyncio.sleep(0.01)
        assert options(clone.root) == options(volume.root)
    finally:
        await clone.detach()
        await volume.detach()


def options(root: Path) -> frozenset[str]:
    (entry,) = [entry for entry in read_mounts() if entry.mount_point == root.resolve()]
    return entry.options | entry.super_options


async def test_a_clone_where_disk_is_overcommitted_is_independent_too(
    driver: LoopDriver, home: Path, slot: Path
) -> None:
    lavish = LoopDriver(VolumeConfig(state_directory=home, reserve_bytes=0, overcommit=True))
    volume = await lavish.create(slot, SIZE, IDENTITY)
    (volume.root / "workspace" / "data").write_bytes(b"before" * 100_000)
    clone_slot = home / "clone"
    clone_slot.mkdir()
    clone = await lavish.clone(volume, clone_slot, SIZE, OTHER)
    try:
        (volume.root / "workspace" / "data").write_bytes(b"parent" * 100_000)
        os.sync()
        assert (clone.root / "workspace" / "data").read_bytes() == b"before" * 100_000
        image = (clone_slot / IMAGE).stat()
        assert image.st_blocks * 512 < image.st_size
    finally:
        await clone.detach()
        await volume.detach()
    assert check_image(clone_slot / IMAGE) == ""


async def test_a_volume_that_is_written_to_all_the_time_is_cloned_name_by_name(
    driver: LoopDriver, home: Path, slot: Path
) -> None:
    volume = await driver.create(slot, SIZE, IDENTITY)
    (volume.root / "workspace" / "data").write_bytes(b"kept" * 10_000)
    stop = threading.Event()

    def scribble() -> None:
        flags = os.O_TMPFILE | os.O_RDWR
        descriptor = os.open(volume.root / "workspace", flags)
        while not stop.is_set():
            os.pwrite(descriptor, os.urandom(4096), 0)
            os.fsync(descriptor)
        os.close(descriptor)

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    clone_slot = home / "clone"
    clone_slot.mkdir()
    try:
        assert not await asyncio.to_thread(clone_by_image, slot, home / "copy.img")
        clone = await driver.clone(volume, clone_slot, SIZE, OTHER)
    finally:
        stop.set()
        scribbler.join()
    assert clone_by_image(slot, home / "copy.img")
    try:
        assert os.listdir(clone.root / "workspace") == ["data"]
        assert (clone.root / "workspace" / "data").read_bytes() == b"kept" * 10_000
        assert (clone.root / "workspace" / "data").stat().st_uid == OTHER.uid
    finally:
        await clone.detach()
        await volume.detach()


def clone_by_image(slot: Path, target: Path) -> bool:
    root = os.open(slot / ROOT, os.O_RDONLY)
    copy = os.open(target, os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(copy, (slot / IMAGE).stat().st_size)
        return clone_image(root, slot / IMAGE, copy, shared=False, stop=threading.Event())
    finally:
        os.close(copy)
        os.close(root)
