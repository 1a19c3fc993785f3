"""The S3 store against a real server, with faults on the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from codegen_mcp.core.errors import AlreadyExists, Corrupt, NotFound, StoreUnavailable
from codegen_mcp.stores.s3 import S3Store
from codegen_mcp.stores.s3_config import S3Config, parse_s3_url
from codegen_mcp.stores.s3_sign import presign
from codegen_mcp.stores.s3_upload import STAGING
from codegen_mcp.testing.fault_proxy import Fault, FaultProxy, Rule
from codegen_mcp.testing.s3_server import S3Server

KIB = 1024
SINGLE = 256 * KIB
WITHIN_S = 10.0
SOAK = bool(os.environ.get("CODEGEN_TEST_SOAK"))

MEASURE = """
import asyncio, dataclasses, hashlib, os, sys
from pathlib import Path
from codegen_mcp.stores.s3 import S3Store
from codegen_mcp.stores.s3_config import parse_s3_url

def peak():  # not ru_maxrss: that has what the process had before execve(2), too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

async def main():
    config = dataclasses.replace(
        parse_s3_url(sys.argv[1], os.environ),
        single_bytes=1 << 20, part_bytes=1 << 20, parallel_parts=2,
    )
    async with S3Store(config) as store:
        await store.put_bytes("warm", bytes(1 << 20))
        async for _ in store.get("warm"):
            pass
        before = peak()
        await store.put_file("key", Path(sys.argv[2]), sha256=sys.argv[3])
        digest = hashlib.sha256()
        async for piece in store.get("key"):
            digest.update(piece)
        assert digest.hexdigest() == sys.argv[3]
        await store.delete("key")
        print(peak() - before)

asyncio.run(main())
"""


@pytest.fixture
async def proxy(s3: S3Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def config(s3: S3Server, proxy: FaultProxy) -> S3Config:
    """By way of the proxy, impatient, and with parts from 256 KiB on."""
    return dataclasses.replace(
        parse_s3_url(s3.new_url(), s3.environ(proxy.endpoint)),
        request_timeout_s=5.0,
        retry_timeout_s=5.0,
        max_retries=3,
        first_retry_s=0.01,
        single_bytes=SINGLE,
        part_bytes=SINGLE,
        parallel_parts=2,
    )


@pytest.fixture
async def store(config: S3Config) -> AsyncIterator[S3Store]:
    async with S3Store(config) as opened:
        yield opened


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, str]:
    data = os.urandom(3 * SINGLE + 1)
    path = tmp_path / "large"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def changed(config: S3Config, **fields: Any) -> S3Store:
    return S3Store(dataclasses.replace(config, **fields))


async def read(store: S3Store, key: str) -> bytes:
    return b"".join([piece async for piece in store.get(key)])


async def request(
    url: str, method: str = "GET", data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """What a plain HTTP client gets; header names with ``_`` for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def send() -> tuple[int, dict[str, str], bytes]:
        asked = urllib.request.Request(url, data=data, method=method, headers=named)
        try:
            with urllib.request.urlopen(asked, timeout=WITHIN_S) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    return await asyncio.to_thread(send)


async def left_over(config: S3Config, s3: S3Server) -> bytes:
    """Names in the staging directory, and uploads in parts that were neither ended nor aborted."""
    bucket = dataclasses.replace(config, prefix="", endpoint=s3.endpoint)
    found = b""
    for query in (
        {"prefix": f"{config.prefix}/{STAGING}", "list-type": "2"},
        {"prefix": config.prefix, "uploads": ""},
    ):
        link = presign(bucket, "GET", "", expires_s=60, now_ms=_now_ms(), query=query)
        status, _, body = await request(link)
        assert status == 200, body
        found += b"".join(part.partition(b"</Key>")[0] for part in body.split(b"<Key>")[1:])
    return found


def _now_ms() -> int:
    from codegen_mcp.core.clock import SystemClock

    return SystemClock().unix_ms()


def every_call(store: S3Store, path: Path, sha256: str) -> dict[str, Callable[[], Any]]:
    async def listed() -> list[str]:
        return [one.key async for one in store.list("")]

    return {
        "put_bytes": lambda: store.put_bytes("key", b"x"),
        "put_file": lambda: store.put_file("key", path, sha256=sha256),
        "stat": lambda: store.stat("key"),
        "get": lambda: read(store, "key"),
        "list": listed,
        "delete": lambda: store.delete("key"),
    }


