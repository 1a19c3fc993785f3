"""A checkpoint's bytes are put back into real sandboxes, as the session's user."""

import asyncio
import contextlib
import gzip
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from codegen_mcp.core.errors import Corrupt, LimitExceeded, SandboxUnavailable
from codegen_mcp.core.limits import GIB, MIB, ResourceLimits, RunLimits
from codegen_mcp.engine.checkpoints.refill import RefillReport, refill
from codegen_mcp.engine.checkpoints.refill_feed import ArchiveSource
from codegen_mcp.engine.checkpoints.tree_compare import check_volume
from codegen_mcp.sandbox import registry
from codegen_mcp.sandbox.selftest.bed import Bed, Place
from codegen_mcp.sandbox.volumes.registry import Volumes
from codegen_mcp.testing.refill_rig import Saved, in_pieces, make_volume, save
from codegen_mcp.testing.sandbox_child import run_as
from codegen_mcp.testing.sandbox_ground import Ground, prepared_ground
from codegen_mcp.testing.sandbox_rig import Rig, alive, eventually

NAMES = [name for name in registry.BACKENDS if name != "process-bare"]
LIMITS = ResourceLimits(memory_bytes=256 * MIB, disk_bytes=64 * MIB, file_size_bytes=2 * GIB)
HOLES_BYTES = GIB if os.environ.get("CODEGEN_TEST_SOAK") else 256 * MIB
RUN = RunLimits(timeout_s=60, output_bytes=MIB)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with prepared_ground() as prepared:
        yield prepared


@asynccontextmanager
async def open_rig(ground: Ground, name: str) -> AsyncIterator[Rig]:
    with ground.config() as config:
        backend = registry.create(name, config)
        probe = await backend.probe()
        if not probe.available:
            pytest.skip(probe.reason)
        async with Rig(backend, config, ground.identities) as rig:
            yield rig


def make_source(directory: Path) -> Path:
    """A tree with what a session may have, as its user would make it."""
    root = make_volume(directory)
    work = os.fsencode(root / "workspace")
    for name in (b"new\nline", b"\xff\xfe", b"x" * 255, "ü😀".encode()):
        with open(work + b"/" + name, "wb") as file:
            file.write(name * 100)
    for mode in (0o000, 0o444, 0o4711, 0o2755, 0o1777, 0o2070):
        inner = root / f"venv/{mode:o}/in"
        inner.mkdir(parents=True)
        (inner / "file").write_bytes(b"x" * mode)
        (inner / "file").chmod(mode)
        inner.parent.chmod(mode)
    os.symlink("/nowhere", root / "workspace/link")
    os.utime(root / "workspace/link", ns=(-1, -1), follow_symlinks=False)
    os.link(root / "venv/444/in/file", root / "venv/hard")
    os.mkfifo(root / "workspace/pipe")
    (root / "workspace/zero").touch()
    (root / "workspace/empty").mkdir()
    os.utime(root / "workspace/empty", ns=(1, 2_000_000_003))
    fd = os.open(root / "workspace", os.O_RDONLY)
    for _ in range(18):
        os.mkdir("deep" * 60, dir_fd=fd)
        below = os.open("deep" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    return root


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    root = make_source(tmp_path_factory.mktemp("source") / "volume")
    yield save(root)
    subprocess.run(["rm", "-rf", root], check=True)


async def do(
    place: Place, saved: Saved, archives: list[ArchiveSource] | None = None
) -> RefillReport:
    return await refill(
        place.sandbox,
        manifest=saved.manifest,
        manifest_lines=saved.lines,
        archives=saved.sources() if archives is None else archives,
        limits=RUN,
        python=place.spec.interpreter.executable,
        root=place.spec.volume.root,
    )


@pytest.mark.parametrize("name", NAMES)
async def test_a_session_gets_everything_back_and_owns_it(
    ground: Ground, saved: Saved, name: str
) -> None:
    async with open_rig(ground, name) as rig:
        place = await rig.place(LIMITS)
        await rig.run(place, "import os; os.makedirs('old/er'); os.chmod('old', 0)")
        report = await do(place, saved)
        root = place.spec.volume.root
        if name == "gvisor":  # it keeps FIFOs to itself: stated, and told by name
            with pytest.raises(Corrupt, match="pipe' is missing"):
                check_volume(root, saved.manifest.entries)
            return
        check_volume(root, saved.manifest.entries)
        assert report.names == len(saved.manifest.entries)
        if place.spec.identity is not None:
            owners = {os.lstat(path).st_uid for path in (root / "workspace").iterdir()}
            assert owners == {place.spec.identity.uid}
        ran = await rig.run(place, "print(open(b'\\xff\\xfe', 'rb').read() == b'\\xff\\xfe' * 100)")
        assert ran.stdout == b"True\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests above ran as an ordinary user")
@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_user_gets_everything_back(ground: Ground, name: str) -> None:
    done = run_as(ground, ["refill", name])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    if "unavailable" in answer:
        pytest.skip(answer["unavailable"])
    assert answer == {"problem": "'venv/pipe' is missing" if name == "gvisor" else ""}


