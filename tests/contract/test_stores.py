"""What every object store promises."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import unquote

import pytest

from codegen_mcp.core.errors import AlreadyExists, Corrupt, InvalidRequest, NotFound
from codegen_mcp.stores.base import PIECE_BYTES, SMALL_BYTES, ObjectStore
from codegen_mcp.stores.registry import open_store
from codegen_mcp.stores.s3 import S3Store
from codegen_mcp.stores.s3_config import parse_s3_url
from codegen_mcp.testing.s3_server import S3Server

WRITERS = 20


def large_apart(server: S3Server) -> ObjectStore:
    """An S3 store that sends what is more than one piece in parts."""
    config = parse_s3_url(server.new_url(), server.environ())
    return S3Store(dataclasses.replace(config, single_bytes=PIECE_BYTES, part_bytes=PIECE_BYTES))


@pytest.fixture(params=["memory", "local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "s3":
        made = large_apart(request.getfixturevalue("s3"))
    else:
        made = open_store({"memory": "memory:", "local": str(tmp_path / "objects")}[request.param])
    async with made as opened:
        yield opened


async def read(store: ObjectStore, key: str, offset: int = 0, length: int | None = None) -> bytes:
    async with aclosing(store.get(key, offset=offset, length=length)) as pieces:  # type: ignore[type-var]
        found = [piece async for piece in pieces]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in found)
    return b"".join(found)


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [one.key async for one in store.list(prefix)]


def file_of(path: Path, data: bytes) -> tuple[Path, str]:
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 1])
async def test_what_was_put_is_what_is_read(store: ObjectStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path, sha256 = file_of(tmp_path / "source", data)
    put = await store.put_file("a/file", path, sha256=sha256)
    assert (put.key, put.size) == ("a/file", size)
    await store.put_bytes("a/bytes", data)
    assert await read(store, "a/file") == data
    assert await read(store, "a/bytes") == data
    assert (await store.stat("a/file")).size == size
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 3, b"012"),
        (7, None, b"789"),
        (7, 2, b"78"),
        (7, 100, b"789"),
        (10, None, b""),
        (50, 5, b""),
        (3, 0, b""),
    ],
)
async def test_a_part_is_read(
    store: ObjectStore, offset: int, length: int | None, expected: bytes
) -> None:
    await store.put_bytes("digits", b"0123456789")
    assert await read(store, "digits", offset, length) == expected


async def test_an_object_is_never_overwritten(store: ObjectStore, tmp_path: Path) -> None:
    await store.put_bytes("key", b"first")
    path, sha256 = file_of(tmp_path / "source", b"second")
    with pytest.raises(AlreadyExists, match="'key'"):
        await store.put_bytes("key", b"first")
    with pytest.raises(AlreadyExists, match="'key'"):
        await store.put_file("key", path, sha256=sha256)
    assert await read(store, "key") == b"first"


async def test_of_many_writers_of_one_key_one_wins(store: ObjectStore, tmp_path: Path) -> None:
    async def write(number: int) -> bool:
        data = b"%d" % number * 1000
        try:
            if number % 2:
                await store.put_bytes("contested/key", data)
            else:
                path, sha256 = file_of(tmp_path / str(number), data)
                await store.put_file("contested/key", path, sha256=sha256)
        except AlreadyExists:
            return False
        return True

    won = await asyncio.gather(*(write(number) for number in range(WRITERS)))
    assert won.count(True) == 1
    assert await read(store, "contested/key") == b"%d" % won.index(True) * 1000


async def test_a_file_with_another_sha256_is_not_stored(store: ObjectStore, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path / "source", b"something")
    other = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(Corrupt, match=other):
        await store.put_file("key", path, sha256=other)
    assert await keys(store) == []
    with pytest.raises(NotFound):
        await store.stat("key")


async def test_what_is_no_readable_file_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo"):
        with pytest.raises(InvalidRequest, match=path.name):
            await store.put_file("key", path, sha256="0" * 64)
    assert await keys(store) == []


async def test_objects_are_listed_by_key_whatever_the_prefix(store: ObjectStore) -> None:
    given = ["b", "a/2", "a/10", "a/1/x", "a-b", "a.c/d", "ab/c", "a+", "A"]
    for key in given:
        await store.put_bytes(key, key.encode())
    assert await keys(store) == sorted(given)
    for prefix in ("a", "a/", "a/1", "a/1/", "a/1/x", "a.", "b", "c", "a/1/x/y", "/", "~", ".."):
        assert await keys(store, prefix) == sorted(k for k in given if k.startswith(prefix))
    assert [one.size async for one in store.list("a/1")] == [5, 4]


async def test_a_deleted_object_is_gone_and_may_be_created_again(store: ObjectStore) -> None:
    await store.put_bytes("a/b/c", b"1")
    await store.put_bytes("a/d", b"2")
    assert await store.delete("a/b/c")
    assert not await store.delete("a/b/c")
    assert await keys(store) == ["a/d"]
    await store.put_bytes("a/b/c", b"3")
    assert await read(store, "a/b/c") == b"3"
    assert await read(store, "a/d") == b"2"


async def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    await store.put_bytes("a/b", b"")
    for key in ("missing", "a", "a/b/c", "a/c"):
        with pytest.raises(NotFound, match=repr(key)):
            await store.stat(key)
        with pytest.raises(NotFound, match=repr(key)):
            await read(store, key)
        assert not await store.delete(key)
    assert await keys(store) == ["a/b"]


@pytest.mark.parametrize(
    "key",
    [
        *("", "/a", "a/", "a//b", ".", "..", "a/../b", "a/."),
        *("a b", "a\n", "~tmp/x", "a\0", "ä", "x" * 256, "/".join("x" * 300)),
    ],
)
async def test_a_key_that_is_none_is_refused_by_every_call(
    store: ObjectStore, tmp_path: Path, key: str
) -> None:
    path, sha256 = file_of(tmp_path / "source", b"")
    calls = (
        store.put_bytes(key, b""),
        store.put_file(key, path, sha256=sha256),
        read(store, key),
        store.stat(key),
        store.delete(key),
        store.upload_link(key, content_type="text/plain", size_bytes=1, expires_s=60),
        store.download_link(key, file_name="x", content_type="text/plain", expires_s=60),
    )
    for call in calls:
        with pytest.raises(InvalidRequest):
            await call
    with pytest.raises(InvalidRequest):
        store.url(key)


@pytest.mark.parametrize("key", [".hidden", "...", "a/..b/c..", "=+@-_", "x" * 255])
async def test_a_key_of_unusual_characters_works(store: ObjectStore, key: str) -> None:
    await store.put_bytes(key, b"x")
    assert await keys(store) == [key]
    assert await read(store, key) == b"x"
    assert unquote(store.url(key)).endswith(key)


async def test_small_objects_are_small_and_ranges_are_not_negative(store: ObjectStore) -> None:
    with pytest.raises(InvalidRequest, match="put_file"):
        await store.put_bytes("key", bytes(SMALL_BYTES + 1))
    await store.put_bytes("key", b"x")
    with pytest.raises(InvalidRequest):
        await read(store, "key", -1)
    with pytest.raises(InvalidRequest):
        await read(store, "key", 0, -1)


async def test_a_read_may_be_left_early_and_a_deleted_object_is_never_read_in_part(
    store: ObjectStore, tmp_path: Path
) -> None:
    data = os.urandom(3 * PIECE_BYTES)
    path, sha256 = file_of(tmp_path / "source", data)
    await store.put_file("key", path, sha256=sha256)
    async with aclosing(store.get("key")) as pieces:  # type: ignore[type-var]
        first = await anext(pieces)
    assert data.startswith(first)
    assert await store.delete("key")
    with pytest.raises(NotFound):
        await read(store, "key")


async def test_closing_twice_is_fine(store: ObjectStore) -> None:
    await store.aclose()
    await store.aclose()