async def test_a_service_that_is_down_is_unavailable_and_opening_a_store_does_not_need_it(
    config: S3Config, large: tuple[Path, str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{closed.getsockname()[1]}"
        async with changed(config, endpoint=down, max_retries=1) as store:
            for call in every_call(store, *large).values():
                with pytest.raises(StoreUnavailable, match=config.prefix):
                    await asyncio.wait_for(call(), WITHIN_S)


async def test_a_service_that_answers_5xx_is_unavailable(
    config: S3Config, proxy: FaultProxy, large: tuple[Path, str]
) -> None:
    rule = proxy.add(Rule(fault=Fault.STATUS, status=503))
    async with changed(config, max_retries=1) as store:
        for call in every_call(store, *large).values():
            before = rule.hits
            with pytest.raises(StoreUnavailable, match="503"):
                await call()
            assert rule.hits - before == 2


@pytest.mark.parametrize("fault", [Fault.STATUS, Fault.REFUSE])
async def test_a_request_that_fails_twice_is_tried_again(
    store: S3Store, proxy: FaultProxy, large: tuple[Path, str], fault: Fault
) -> None:
    path, sha256 = large
    rules = [
        proxy.add(Rule(fault=fault, status=500, times=2, method="PUT", target="partNumber=2")),
        proxy.add(Rule(fault=fault, status=500, times=2, method="HEAD")),
        proxy.add(Rule(fault=fault, status=500, times=2, method="GET")),
        proxy.add(Rule(fault=fault, status=500, times=2, method="DELETE")),
    ]
    await store.put_file("key", path, sha256=sha256)
    assert await read(store, "key") == path.read_bytes()
    assert await store.delete("key")
    assert [rule.hits for rule in rules] == [2, 2, 2, 2]


async def test_an_object_whose_answer_was_an_error_is_known_as_ours(
    store: S3Store, proxy: FaultProxy
) -> None:
    rule = proxy.add(Rule(fault=Fault.LATE_STATUS, method="PUT", times=1))
    await store.put_bytes("key", b"ours")
    assert rule.hits == 1
    assert await read(store, "key") == b"ours"


async def test_an_object_of_somebody_else_is_not_taken_for_ours(
    store: S3Store, proxy: FaultProxy
) -> None:
    await store.put_bytes("key", b"theirs")
    proxy.add(Rule(fault=Fault.LATE_STATUS, method="PUT", times=1))
    with pytest.raises(AlreadyExists):
        await store.put_bytes("key", b"theirs")


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.REFUSE, Fault.CUT_BODY])
async def test_a_small_object_is_sent_again_when_the_connection_breaks(
    store: S3Store, proxy: FaultProxy, fault: Fault
) -> None:
    rules = [proxy.add(Rule(fault=fault, method=method, times=2)) for method in ("PUT", "DELETE")]
    data = os.urandom(100 * KIB)
    await store.put_bytes("key", data)
    assert await read(store, "key") == data
    assert await store.delete("key")
    assert [rule.hits for rule in rules] == [2, 2]


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LATE_STATUS])
@pytest.mark.parametrize("place", [rf"{STAGING}/\w+", "/key"])
async def test_a_large_file_is_whole_or_absent_when_the_answer_to_its_last_request_is_lost(
    store: S3Store,
    config: S3Config,
    s3: S3Server,
    proxy: FaultProxy,
    large: tuple[Path, str],
    fault: Fault,
    place: str,
) -> None:
    path, sha256 = large
    last = proxy.add(Rule(fault=fault, method="POST", target=rf"{place}\?uploadId=", times=1))
    with contextlib.suppress(StoreUnavailable, AlreadyExists):
        await store.put_file("key", path, sha256=sha256)
    assert last.hits == 1
    with contextlib.suppress(NotFound):
        assert await read(store, "key") == path.read_bytes()
    assert STAGING.encode() not in await left_over(config, s3)


async def test_a_part_that_is_cut_on_the_way_is_sent_again(
    store: S3Store, proxy: FaultProxy, large: tuple[Path, str]
) -> None:
    path, sha256 = large
    rule = proxy.add(Rule(fault=Fault.CUT_BODY, method="PUT", target="partNumber=3", times=1))
    await store.put_file("key", path, sha256=sha256)
    assert rule.hits == 1
    assert await read(store, "key") == path.read_bytes()


