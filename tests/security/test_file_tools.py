"""What hostile code may leave lying in its workspace, against the worker's own file access."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from codegen_mcp.core.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PathEscape,
    WorkerError,
    WrongState,
)
from codegen_mcp.engine.workspace import SessionWorkspace
from codegen_mcp.sandbox.base import HostIdentity

AS_ROOT = os.geteuid() == 0
UID = 200_322
needs_root = pytest.mark.skipif(not AS_ROOT, reason="making this trap takes root")
MIB = 1024 * 1024


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("the secret of the host")
    return secret


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[SessionWorkspace]:
    root = tmp_path / "workspace"
    root.mkdir()
    if AS_ROOT:
        os.chown(root, UID, UID)
    workspace = SessionWorkspace(root, HostIdentity(uid=UID, gid=UID) if AS_ROOT else None)
    yield workspace
    await workspace.aclose()


async def write(workspace: SessionWorkspace, path: str, data: bytes = b"x") -> None:
    await workspace.write(path, data, create_dirs=True, mode=None)


LINKS = {
    "absolute": ["{secret}/file"],
    "relative": ["../secret/file"],
    "through the parent's parent": ["../../../../../../../../..{secret}/file"],
    "through a directory of the workspace": ["real/../../secret/file"],
    "chain": ["second", "third", "../secret/file"],
    "chain through a directory": ["real/up/secret/file"],
    "magic root": ["/proc/self/root{secret}/file"],
    "magic cwd": ["/proc/self/cwd/pyproject.toml"],
    "magic descriptor": ["/proc/self/fd/0"],
    "loop": ["link"],
    "two that point at each other": ["second", "link"],
}


@pytest.mark.parametrize("kind", LINKS)
async def test_a_planted_link_out_is_refused_by_every_call(
    workspace: SessionWorkspace, secret: Path, kind: str
) -> None:
    (workspace.root / "real").mkdir()
    (workspace.root / "real/up").symlink_to("../..")
    for name, target in zip(("link", "second", "third"), LINKS[kind], strict=False):
        (workspace.root / name).symlink_to(target.format(secret=secret))

    for call in (
        workspace.read("link", 0, 100),
        workspace.sha256("link"),
        anext(workspace.read_chunks("link", 100)),
        workspace.list("link", recursive=True, pattern="", limit=10),
        workspace.stat("link/below"),
        workspace.write("link", b"changed", create_dirs=True, mode=0o777),
        workspace.write("link/below", b"changed", create_dirs=True, mode=None),
        workspace.make_dir("link/below"),
    ):
        with pytest.raises(PathEscape):
            await call

    assert (await workspace.stat("link")).kind == "symlink"
    assert (secret / "file").read_text() == "the secret of the host"
    assert await workspace.delete("link", recursive=True) == 1
    assert os.listdir(secret) == ["file"]


async def test_a_tree_with_links_out_is_deleted_without_what_they_point_to(
    workspace: SessionWorkspace, secret: Path
) -> None:
    (workspace.root / "d/e").mkdir(parents=True)
    (workspace.root / "d/dir").symlink_to(secret)
    (workspace.root / "d/e/file").symlink_to(secret / "file")
    assert await workspace.delete("d", recursive=True) == 4
    assert os.listdir(secret) == ["file"]


async def special(workspace: SessionWorkspace) -> AsyncIterator[str]:
    os.mkfifo(workspace.root / "fifo")
    yield "fifo"
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(workspace.root)  # the name of a socket is at most 108 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        listener.listen()
        yield "socket"
    if AS_ROOT:
        os.mknod(workspace.root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        yield "null"
        os.mknod(workspace.root / "disk", 0o666 | stat.S_IFBLK, os.makedev(7, 0))
        yield "disk"


async def test_a_fifo_socket_or_device_is_refused_at_once(workspace: SessionWorkspace) -> None:
    async for name in special(workspace):
        started = time.monotonic()
        for call in (
            workspace.read(name, 0, 10),
            workspace.sha256(name),
            anext(workspace.read_chunks(name, 10)),
            workspace.write(name, b"x", create_dirs=False, mode=None),
            workspace.list(name, recursive=False, pattern="", limit=1),
            workspace.read(name + "/below", 0, 10),
        ):
            with pytest.raises(WrongState):
                await call
        assert time.monotonic() - started < 1
        assert (await workspace.stat(name)).kind in ("fifo", "socket", "device")
        await workspace.move(name, "moved", overwrite=False)
        assert await workspace.delete("moved", recursive=False) == 1


async def test_a_writer_that_waits_in_a_fifo_is_not_let_go(workspace: SessionWorkspace) -> None:
    fifo = workspace.root / "fifo"
    os.mkfifo(fifo)
    code = f"print(flush=True); open({str(fifo)!r}, 'w'); print('let go', flush=True)"
    writer = subprocess.Popen([sys.executable, "-Sc", code], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        await until(lambda: sleeps(writer.pid))
        for _ in range(20):
            with pytest.raises(WrongState):
                await workspace.read("fifo", 0, 1)
        os.set_blocking(writer.stdout.fileno(), False)
        assert writer.stdout.read() is None
    finally:
        writer.kill()
        writer.communicate()


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def until(condition: object, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_lease_on_a_file_does_not_make_the_worker_wait(workspace: SessionWorkspace) -> None:
    path = workspace.root / "leased"
    path.write_text("old")
    code = (
        "import fcntl, os, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        f"fd = os.open({str(path)!r}, os.O_RDWR)\n"
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-Sc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        started = time.monotonic()
        with pytest.raises(Conflict, match="try again"):
            await workspace.read("leased", 0, 10)
        assert (await workspace.stat("leased")).size == 3
        await write(workspace, "leased", b"new")
        assert time.monotonic() - started < 1
        assert await workspace.read("leased", 0, 10) == (b"new", 3)
    finally:
        holder.communicate(b"")


async def test_a_file_that_grows_while_it_is_read_ends_where_it_ended(
    workspace: SessionWorkspace,
) -> None:
    with open(workspace.root / "f", "wb") as file:
        file.write(b"x" * 2 * MIB)
        file.flush()
        growing = threading.Event()

        def grow() -> None:
            while not growing.wait(0.0001):
                file.write(b"y" * 65536)
                file.flush()
                if file.tell() > 64 * MIB:
                    file.truncate(0)
                    file.seek(0)

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            for _ in range(20):
                data, size = await workspace.read("f", 0, 64 * MIB)
                assert len(data) <= size
        finally:
            growing.set()
            thread.join()


@needs_root
async def test_a_hard_link_to_a_file_of_somebody_else_is_not_read(
    workspace: SessionWorkspace, secret: Path
) -> None:
    os.link(secret / "file", workspace.root / "hard")
    for call in (
        workspace.read("hard", 0, 10),
        workspace.sha256("hard"),
        workspace.write("hard", b"x", create_dirs=False, mode=None),
    ):
        with pytest.raises(PathEscape, match="hard link"):
            await call
    assert (secret / "file").read_text() == "the secret of the host"
    assert await workspace.delete("hard", recursive=False) == 1
    assert (secret / "file").stat().st_nlink == 1


async def test_a_setuid_bit_is_never_set(workspace: SessionWorkspace) -> None:
    for mode in (0o4755, 0o2755, 0o6777, 0o1777):
        with pytest.raises(InvalidRequest):
            await workspace.write("f", b"", create_dirs=False, mode=mode)
    assert os.listdir(workspace.root) == []


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 2500, "../" * 1000 + "etc/passwd"])
async def test_a_path_of_thousands_of_characters_is_refused_by_every_call(
    workspace: SessionWorkspace, path: str
) -> None:
    for call in (
        workspace.read(path, 0, 1),
        workspace.write(path, b"", create_dirs=True, mode=None),
        workspace.list(path, recursive=True, pattern="", limit=1),
        workspace.stat(path),
        workspace.delete(path, recursive=True),
        workspace.move(path, "x", overwrite=True),
        workspace.make_dir(path),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert len(caught.value.message) < 500


def dig(root: Path, depth: int, name: str) -> None:
    """Nest directories far beyond what a path can name."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize(("depth", "name"), [(1000, "d"), (3000, "d" * 200)])
