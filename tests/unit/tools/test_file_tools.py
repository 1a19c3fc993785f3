from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.errors import (
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PathEscape,
    WrongState,
)
from codegen_mcp.testing.tool_context import LocalToolContext, open_tool_context
from codegen_mcp.tools.registry import tools_by_name

MIB = 1024 * 1024


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[LocalToolContext]:
    async with open_tool_context(tmp_path) as ctx:
        yield ctx


async def call(ctx: LocalToolContext, tool: str, **arguments: Any) -> Any:
    """As the executor does: validate, run, and hand back the result's value."""
    found = tools_by_name()[tool]
    return (await found.run(ctx, found.spec.arguments.model_validate(arguments))).value


async def test_text_is_read_as_it_was_written(ctx: LocalToolContext) -> None:
    text = "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}\r\n\0\N{PARTY POPPER}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    written = await call(ctx, "fs.write", path="./d//f", contents=text, create_dirs=True)
    assert (written.path, written.bytes_written) == ("d/f", len(text.encode()))
    read = await call(ctx, "fs.read", path="d/f")
    assert (read.contents, read.encoding, read.data) == (text, "utf-8", text.encode())
    assert read.sha256 == written.sha256 == digest
    assert read.size_bytes == len(text.encode())


async def test_bytes_that_are_no_text_come_as_base64(ctx: LocalToolContext) -> None:
    data = bytes(range(256))
    await call(ctx, "fs.write", path="f", data=data)
    read = await call(ctx, "fs.read", path="f")
    assert (read.encoding, base64.b64decode(read.contents), read.data) == ("base64", data, data)


async def test_a_range_that_splits_a_character_is_exact(ctx: LocalToolContext) -> None:
    await call(ctx, "fs.write", path="f", contents="a\N{EURO SIGN}b")
    read = await call(ctx, "fs.read", path="f", offset=1, length=2)
    assert (read.encoding, read.data, read.size_bytes) == ("base64", b"\xe2\x82", 5)
    read = await call(ctx, "fs.read", path="f", offset=1, length=3)
    assert (read.encoding, read.contents) == ("utf-8", "\N{EURO SIGN}")
    assert read.sha256 == hashlib.sha256(read.data).hexdigest()


async def test_a_file_that_does_not_fit_is_refused_with_the_ways_around(
    ctx: LocalToolContext,
) -> None:
    await call(ctx, "fs.write", path="f", data=b"\xff" * (MIB + 1))
    with pytest.raises(LimitExceeded, match=r"offset and length.*download"):
        await call(ctx, "fs.read", path="f")
    with pytest.raises(LimitExceeded, match=r"offset and length"):
        await call(ctx, "fs.read", path="f", length=MIB + 1)
    read = await call(ctx, "fs.read", path="f", length=MIB)
    assert len(read.contents) + len(read.data) < 3 * MIB
    assert (await call(ctx, "fs.read", path="f", offset=1)).data == b"\xff" * MIB
    assert (await call(ctx, "fs.read", path="f", offset=MIB)).data == b"\xff"
    assert (await call(ctx, "fs.read", path="f", offset=9 * MIB)).data == b""


async def test_a_result_survives_json(ctx: LocalToolContext) -> None:
    await call(ctx, "fs.write", path="f", data=bytes(range(256)))
    read = await call(ctx, "fs.read", path="f")
    assert type(read).model_validate_json(read.model_dump_json()) == read


async def test_write_takes_contents_or_data(ctx: LocalToolContext) -> None:
    with pytest.raises(InvalidRequest, match="one of them"):
        await call(ctx, "fs.write", path="f", contents="a", data=b"b")
    assert (await call(ctx, "fs.write", path="f")).bytes_written == 0


async def test_write_sets_permission_bits_and_no_others(ctx: LocalToolContext) -> None:
    await call(ctx, "fs.write", path="f", contents="x", mode=0o700)
    assert (await call(ctx, "fs.stat", path="f")).mode == 0o700
    await call(ctx, "fs.write", path="f", contents="y")
    assert (await call(ctx, "fs.stat", path="f")).mode == 0o700
    with pytest.raises(InvalidRequest, match="0o4755"):
        await call(ctx, "fs.write", path="f", contents="z", mode=0o4755)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
async def test_paths_that_leave_are_refused_by_every_file_tool(
    ctx: LocalToolContext, path: str
) -> None:
    for tool in ("fs.read", "fs.write", "fs.list", "fs.stat", "fs.delete"):
        with pytest.raises(PathEscape):
            await call(ctx, tool, path=path)
    for arguments in ({"source": path, "target": "a"}, {"source": "a", "target": path}):
        with pytest.raises(PathEscape):
            await call(ctx, "fs.move", **arguments)