async def test_a_read_that_is_cut_goes_on_or_fails_but_is_never_short(
    store: S3Store, proxy: FaultProxy, large: tuple[Path, str]
) -> None:
    path, sha256 = large
    await store.put_file("key", path, sha256=sha256)
    rule = proxy.add(Rule(fault=Fault.CUT_ANSWER, method="GET", times=1))
    assert await read(store, "key") == path.read_bytes()
    assert rule.hits == 1
    proxy.add(Rule(fault=Fault.CUT_ANSWER, method="GET", times=1))
    proxy.add(Rule(fault=Fault.STATUS, method="GET"))
    with pytest.raises(StoreUnavailable):
        await read(store, "key")


async def test_a_service_that_hangs_is_unavailable_in_time(
    config: S3Config, proxy: FaultProxy, large: tuple[Path, str]
) -> None:
    proxy.add(Rule(fault=Fault.HANG))
    async with changed(config, request_timeout_s=0.1, retry_timeout_s=0.1, max_retries=1) as store:
        for call in every_call(store, *large).values():
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(call(), WITHIN_S)


async def test_another_sha256_of_a_large_file_leaves_nothing(
    store: S3Store, config: S3Config, s3: S3Server, large: tuple[Path, str]
) -> None:
    with pytest.raises(Corrupt):
        await store.put_file("key", large[0], sha256="0" * 64)
    with pytest.raises(NotFound):
        await store.stat("key")
    assert await left_over(config, s3) == b""


@pytest.mark.parametrize("target", ["partNumber=2", r"\?uploads"])
async def test_a_cancelled_upload_leaves_nothing(
    config: S3Config, s3: S3Server, proxy: FaultProxy, large: tuple[Path, str], target: str
) -> None:
    path, sha256 = large
    rule = proxy.add(Rule(fault=Fault.HANG, target=target, times=1))
    async with changed(config, request_timeout_s=0.5) as store:
        upload = asyncio.create_task(store.put_file("key", path, sha256=sha256))
        async with asyncio.timeout(WITHIN_S):
            while not rule.hits:
                await asyncio.sleep(0.005)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(upload, WITHIN_S)
        with pytest.raises(NotFound):
            await store.stat("key")
    assert await left_over(config, s3) == b""


async def test_of_large_files_for_one_key_one_wins_and_nothing_else_is_left(
    store: S3Store, config: S3Config, s3: S3Server, tmp_path: Path
) -> None:
    async def write(number: int) -> bool:
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * (SINGLE + 1))
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            await store.put_file("contested", path, sha256=sha256)
        except AlreadyExists:
            return False
        return True

    won = await asyncio.gather(*(write(number) for number in range(3)))
    assert won.count(True) == 1
    assert await read(store, "contested") == bytes([won.index(True)]) * (SINGLE + 1)
    assert await left_over(config, s3) == b""


async def test_what_is_too_large_to_be_copied_is_stored_too(
    config: S3Config, large: tuple[Path, str]
) -> None:
    path, sha256 = large
    async with changed(config, copy_bytes=SINGLE) as store:
        await store.put_file("key", path, sha256=sha256)
        assert await read(store, "key") == path.read_bytes()
        with pytest.raises(AlreadyExists):
            await store.put_file("key", path, sha256=sha256)
        with pytest.raises(Corrupt):
            await store.put_file("other", path, sha256="0" * 64)
        assert [one.key async for one in store.list("")] == ["key"]


async def test_what_killed_workers_left_is_never_listed_and_removed_some_day(
    config: S3Config, s3: S3Server, large: tuple[Path, str]
) -> None:
    async with changed(config, prefix=f"{config.prefix}/x") as inner:
        link = presign(
            dataclasses.replace(config, endpoint=s3.endpoint),
            "PUT",
            f"x/{STAGING}/left",
            expires_s=60,
            now_ms=_now_ms(),
        )
        assert (await request(link, "PUT", b"half"))[0] == 200
        assert [one.key async for one in inner.list("")] == []
        await inner.put_file("one", large[0], sha256=large[1])
        listed = dataclasses.replace(config, prefix=f"{config.prefix}/x")
        assert b"left" in await left_over(listed, s3)
        async with changed(listed, staging_kept_s=-60.0) as later:
            await later.put_file("two", large[0], sha256=large[1])
        assert await left_over(listed, s3) == b""


