"""What every kind of volume promises."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, Full
from codegen_mcp.core.limits import GIB, MIB
from codegen_mcp.sandbox.base import HostIdentity
from codegen_mcp.sandbox.volumes import loop
from codegen_mcp.sandbox.volumes.base import Volume, VolumeDriver
from codegen_mcp.sandbox.volumes.loop import LoopDriver
from codegen_mcp.sandbox.volumes.plain import PlainDriver
from codegen_mcp.sandbox.volumes.registry import KINDS, Volumes
from codegen_mcp.sandbox.volumes.space import VolumeConfig, free_on
from codegen_mcp.testing.kernel_objects import kernel_objects, nothing_left
from codegen_mcp.testing.tree_facts import tree_facts
from codegen_mcp.testing.volume_ground import cases, ground_directory, why_not

SIZE = 16 * MIB
ROOT_USER = os.geteuid() == 0
IDENTITY = HostIdentity(uid=200_001, gid=200_001) if ROOT_USER else None
OTHER = HostIdentity(uid=200_002, gid=200_002) if ROOT_USER else None
WITHIN_S = 10.0
_refused: dict[tuple[str, str], str] = {}
"""Why a kind cannot be had on its ground, asked once."""


@pytest.fixture(params=cases(), ids=lambda case: ":".join(filter(None, case)))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
def state(case: tuple[str, str], tmp_path: Path) -> Iterator[Path]:
    with ground_directory(case[1], tmp_path) as ground:
        directory = ground / "state"
        directory.mkdir()
        with nothing_left(ground):
            yield directory
        shutil.rmtree(directory)  # reserved images are too large to be kept for a look


@pytest.fixture
async def driver(case: tuple[str, str], state: Path) -> VolumeDriver:
    config = VolumeConfig(state_directory=state, reserve_bytes=0)
    if case not in _refused:
        _refused[case] = await why_not(case[0], config)
    if _refused[case]:
        pytest.skip(_refused[case])
    return KINDS[case[0]].driver(config)


@pytest.fixture
async def volume(driver: VolumeDriver, state: Path) -> AsyncIterator[Volume]:
    slot = state / "slot"
    slot.mkdir()
    made = await driver.create(slot, SIZE, IDENTITY)
    yield made
    await made.detach()


async def until_full(volume: Volume) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not volume.usage().full:
            await asyncio.sleep(0.01)


def write(path: Path, count: int) -> int:
    """Write until refused; how much was taken."""
    written = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while written < count:
                written += file.write(b"x" * min(MIB, count - written))
        except OSError:
            pass
    return written


async def test_it_holds_a_workspace_and_an_environment_of_the_session_s_user(
    volume: Volume,
) -> None:
    assert volume.root.name == "volume"
    assert volume.root.stat().st_mode & 0o777 == 0o711
    for part in ("workspace", "venv"):
        found = (volume.root / part).stat()
        assert found.st_mode & 0o777 == 0o700
        if IDENTITY:
            assert (found.st_uid, found.st_gid) == (IDENTITY.uid, IDENTITY.gid)


async def test_all_that_was_promised_can_be_written(volume: Volume) -> None:
    usage = volume.usage()
    assert usage.size_bytes == SIZE
    assert not usage.full
    assert write(volume.root / "workspace" / "big", SIZE) == SIZE


async def test_usage_follows_what_is_written(volume: Volume) -> None:
    write(volume.root / "workspace" / "some", 5 * MIB)
    async with asyncio.timeout(WITHIN_S):
        while not 5 * MIB <= volume.usage().used_bytes < 7 * MIB:
            await asyncio.sleep(0.01)


async def test_more_than_was_promised_makes_it_full_until_files_are_deleted(
    volume: Volume,
) -> None:
    path = volume.root / "workspace" / "big"
    write(path, 2 * SIZE)
    await until_full(volume)
    path.unlink()
    async with asyncio.timeout(WITHIN_S):
        while volume.usage().full:
            await asyncio.sleep(0.01)


async def test_it_follows_a_renamed_slot_while_files_are_open(volume: Volume, state: Path) -> None:
    with open(volume.root / "workspace" / "log", "wb", buffering=0) as file:
        file.write(b"before ")
        (state / "slot").rename(state / "session")
        volume.moved(state / "session")
        file.write(b"after")
    assert volume.root == state / "session" / "volume"
    assert (volume.root / "workspace" / "log").read_bytes() == b"before after"
    assert volume.usage().size_bytes == SIZE


async def test_detaching_twice_is_fine_and_usage_still_answers(volume: Volume) -> None:
    await volume.detach()
    await volume.detach()
    assert volume.usage().size_bytes == SIZE


async def test_an_adopted_one_has_its_files_and_its_size(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    content = os.urandom(100_000)
    (volume.root / "workspace" / "data").write_bytes(content)
    await volume.detach()
    (state / "slot").rename(state / "session")
    adopted = await driver.adopt(state / "session", IDENTITY)
    try:
        assert (adopted.root / "workspace" / "data").read_bytes() == content
        assert adopted.usage().size_bytes == SIZE
    finally:
        await adopted.detach()


async def test_adoption_finds_the_kind_that_lies_there(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    await volume.detach()
    others = Volumes("plain", VolumeConfig(state_directory=state, reserve_bytes=0))
    adopted = await others.adopt(state / "slot", IDENTITY)
    assert type(adopted) is type(volume)
    await adopted.detach()


async def test_an_empty_directory_cannot_be_adopted(driver: VolumeDriver, state: Path) -> None:
    with pytest.raises(Corrupt):
        await driver.adopt(state, IDENTITY)
    with pytest.raises(Corrupt, match="holds no volume"):
        await Volumes("plain", VolumeConfig(state_directory=state)).adopt(state, IDENTITY)


async def test_one_without_its_workspace_cannot_be_adopted(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    (volume.root / "workspace").rmdir()
    await volume.detach()
    with pytest.raises(Corrupt, match="workspace"):
        await driver.adopt(state / "slot", IDENTITY)


async def test_more_than_the_host_has_is_refused_with_a_hint_when_to_retry(
    driver: VolumeDriver, state: Path
) -> None:
    slot = state / "greedy"
    slot.mkdir()
    with pytest.raises(Full) as caught:
        await driver.create(slot, free_on(state) + GIB, IDENTITY)
    assert caught.value.retry_after_s
    assert caught.value.reason == "DISK_FULL"
    assert list(slot.iterdir()) == []


async def test_promises_take_from_the_room_before_anything_is_written(
    driver: VolumeDriver, state: Path
) -> None:
    slot = state / "large"
    slot.mkdir()
    before = driver.free_bytes()
    volume = await driver.create(slot, min(2 * GIB, before // 2), IDENTITY)
    try:
        # Other tests write to the same file system meanwhile.
        assert before - driver.free_bytes() > min(GIB, before // 4)
    finally:
        await volume.detach()


async def test_a_create_that_is_cancelled_leaves_nothing(driver: VolumeDriver, state: Path) -> None:
    slot = state / "cancelled"
    slot.mkdir()
    for delay in (0, 0.001, 0.002, 0.003):
        creating = asyncio.ensure_future(driver.create(slot, SIZE, IDENTITY))
        await asyncio.sleep(delay)
        creating.cancel()
        try:
            made = await creating
        except asyncio.CancelledError:
            assert list(slot.iterdir()) == []
            assert kernel_objects(slot) == []
        else:
            await made.detach()
            return


async def test_many_at_once_are_kept_apart(driver: VolumeDriver, state: Path) -> None:
    slots = [state / f"slot-{number}" for number in range(8)]
    for slot in slots:
        slot.mkdir()
    volumes = await asyncio.gather(*(driver.create(slot, SIZE, IDENTITY) for slot in slots))
    try:
        for number, volume in enumerate(volumes):
            (volume.root / "workspace" / "mine").write_bytes(b"%d" % number * 1000)
        for number, volume in enumerate(volumes):
            found = (volume.root / "workspace" / "mine").read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(b"%d" % number * 1000).digest()
    finally:
        for volume in volumes:
            await volume.detach()


def make_content(volume: Volume) -> None:
    workspace = volume.root / "workspace"
    for number in range(40):
        (workspace / f"d{number % 4}").mkdir(exist_ok=True)
        (workspace / f"d{number % 4}" / str(number)).write_bytes(os.urandom(number * 997))
    os.link(workspace / "d1" / "5", workspace / "d2" / "linked")
    os.symlink("/etc", workspace / "link")
    os.mkfifo(workspace / "fifo")
    (workspace / "set-id").write_bytes(b"x")
    (volume.root / "venv" / "bin").mkdir()
    (volume.root / "venv" / "bin" / "python").write_bytes(b"program")
    for path in (workspace, *workspace.rglob("*"), *(volume.root / "venv").rglob("*")):
        if IDENTITY:
            os.chown(path, IDENTITY.uid, IDENTITY.gid, follow_symlinks=False)
    (workspace / "set-id").chmod(0o4755)


def facts(volume: Volume) -> list[object]:
    return [tree_facts(volume.root / part) for part in ("workspace", "venv")]


def owners(volume: Volume) -> set[tuple[int, int]]:
    paths = [volume.root / part for part in ("workspace", "venv")]
    found = [path.lstat() for part in paths for path in (part, *part.rglob("*"))]
    return {(one.st_uid, one.st_gid) for one in found}


@asynccontextmanager
async def clone_of(driver: VolumeDriver, source: Volume, directory: Path) -> AsyncIterator[Volume]:
    directory.mkdir()
    volume = await driver.clone(source, directory, SIZE, OTHER)
    try:
        yield volume
    finally:
        await volume.detach()


async def test_a_clone_has_the_same_content_and_belongs_to_another_user(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    before = facts(volume)
    async with clone_of(driver, volume, state / "clone") as clone:
        assert facts(clone) == before == facts(volume)
        assert clone.usage().size_bytes == SIZE
        assert clone.root.stat().st_mode & 0o777 == 0o711
        if IDENTITY and OTHER:
            assert owners(clone) == {(OTHER.uid, OTHER.gid)}
            assert owners(volume) == {(IDENTITY.uid, IDENTITY.gid)}
        assert {path.name for path in clone.root.iterdir()} == {
            path.name for path in volume.root.iterdir()
        }


async def test_neither_sees_what_is_written_to_the_other(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    shared = volume.root / "workspace" / "shared"
    shared.write_bytes(b"common" * 10_000)
    async with clone_of(driver, volume, state / "clone") as clone:
        copied = clone.root / "workspace" / "shared"
        copied.write_bytes(b"theirs" * 10_000)
        (clone.root / "workspace" / "new").touch()
        assert shared.read_bytes() == b"common" * 10_000
        shared.write_bytes(b"mine!!" * 10_000)
        (volume.root / "venv" / "new").touch()
        os.sync()
        assert copied.read_bytes() == b"theirs" * 10_000
        assert os.listdir(clone.root / "venv") == []
        assert os.listdir(volume.root / "workspace") == ["shared"]


async def test_a_clone_outlives_its_source_and_a_remount(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    before = facts(volume)
    async with clone_of(driver, volume, state / "clone") as clone:
        await volume.detach()
        shutil.rmtree(state / "slot")
        assert facts(clone) == before
    adopted = await driver.adopt(state / "clone", OTHER)
    try:
        assert facts(adopted) == before
        assert adopted.usage().size_bytes == SIZE
    finally:
        await adopted.detach()


async def test_a_clone_has_the_size_of_its_own(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    write(volume.root / "workspace" / "some", 6 * MIB)
    async with clone_of(driver, volume, state / "clone") as clone:
        await asyncio.sleep(0)  # a watcher begins with what is free before the writes below
        assert write(clone.root / "workspace" / "rest", 9 * MIB) == 9 * MIB
        assert not clone.usage().full
        write(clone.root / "workspace" / "more", SIZE)
        await until_full(clone)
        assert not volume.usage().full


async def test_a_volume_that_is_nearly_full_can_be_cloned(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    path = volume.root / "workspace" / "big"
    assert write(path, SIZE - MIB) == SIZE - MIB
    async with clone_of(driver, volume, state / "clone") as clone:
        copied = clone.root / "workspace" / "big"
        assert copied.stat().st_size == SIZE - MIB
        assert copied.read_bytes() == path.read_bytes()


async def test_eight_clones_at_once_are_equal_and_kept_apart(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    before = facts(volume)
    async with AsyncExitStack() as stack:
        clones = await asyncio.gather(
            *(
                stack.enter_async_context(clone_of(driver, volume, state / f"clone-{number}"))
                for number in range(8)
            )
        )
        for number, clone in enumerate(clones):
            assert facts(clone) == before
            (clone.root / "workspace" / "mine").write_text(str(number))
        for number, clone in enumerate(clones):
            assert (clone.root / "workspace" / "mine").read_text() == str(number)


async def test_a_clone_of_a_clone_is_one_too(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    async with clone_of(driver, volume, state / "clone") as clone:
        (clone.root / "workspace" / "later").write_bytes(b"x" * 100_000)
        async with clone_of(driver, clone, state / "grandchild") as grandchild:
            assert facts(grandchild) == facts(clone)


async def test_a_clone_of_another_kind_has_the_same_content(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    config = VolumeConfig(state_directory=state, reserve_bytes=0)
    if driver.name != "plain":
        other: VolumeDriver = PlainDriver(config)
    elif reason := await loop.probe(config):
        pytest.skip(reason)
    else:
        other = LoopDriver(config)
    async with clone_of(other, volume, state / "clone") as clone:
        assert type(clone) is not type(volume)
        assert facts(clone) == facts(volume)


async def test_a_clone_for_which_there_is_no_room_leaves_nothing(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    slot = state / "clone"
    slot.mkdir()
    greedy = free_on(state) + GIB
    with pytest.raises(Full) as caught:
        await driver.clone(volume, slot, greedy, OTHER)
    assert caught.value.reason == "DISK_FULL"
    assert list(slot.iterdir()) == []
    assert driver.footprint(greedy) >= greedy


async def test_a_clone_that_is_cancelled_leaves_nothing(
    driver: VolumeDriver, volume: Volume, state: Path
) -> None:
    make_content(volume)
    write(volume.root / "workspace" / "big", 8 * MIB)
    before = facts(volume)
    slot = state / "clone"
    slot.mkdir()
    cancelled = 0
    for delay in (0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.04, 0.08):
        cloning = asyncio.ensure_future(driver.clone(volume, slot, SIZE, OTHER))
        await asyncio.sleep(delay)
        cloning.cancel()
        try:
            made = await cloning
        except asyncio.CancelledError:
            cancelled += 1
            assert list(slot.iterdir()) == []
            assert kernel_objects(slot) == []
        else:
            await made.detach()
            break
    assert cancelled
    assert facts(volume) == before