async def test_a_tree_of_thousands_of_levels_is_listed_or_refused_and_deleted(
    workspace: SessionWorkspace, depth: int, name: str
) -> None:
    dig(workspace.root, depth, name)
    before = len(os.listdir("/proc/self/fd"))
    listing = workspace.list(".", recursive=True, pattern="", limit=100_000)
    if depth * (len(name) + 1) < 4095:
        assert (await listing)[1] == depth + 1
    else:
        with pytest.raises(LimitExceeded, match="nested deeper"):
            await listing
    assert (await workspace.list(".", recursive=False, pattern="", limit=10))[1] == 1
    assert await workspace.delete(name, recursive=True) == depth + 1
    assert os.listdir(workspace.root) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_bushy_tree_is_deleted_to_the_last_entry(workspace: SessionWorkspace) -> None:
    expected = 1
    for one in range(3):
        for depth in (1, 40, 80):
            path = workspace.root / "top" / str(one) / str(depth) / "/".join("x" * depth)
            path.mkdir(parents=True)
            for name in ("file", "other"):
                (path / name).touch()
            expected += depth + 1 + 2
        expected += 1
    assert await workspace.delete("top", recursive=True) == expected


async def test_names_that_look_like_ours_are_shown_and_deleted(workspace: SessionWorkspace) -> None:
    name = ".codegen-" + "0" * 32
    (workspace.root / name).touch()
    assert (await workspace.list(".", recursive=True, pattern="", limit=10))[1] == 1
    assert await workspace.delete(name, recursive=False) == 1