def test_memory_use_does_not_depend_on_the_size(s3: S3Server, tmp_path: Path) -> None:
    source, digest, piece = tmp_path / "source", hashlib.sha256(), os.urandom(KIB * KIB)
    with source.open("wb") as file:
        for _ in range(256 if SOAK else 24):
            file.write(piece)
            digest.update(piece)
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, s3.new_url(), source, digest.hexdigest()],
        env={**os.environ, **s3.environ()},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    source.unlink()
    assert int(said) < 20 * KIB * KIB


async def test_a_missing_bucket_is_unavailable_and_not_an_empty_store(
    config: S3Config, large: tuple[Path, str]
) -> None:
    async with changed(config, bucket="no-such-bucket") as store:
        for call in every_call(store, *large).values():
            with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
                await call()


async def test_wrong_credentials_are_said_without_showing_them(
    config: S3Config, large: tuple[Path, str]
) -> None:
    async with changed(config, secret_access_key="wrong-secret") as store:
        for name, call in every_call(store, *large).items():
            with pytest.raises(StoreUnavailable) as refused:
                await call()
            assert "wrong-secret" not in refused.value.message, name
            if name in ("put_bytes", "get", "list"):
                assert "AWS_SECRET_ACCESS_KEY" in refused.value.message, name


class TestLinks:
    """What the server makes of links."""

    @staticmethod
    async def download(store: S3Store, expires_s: int = 60) -> str:
        link = await store.download_link(
            "dir/key", file_name='ü "x".csv', content_type="text/csv", expires_s=expires_s
        )
        assert link is not None
        return link

    @staticmethod
    async def upload(store: S3Store, expires_s: int = 60) -> str:
        link = await store.upload_link(
            "up", content_type="text/csv", size_bytes=5, expires_s=expires_s
        )
        assert link is not None
        return link

    async def test_a_download_has_name_and_type_and_ranges(self, store: S3Store) -> None:
        await store.put_bytes("dir/key", b"0123456789")
        link = await self.download(store)
        status, headers, body = await request(link)
        assert (status, body) == (200, b"0123456789")
        assert headers["Content-Type"] == "text/csv"
        disposition = headers["Content-Disposition"]
        assert disposition == "attachment; filename*=UTF-8''%C3%BC%20%22x%22.csv"
        status, _, body = await request(link, Range="bytes=2-4")
        assert (status, body) == (206, b"234")

    async def test_an_upload_takes_exactly_what_was_announced(self, store: S3Store) -> None:
        link = await self.upload(store)
        for body, kind in ((b"1234", "text/csv"), (b"123456", "text/csv"), (b"12345", "text/x")):
            assert (await request(link, "PUT", body, Content_Type=kind))[0] == 403
        with pytest.raises(NotFound):
            await store.stat("up")
        assert (await request(link, "PUT", b"12345", Content_Type="text/csv"))[0] == 200
        assert await read(store, "up") == b"12345"

    async def test_a_link_is_good_for_one_method_one_key_and_as_it_was_made(
        self, store: S3Store
    ) -> None:
        await store.put_bytes("dir/key", b"x")
        await store.put_bytes("dir/kez", b"y")
        link = await self.download(store)
        assert (await request(link))[0] == 200
        for tampered in (
            link.replace("dir/key", "dir/kez"),
            link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
            link.replace("text%2Fcsv", "text%2Fhtml"),
            link[:-1] + ("0" if link[-1] != "0" else "1"),
            link.partition("X-Amz-Signature")[0],
        ):
            assert tampered != link
            assert (await request(tampered))[0] in (400, 403)
        for method, body in (("PUT", b"z"), ("DELETE", None), ("POST", b"z")):
            assert (await request(link, method, body))[0] >= 400
        assert (await request(await self.upload(store)))[0] == 403
        assert await read(store, "dir/key") == b"x"

    async def test_a_link_is_good_for_its_time(self, config: S3Config) -> None:
        class Earlier:
            def monotonic(self) -> float:
                return 0.0

            def unix_ms(self) -> int:
                return _now_ms() - 100_000

        async with S3Store(config, clock=Earlier()) as store:
            await store.put_bytes("dir/key", b"x")
            assert (await request(await self.download(store, 90)))[0] == 403
            assert (await request(await self.download(store, 900)))[0] == 200
            upload = await self.upload(store, 90)
            assert (await request(upload, "PUT", b"12345", Content_Type="text/csv"))[0] == 403