@pytest.mark.parametrize("path", ["", ".", "a\0b", "x" * 5000])
async def test_paths_that_name_no_file_are_refused(ctx: LocalToolContext, path: str) -> None:
    for tool in ("fs.read", "fs.write", "fs.delete"):
        with pytest.raises(InvalidRequest):
            await call(ctx, tool, path=path)


async def test_a_listing_shows_facts_and_pages(ctx: LocalToolContext, tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/d.md"):
        await call(ctx, "fs.write", path=name, contents=name, create_dirs=True)
    (tmp_path / "link").symlink_to("/etc/passwd")
    everything = await call(ctx, "fs.list", recursive=True)
    assert [entry.path for entry in everything.files] == ["a", "a/c.txt", "a/d.md", "b.txt", "link"]
    assert (everything.total_count, everything.next_offset) == (5, 0)
    directory, file, *_, link = everything.files
    assert (directory.is_directory, directory.kind, directory.name) == (True, "directory", "a")
    assert (file.name, file.size_bytes, file.mode) == ("c.txt", 7, 0o644)
    assert file.modified_time_ms == (tmp_path / "a/c.txt").stat().st_mtime_ns // 1_000_000
    assert (link.kind, link.link_target) == ("symlink", "/etc/passwd")

    pages: list[str] = []
    offset = 0
    while True:
        page = await call(ctx, "fs.list", recursive=True, limit=2, offset=offset)
        assert page.total_count == 5
        pages += [entry.path for entry in page.files]
        if not page.next_offset:
            break
        offset = page.next_offset
    assert pages == [entry.path for entry in everything.files]

    assert (await call(ctx, "fs.list", recursive=True, pattern="**/*.md")).total_count == 1
    assert (await call(ctx, "fs.list", path="a")).total_count == 2
    assert (await call(ctx, "fs.list")).total_count == 3


async def test_names_that_are_not_utf8_are_escaped_as_text_and_exact_as_bytes(
    ctx: LocalToolContext, tmp_path: Path
) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\n", os.O_CREAT))
    (entry,) = (await call(ctx, "fs.list")).files
    assert (entry.path, entry.name, entry.path_bytes) == ("\\xff\n", "\\xff\n", b"\xff\n")


async def test_a_listing_that_would_burst_a_message_is_paged(
    ctx: LocalToolContext, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    for number in range(1400):
        os.close(os.open(deep / f"{number:0>250}", os.O_CREAT))
    first = await call(ctx, "fs.list", recursive=True)
    assert first.total_count == 1402
    assert 0 < first.next_offset < 1402
    rest = await call(ctx, "fs.list", recursive=True, offset=first.next_offset)
    assert len(first.files) + len(rest.files) == 1402
    assert rest.next_offset == 0
    assert len(first.model_dump_json()) < 3 * MIB


@pytest.mark.parametrize(
    "arguments", [{"limit": -1}, {"limit": 10_001}, {"offset": -1}, {"offset": 10**9}]
)
async def test_a_page_out_of_range_is_refused(
    ctx: LocalToolContext, arguments: dict[str, int]
) -> None:
    with pytest.raises(InvalidRequest, match="out of range"):
        await call(ctx, "fs.list", **arguments)


async def test_stat_of_nothing_is_the_workspace(ctx: LocalToolContext) -> None:
    assert (await call(ctx, "fs.stat")).kind == "directory"
    with pytest.raises(NotFound):
        await call(ctx, "fs.stat", path="nothing")


async def test_delete_and_move_answer_what_they_did(ctx: LocalToolContext, tmp_path: Path) -> None:
    await call(ctx, "fs.write", path="a/b", contents="x", create_dirs=True)
    with pytest.raises(NotFound):
        await call(ctx, "fs.move", source="a/b", target="c/d/e")
    moved = await call(ctx, "fs.move", source="./a/b", target="c/d//e", create_dirs=True)
    assert (moved.source, moved.target) == ("a/b", "c/d/e")
    with pytest.raises(WrongState, match="recursive"):
        await call(ctx, "fs.delete", path="c")
    deleted = await call(ctx, "fs.delete", path="c", recursive=True)
    assert (deleted.path, deleted.deleted_count) == ("c", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


async def test_a_move_of_nothing_makes_no_directories(
    ctx: LocalToolContext, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await call(ctx, "fs.move", source="nothing", target="a/b", create_dirs=True)
    assert list(tmp_path.iterdir()) == []
