"""The workspace against the plain file system: what one makes, the other sees."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen_mcp.core.errors import WorkerError
from codegen_mcp.core.paths import parse_path
from codegen_mcp.engine.workspace import SessionWorkspace

NAMES = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.sampled_from([b"a", b"b", b"-", b".", b"..", b"a-b", b"a.b", b"*", b"\xff", b"x" * 255]),
).filter(lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TREES = st.dictionaries(PATHS, st.sampled_from(["file", "dir", "link"]), max_size=12)

slow = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="workspace-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def in_workspace(work: Callable[[SessionWorkspace], Coroutine[Any, Any, None]]) -> None:
    async def run(root: Path) -> None:
        workspace = SessionWorkspace(root, None)
        try:
            await work(workspace)
        finally:
            await workspace.aclose()

    with directory() as root:
        asyncio.run(run(root))


def build(root: bytes, tree: dict[bytes, str]) -> None:
    """Make what fits; names that are already another kind are left out."""
    for path, kind in tree.items():
        full = os.path.join(root, path)
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(full), exist_ok=True)
            if kind == "dir":
                os.mkdir(full)
            elif kind == "link":
                os.symlink(b"../" + path, full)
            else:
                os.close(os.open(full, os.O_CREAT))


def walked(root: bytes) -> list[bytes]:
    found = []
    for at, directories, files in os.walk(root):
        found += [os.path.relpath(os.path.join(at, name), root) for name in directories + files]
    return sorted(found)


@slow
@given(TREES, st.integers(0, 10))
def test_a_listing_is_what_os_walk_finds(tree: dict[bytes, str], limit: int) -> None:
    async def work(workspace: SessionWorkspace) -> None:
        root = os.fsencode(workspace.root)
        build(root, tree)
        expected = walked(root)
        entries, total = await workspace.list(".", recursive=True, pattern="", limit=100)
        assert [entry.path for entry in entries] == expected
        assert total == len(expected)
        for entry in entries:
            found = os.lstat(os.path.join(root, entry.path))
            assert (entry.size, entry.mtime_ns) == (found.st_size, found.st_mtime_ns)
        first, total = await workspace.list(".", recursive=True, pattern="", limit=limit)
        assert [entry.path for entry in first] == expected[:limit]
        assert total == len(expected)

    in_workspace(work)


@slow
@given(TREES)
def test_delete_counts_what_os_walk_finds_and_leaves_nothing(tree: dict[bytes, str]) -> None:
    async def work(workspace: SessionWorkspace) -> None:
        root = os.fsencode(workspace.root)
        os.mkdir(os.path.join(root, b"top"))
        build(os.path.join(root, b"top"), tree)
        expected = len(walked(root))
        assert await workspace.delete("top", recursive=True) == expected
        assert os.listdir(root) == []

    in_workspace(work)


@slow
@given(PATHS, st.binary(max_size=5000), st.integers(0, 6000), st.integers(0, 6000))
def test_what_is_written_is_what_is_read(
    path: bytes, data: bytes, offset: int, length: int
) -> None:
    async def work(workspace: SessionWorkspace) -> None:
        answer = await workspace.write(path, data, create_dirs=True, mode=None)
        assert answer == (len(data), hashlib.sha256(data).hexdigest())
        assert (workspace.root / os.fsdecode(path)).read_bytes() == data
        expected = data[offset : offset + length]
        assert await workspace.read(path, offset, length) == (expected, len(data))
        streamed = [chunk async for chunk in workspace.read_chunks(path, max(length, 1))]
        assert b"".join(streamed) == data
        assert (await workspace.stat(path)).path == b"/".join(parse_path(path))

    in_workspace(work)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "delete", "move", "make_dir"]),
        st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/a"]),
        st.sampled_from([b"a", b"b", b"a/a", b"a/b", b"b/a", b"c"]),
    ),
    max_size=25,
)


@slow
@given(STEPS)
def test_any_order_of_calls_leaves_no_temporary_file_and_no_descriptor(
    steps: list[tuple[str, bytes, bytes]],
) -> None:
    async def work(workspace: SessionWorkspace) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number, (step, path, other) in enumerate(steps):
            workspace._held.nameless = number % 2 == 0
            with contextlib.suppress(WorkerError):
                if step == "write":
                    await workspace.write(path, b"x", create_dirs=True, mode=None)
                elif step == "delete":
                    await workspace.delete(path, recursive=True)
                elif step == "move":
                    await workspace.move(path, other, overwrite=number % 3 == 0)
                else:
                    await workspace.make_dir(path)
        names = {part for path in walked(os.fsencode(workspace.root)) for part in path.split(b"/")}
        assert names <= {b"a", b"b", b"c"}
        assert workspace._held.hidden == set()
        assert len(os.listdir("/proc/self/fd")) == before

    in_workspace(work)