async def test_a_long_file_of_holes_stays_holes(ground: Ground, tmp_path: Path) -> None:
    root = make_volume(tmp_path / "volume")
    with open(root / "workspace/sparse", "wb") as file:
        file.truncate(HOLES_BYTES)
        file.seek(HOLES_BYTES // 2)
        file.write(b"x" * 4096)
    saved = save(root)
    assert len(saved.tar) < 64 * 1024
    async with open_rig(ground, "bubblewrap") as rig:
        place = await rig.place(LIMITS)
        report = await do(place, saved)
        check_volume(place.spec.volume.root, saved.manifest.entries)
        found = os.stat(place.spec.volume.root / "workspace/sparse")
        assert (found.st_size, found.st_blocks <= 64) == (HOLES_BYTES, True)
        assert report.total_bytes == HOLES_BYTES


async def test_hostile_archives_end_in_an_error_and_touch_nothing(
    ground: Ground, saved: Saved, tmp_path: Path
) -> None:
    """What passes the inflater is refused by the program; the sandbox serves on."""
    root = make_volume(tmp_path / "volume")
    (root / "workspace/a").write_text("content")
    small = save(root)
    hostile = {
        "member is not in": small.tar.replace(b"workspace/a\0", b"workspace/b\0"),
        "sha256": small.tar.replace(b"content", b"CONTENT"),
        "checksum": small.tar.replace(b"0000644\0", b"0004755\0"),
        "end of": small.tar[:-1024],
        "bytes after": small.tar + b"x" * 512,
    }
    tar = hostile["member is not in"]
    at = tar.index(b"workspace/b")
    header = bytearray(tar[at : at + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    hostile["member is not in"] = tar[:at] + bytes(header) + tar[at + 512 :]
    async with open_rig(ground, "bubblewrap") as rig:
        place = await rig.place(LIMITS)
        before = sorted(os.listdir(place.spec.volume.root.parent))
        for words, data in hostile.items():
            pieces = in_pieces(gzip.compress(data))
            archives = [ArchiveSource(number=1, inflated_bytes=len(data), pieces=pieces)]
            with pytest.raises(Corrupt, match=words):
                await do(place, small, archives)
            assert sorted(os.listdir(place.spec.volume.root.parent)) == before
        await do(place, small)
        check_volume(place.spec.volume.root, small.manifest.entries)


async def test_names_of_one_file_in_both_trees_need_a_sandbox_without_mounts(
    ground: Ground, tmp_path: Path
) -> None:
    root = make_volume(tmp_path / "volume")
    (root / "workspace/one").touch()
    os.link(root / "workspace/one", root / "venv/two")
    saved = save(root)
    async with open_rig(ground, "process-hardened") as rig:
        place = await rig.place(LIMITS)
        await do(place, saved)
        check_volume(place.spec.volume.root, saved.manifest.entries)
    async with open_rig(ground, "bubblewrap") as rig:
        place = await rig.place(LIMITS)
        with pytest.raises(SandboxUnavailable, match=r"both workspace and venv.*venv/two"):
            await do(place, saved)


async def test_a_checkpoint_that_does_not_fit_is_a_limit_of_the_disk(
    ground: Ground, tmp_path: Path
) -> None:
    root = make_volume(tmp_path / "volume")
    for number in range(6):
        (root / f"workspace/{number}").write_bytes(os.urandom(4 * MIB))
    saved = save(root)
    with ground.config(volume="loop") as config:
        assert isinstance(config.volumes, Volumes)
        try:
            backend = registry.create("bubblewrap", config)
            async with Bed(backend, config) as bed:
                limits = replace(LIMITS, disk_bytes=16 * MIB)
                place = await bed.place(config.identity, limits)
                with pytest.raises(LimitExceeded) as caught:
                    await do(place, saved)
        except SandboxUnavailable as error:
            pytest.skip(error.message)
    assert caught.value.metadata == {"ended_by": "disk"}


def programs(place: Place) -> list[int]:
    """Host pids of the refill's program."""
    found = []
    for pid in place.sandbox.processes():
        with contextlib.suppress(OSError):
            if b"refill_guest" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def test_a_cancelled_refill_leaves_no_process_and_a_sandbox_that_serves(
    ground: Ground, saved: Saved
) -> None:
    half = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield saved.archive[: len(saved.archive) // 2]
        half.set()
        await asyncio.Event().wait()

    async with open_rig(ground, "bubblewrap") as rig:
        place = await rig.place(LIMITS)
        await rig.run(place, "pass")
        archives = [
            ArchiveSource(number=1, inflated_bytes=len(saved.tar), pieces=stalled()),
        ]
        task = asyncio.ensure_future(do(place, saved, archives))
        async with asyncio.timeout(5):
            await half.wait()
        await eventually(lambda: bool(programs(place)), "the program runs")
        running = programs(place)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(alive(pid) for pid in running)
        assert not programs(place)
        await do(place, saved)
        check_volume(place.spec.volume.root, saved.manifest.entries)