async def test_a_hidden_draft_is_not_listed(workspace: SessionWorkspace) -> None:
    workspace._held.nameless = False
    seen: list[tuple[int, int]] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        listed = (await workspace.list(".", recursive=True, pattern="", limit=10))[1]
        seen.append((listed, len(os.listdir(workspace.root))))
        yield b"rest"

    await workspace.write_chunks(
        "f", chunks(), create_dirs=False, mode=None, expected_size=8, expected_sha256=None
    )
    assert seen == [(0, 1)]
    assert os.listdir(workspace.root) == ["f"]


async def test_a_directory_that_others_keep_filling_does_not_hold_delete_for_ever(
    workspace: SessionWorkspace,
) -> None:
    (workspace.root / "d").mkdir()
    done = threading.Event()

    def fill() -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                os.close(os.open(workspace.root / "d" / str(number), os.O_CREAT))
            except FileNotFoundError:
                return

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        async with asyncio.timeout(15):
            try:
                await workspace.delete("d", recursive=True)
                outcome = "deleted"
            except WrongState as error:
                outcome = error.message
        assert outcome == "deleted" or "being written to" in outcome
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    volume = tmp_path / "volume"
    volume.mkdir()
    options = "size=1m,nr_inodes=64,mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(volume)], check=True)
    try:
        yield volume
    finally:
        subprocess.run(["umount", str(volume)], check=True)


@needs_root
@pytest.mark.parametrize("nameless", [True, False])
async def test_a_write_to_a_full_volume_leaves_the_old_file_and_nothing_else(
    small_volume: Path, nameless: bool
) -> None:
    workspace = SessionWorkspace(small_volume, HostIdentity(uid=UID, gid=UID))
    workspace._held.nameless = nameless
    await write(workspace, "kept", b"old" * 1000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB

    for path in ("kept", "new", "made/for/nothing"):
        with pytest.raises(LimitExceeded, match="disk is full"):
            await write(workspace, path, b"x" * 2 * MIB)
        with pytest.raises(LimitExceeded, match="disk is full"):
            await workspace.write_chunks(
                path,
                chunks(),
                create_dirs=True,
                mode=None,
                expected_size=None,
                expected_sha256=None,
            )
    assert os.listdir(small_volume) == ["kept"]
    assert await workspace.read("kept", 0, MIB) == (b"old" * 1000, 3000)
    await write(workspace, "kept", b"small")
    await workspace.aclose()


@needs_root
async def test_a_volume_without_inodes_says_that_it_is_full(small_volume: Path) -> None:
    workspace = SessionWorkspace(small_volume, HostIdentity(uid=UID, gid=UID))

    async def fill() -> None:
        for number in range(100):
            await write(workspace, f"d{number}/f")

    with pytest.raises(LimitExceeded):
        await fill()
    files = [path for path in small_volume.rglob("*") if path.is_file()]
    assert len(files) == len(list(small_volume.iterdir()))
    await workspace.aclose()


async def test_readers_see_the_old_or_the_new_file_while_50_mb_overwrite_it(
    workspace: SessionWorkspace,
) -> None:
    size = 50 * MIB
    path = workspace.root / "f"
    await write(workspace, "f", b"a" * size)
    seen: set[bytes] = set()
    done = threading.Event()

    def read_all_the_time() -> None:
        while not done.is_set():
            with open(path, "rb", buffering=0) as file:
                kinds = set()
                length = 0
                while chunk := file.read(4 * MIB):
                    kinds |= {chunk[:1], chunk[-1:]}
                    length += len(chunk)
            seen.add(b"".join(sorted(kinds)) if length == size else b"torn")

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        for turn in range(6):
            await write(workspace, "f", (b"b" if turn % 2 == 0 else b"a") * size)
            data, length = await workspace.read("f", 0, 64 * MIB)
            assert (data[:1], len(data), length) == (b"b" if turn % 2 == 0 else b"a", size, size)
    finally:
        done.set()
        reader.join()
    assert seen == {b"a", b"b"}


async def test_files_that_the_session_made_unreadable_are_its_tools_to_read(
    workspace: SessionWorkspace,
) -> None:
    await write(workspace, "f", b"mine")
    (workspace.root / "f").chmod(0)
    if AS_ROOT:
        assert await workspace.read("f", 0, 10) == (b"mine", 4)
    else:
        with pytest.raises(WrongState, match="permissions"):
            await workspace.read("f", 0, 10)
    await write(workspace, "f", b"new")
    assert (await workspace.stat("f")).mode == 0


async def test_a_directory_that_vanishes_is_not_found(workspace: SessionWorkspace) -> None:
    with pytest.raises(NotFound):
        await workspace.read("gone/f", 0, 1)
    os.rmdir(workspace.root)
    for call in (
        workspace.write("f", b"", create_dirs=True, mode=None),
        workspace.write("a/b/f", b"", create_dirs=True, mode=None),
        workspace.make_dir("a/b"),
    ):
        with pytest.raises(WorkerError) as caught:
            await call
        assert isinstance(caught.value, NotFound)
