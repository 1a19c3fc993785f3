"""Artifacts over real HTTP: each link does what it says and no more."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from codegen_mcp.engine.artifacts import facts
from codegen_mcp.engine.artifacts.base import ArtifactInfo, UploadTicket
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.http import artifacts as artifacts_http
from codegen_mcp.http.app import make_app
from codegen_mcp.http.artifact_links import ArtifactLinks
from codegen_mcp.http.artifacts import artifact_route
from codegen_mcp.http.server import HttpServer
from codegen_mcp.stores.memory import MemoryStore
from codegen_mcp.testing.manual_clock import ManualClock

SESSION = "ses_" + "0" * 32
DATA = bytes(range(256)) * 20


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


def ask(
    method: str, url: str, body: bytes | Iterable[bytes] | None = None, **headers: str
) -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{parts.path}?{parts.query}", body=body, headers=named)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()


@dataclass
class Site:
    clock: ManualClock
    store: MemoryStore
    keeper: ArtifactKeeper
    spool: Path

    async def ask(self, method: str, url: str, body=None, **headers: str) -> Answer:
        return await asyncio.to_thread(ask, method, url, body, **headers)

    async def begin(self, size: int = len(DATA), name: str = "data.bin") -> UploadTicket:
        return await self.keeper.begin_upload(
            session_id=SESSION, task_id="", name=name, content_type="", size_bytes=size
        )

    async def record(
        self, ticket: UploadTicket, data: bytes = DATA, **changes: str
    ) -> tuple[ArtifactInfo, str]:
        values = {"task_id": "", "name": "", "content_type": "", **changes}
        return await self.keeper.record(
            ticket.artifact_id,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            labels={},
            **values,
        )

    async def make(self, data: bytes = DATA, **changes: str) -> tuple[ArtifactInfo, str]:
        ticket = await self.begin(len(data))
        assert (await self.ask("PUT", ticket.upload_url, data)).status == 200
        return await self.record(ticket, data, **changes)


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    keeper = ArtifactKeeper(
        store,
        tmp_path / "spool",
        find_session=lambda _: None,
        room=lambda: 1 << 40,
        config=ArtifactConfig(),
        clock=clock,
    )
    links = ArtifactLinks(b"k" * 32, lambda: f"http://127.0.0.1:{server.port}", clock)
    app = make_app(ready=lambda: True, routes=[artifact_route(keeper, links)])
    async with keeper, HttpServer(app, host="127.0.0.1", port=0) as server:
        keeper.serve_links(links)
        yield Site(clock, store, keeper, tmp_path / "spool")


async def test_an_upload_is_answered_with_its_sha256_and_is_what_is_downloaded(site):
    ticket = await site.begin()
    sent = await site.ask("PUT", ticket.upload_url, DATA)
    sha256 = hashlib.sha256(DATA).hexdigest()
    assert (sent.status, sent.headers["etag"]) == (200, f'"{sha256}"')
    _, link = await site.record(ticket)
    got = await site.ask("GET", link)
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["etag"] == f'"{sha256}"'
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["accept-ranges"] == "bytes"


async def test_nothing_can_be_read_before_it_is_recorded(site):
    ticket = await site.begin()
    await site.ask("PUT", ticket.upload_url, DATA)
    assert (await site.ask("GET", ticket.upload_url)).status == 403


async def test_hostile_content_is_never_shown_in_place(site):
    _, link = await site.make(b"<script>", name='évil".html', content_type="text/html")
    got = await site.ask("GET", link)
    assert got.headers["content-type"] == "text/html"
    assert got.headers["content-disposition"] == (
        "attachment; filename=\"_vil_.html\"; filename*=UTF-8''%C3%A9vil%22.html"
    )
    assert "sandbox" in got.headers["content-security-policy"]


async def test_a_head_says_all_but_the_bytes_and_ignores_ranges(site):
    _, link = await site.make()
    head = await site.ask("HEAD", link, range="bytes=1-2")
    assert (head.status, head.body) == (200, b"")
    got = await site.ask("GET", link)
    assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5000-", (5000, 5120)),
        ("bytes=-10", (5110, 5120)),
        ("bytes=100-4999", (100, 5000)),
        ("bytes=5119-9999", (5119, 5120)),
    ],
)
async def test_a_range_is_answered_with_just_that(site, asked, expected):
    _, link = await site.make()
    got = await site.ask("GET", link, range=asked)
    first, end = expected
    assert (got.status, got.body) == (206, DATA[first:end])
    assert got.headers["content-range"] == f"bytes {first}-{end - 1}/{len(DATA)}"
    assert got.headers["content-length"] == str(end - first)


async def test_a_range_beyond_the_end_is_416_and_a_strange_one_is_the_whole(site):
    _, link = await site.make()
    beyond = await site.ask("GET", link, range="bytes=5120-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */5120")
    for strange in ("bytes=1-2,4-5", "lines=1-2", "bytes=9-1"):
        got = await site.ask("GET", link, range=strange)
        assert (got.status, got.body) == (200, DATA)


async def test_conditions_are_heeded(site):
    info, link = await site.make()
    tag = f'"{info.sha256}"'
    same = await site.ask("GET", link, if_none_match=f'"x", {tag}')
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert (await site.ask("HEAD", link, if_none_match=tag)).status == 304
    assert (await site.ask("GET", link, if_none_match='"x"')).status == 200
    assert (await site.ask("GET", link, range="bytes=0-0", if_range=tag)).status == 206
    assert (await site.ask("GET", link, range="bytes=0-0", if_range='"x"')).status == 200


async def test_an_empty_artifact_is_served(site):
    _, link = await site.make(b"")
    got = await site.ask("GET", link)
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")
    assert (await site.ask("GET", link, range="bytes=0-")).status == 416


async def test_a_link_that_is_over_or_changed_or_for_something_else_is_refused(site):
    ticket = await site.begin()
    other = await site.begin()
    _, link = await site.make()
    bad = ticket.upload_url[:-1] + ("0" if ticket.upload_url[-1] != "0" else "1")
    refused = [
        ("PUT", bad),
        ("PUT", ticket.upload_url.replace(ticket.artifact_id, other.artifact_id)),
        ("PUT", ticket.upload_url.replace("size=5120", "size=9999")),
        ("PUT", ticket.upload_url + "&size=1"),
        ("PUT", link),
        ("GET", ticket.upload_url),
        ("GET", link.partition("?")[0]),
        ("GET", link.partition("&")[0]),
    ]
    for method, url in refused:
        assert (await site.ask(method, url, DATA if method == "PUT" else None)).status == 403
    for method in ("POST", "DELETE", "PATCH"):
        assert (await site.ask(method, ticket.upload_url, b"")).status == 405
    site.clock.advance(ArtifactConfig().link_s)
    for method, url in (("PUT", ticket.upload_url), ("GET", link)):
        late = await site.ask(method, url, DATA if method == "PUT" else None)
        assert (late.status, b"time" in late.body) == (403, True)
    assert not list(site.spool.glob("*.data"))


async def test_another_length_than_announced_is_refused(site):
    ticket = await site.begin()
    assert (await site.ask("PUT", ticket.upload_url, DATA + b"x")).status == 413
    assert (await site.ask("PUT", ticket.upload_url, DATA[:-1])).status == 400
    # Without a Content-Length it is told when the bytes have come.
    assert (await site.ask("PUT", ticket.upload_url, iter([DATA, b"x"]))).status == 413
    assert (await site.ask("PUT", ticket.upload_url, iter([DATA[:-1]]))).status == 400
    assert not list(site.spool.glob("*.part"))
    assert not list(site.spool.glob("*.data"))
    assert (await site.ask("PUT", ticket.upload_url, iter([DATA]))).status == 200
    await site.record(ticket)


async def test_an_encoded_upload_is_refused(site):
    ticket = await site.begin()
    refused = await site.ask("PUT", ticket.upload_url, DATA, content_encoding="gzip")
    assert (refused.status, b"Content-Encoding" in refused.body) == (400, True)


async def test_a_link_takes_no_second_upload_once_it_was_recorded(site):
    ticket = await site.begin()
    for _ in range(2):  # an answer may be lost on the way
        assert (await site.ask("PUT", ticket.upload_url, DATA)).status == 200
    _, link = await site.record(ticket)
    again = await site.ask("PUT", ticket.upload_url, b"x" * len(DATA))
    assert again.status == 409
    assert (await site.ask("GET", link)).body == DATA


async def test_a_deleted_artifact_is_not_found(site):
    info, link = await site.make()
    await site.keeper.delete(info.artifact_id)
    assert (await site.ask("GET", link)).status == 404


async def test_damaged_bytes_are_never_given_as_whole(site):
    info, link = await site.make()
    key = facts.data_key(SESSION, info.artifact_id)
    await site.store.delete(key)
    assert (await site.ask("GET", link)).status == 500
    await site.store.put_bytes(key, b"x" * len(DATA))
    assert (await site.ask("GET", link)).status == 500


def put_head(ticket: UploadTicket) -> bytes:
    parts = urlsplit(ticket.upload_url)
    line = f"PUT {parts.path}?{parts.query} HTTP/1.1"
    return f"{line}\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()


async def test_a_caller_that_leaves_in_the_middle_leaves_nothing(site):
    ticket = await site.begin()
    parts = urlsplit(ticket.upload_url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(put_head(ticket) + DATA[:100])
    await writer.drain()
    part = site.spool / f"{ticket.artifact_id}.part"
    async with asyncio.timeout(5):
        while not part.exists():
            await asyncio.sleep(0)
        assert (await site.ask("PUT", ticket.upload_url, DATA)).status == 409
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        while part.exists():
            await asyncio.sleep(0)
        # The bytes are gone a moment before the upload may be sent again.
        while (sent := await site.ask("PUT", ticket.upload_url, DATA)).status == 409:
            await asyncio.sleep(0)
    assert sent.status == 200
    await site.record(ticket)


async def test_a_silent_caller_is_given_up(site, monkeypatch):
    monkeypatch.setattr(artifacts_http, "SILENCE_S", 0.05)
    ticket = await site.begin()
    parts = urlsplit(ticket.upload_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(put_head(ticket) + b"x")
    async with asyncio.timeout(5):
        answer = await reader.read()  # to the end: the connection is closed
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert not list(site.spool.glob("*.part"))


async def test_metrics_are_not_served_where_only_links_are(site):
    ticket = await site.begin()
    origin = ticket.upload_url.partition("/artifacts/")[0]
    assert (await site.ask("GET", origin + "/metrics")).status == 404
    assert (await site.ask("GET", origin + "/healthz")).status == 200
    assert (await site.ask("GET", origin + "/artifacts/")).status == 404
