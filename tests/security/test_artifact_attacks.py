"""Hostile code, callers, links, HTTP clients and stores against artifacts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from codegen_mcp.core.errors import Corrupt, Full, NotFound
from codegen_mcp.engine.artifacts import collector, facts, left_files
from codegen_mcp.engine.artifacts.base import ArtifactInfo
from codegen_mcp.engine.artifacts.config import ArtifactConfig
from codegen_mcp.engine.artifacts.keeper import ArtifactKeeper
from codegen_mcp.engine.artifacts.record import read_info
from codegen_mcp.http import artifacts as artifacts_http
from codegen_mcp.http import protocol, server
from codegen_mcp.http.app import make_app
from codegen_mcp.http.artifact_links import ArtifactLinks
from codegen_mcp.http.artifacts import artifact_route
from codegen_mcp.http.server import HttpServer
from codegen_mcp.stores.local import LocalStore
from codegen_mcp.testing.checkpoint_engine import checkpoint_engine, state_directory
from codegen_mcp.testing.manual_clock import ManualClock

SESSION = "ses_" + "0" * 32
OTHER = "ses_" + "1" * 32
ARTIFACT = "art_" + "0" * 32
DATA = b"the bytes of an artifact"

pytestmark = pytest.mark.timeout(60)


@dataclass
class Site:
    """Artifacts in a directory, with links of a real server."""

    keeper: ArtifactKeeper
    server: HttpServer
    clock: ManualClock
    directory: Path

    async def begin(self, size: int = len(DATA), session_id: str = SESSION, name: str = "a") -> str:
        """Announce an upload; its link."""
        ticket = await self.keeper.begin_upload(
            session_id=session_id, task_id="", name=name, content_type="", size_bytes=size
        )
        return ticket.upload_url

    async def make(self, name: str = "a", content_type: str = "") -> tuple[ArtifactInfo, str]:
        """Upload and record DATA."""
        link = await self.begin(name=name)
        assert (await self.ask("PUT", link, DATA))[0] == 200
        return await self.keeper.record(
            urlsplit(link).path.rpartition("/")[2],
            task_id="",
            name="",
            content_type=content_type,
            size_bytes=len(DATA),
            sha256=hashlib.sha256(DATA).hexdigest(),
            labels={},
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes and read until the connection is closed."""
        reader, writer = await self.connect()
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer

    async def ask(
        self, method: str, link: str, body: bytes = b"", *headers: str
    ) -> tuple[int, bytes, bytes]:
        """(status, head, body)."""
        parts = urlsplit(link)
        lines = [
            f"{method} {parts.path}?{parts.query} HTTP/1.1",
            "host: a",
            "connection: close",
            f"content-length: {len(body)}",
            *headers,
        ]
        answer = await self.raw("\r\n".join([*lines, "", ""]).encode() + body)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(answer.split()[1]), head, rest


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(server, "TICK_S", 0.05)
    async with open_site(tmp_path) as opened:
        yield opened


class open_site:
    """Open one with these bounds."""

    def __init__(self, directory: Path, **bounds: Any) -> None:
        self._directory = directory
        self._bounds = bounds

    async def __aenter__(self) -> Site:
        clock = ManualClock()
        self._store = LocalStore(self._directory / "store")
        await self._store.__aenter__()
        keeper = self._keeper = ArtifactKeeper(
            self._store,
            self._directory / "uploads",
            find_session=lambda _: None,
            room=lambda: 1 << 40,
            config=ArtifactConfig(**self._bounds),
            clock=clock,
        )
        links = ArtifactLinks(b"k" * 32, lambda: f"http://127.0.0.1:{opened.port}", clock)
        app = make_app(ready=lambda: True, routes=[artifact_route(keeper, links)])
        opened = self._server = HttpServer(app, host="127.0.0.1", port=0)
        await keeper.__aenter__()
        await opened.__aenter__()
        keeper.serve_links(links)
        return Site(keeper, opened, clock, self._directory)

    async def __aexit__(self, *error: Any) -> None:
        await self._server.__aexit__(*error)
        await self._keeper.__aexit__(*error)
        await self._store.__aexit__(*error)


# Links and headers.


async def test_a_link_is_good_for_nothing_else(site: Site) -> None:
    _, link = await site.make()
    _, other = await site.make()
    upload = await site.begin()
    mine, its = urlsplit(link), urlsplit(other)
    host = f"http://{mine.netloc}"
    for method, url in (
        ("PUT", link),
        ("GET", upload),
        ("HEAD", upload),
        ("GET", f"{host}{its.path}?{mine.query}"),
        ("GET", f"{host}{mine.path}?{mine.query}&size=1"),
        ("GET", f"{host}{mine.path}?{mine.query}&{mine.query}"),
        ("GET", f"{host}{mine.path}%0a1?{mine.query}"),
        ("GET", f"{host}{mine.path.replace('art_', 'ART_')}?{mine.query}"),
        ("GET", f"{host}{mine.path}?{mine.query.replace('expires=', 'expires=0')}"),
        ("GET", f"{host}{mine.path}?{mine.query.replace('expires=', 'expires=%2B')}"),
        ("GET", f"{host}{mine.path}?{mine.query[:-1]}"),
        ("GET", f"{host}{mine.path}?{mine.query.upper()}"),
        ("GET", f"{host}{mine.path}"),
        ("PUT", upload.replace("size=24", "size=25")),
    ):
        status, _, body = await site.ask(method, url, DATA if method == "PUT" else b"")
        assert (status, DATA in body) == (403, False), (method, url)
    assert (await site.ask("GET", link))[::2] == (200, DATA)
    site.clock.advance(3601)
    assert (await site.ask("GET", link))[0] == 403
    assert (await site.ask("PUT", upload, DATA))[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/../links.key",
        "/artifacts/..%2flinks.key",
        "/artifacts/%2e%2e/%2e%2e/etc/passwd",
        "/artifacts//etc/passwd",
        "/artifacts/%00",
        "/artifacts/" + "a" * 60_000,
        "/metrics",
        "//evil.example/artifacts/x",
        "/healthz/",
        f"/artifacts/{ARTIFACT}/",
    ],
)
async def test_no_path_leads_anywhere_else_and_none_redirects(site: Site, path: str) -> None:
    answer = await site.raw(
        f"GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n".encode()
    )
    assert answer.split()[1] in (b"400", b"403", b"404")
    assert b"evil.example" not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "name",
    [
        'a"; filename="b.exe',
        "a\\",
        "a%0d%0aX: y",
        "\u202egpj.exe",
        "\x1b[2J",
        "\x7f",
        "é",
        ";",
        "'",
    ],
)
async def test_no_name_gets_out_of_its_header(site: Site, name: str) -> None:
    _, link = await site.make(name)
    status, head, body = await site.ask("GET", link)
    assert (status, body) == (200, DATA)
    (value,) = [
        line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")
    ]
    assert all(32 <= one < 127 for one in value)
    assert value.count(b'"') == 2
    assert b"attachment" in value


@pytest.mark.parametrize(
    "header",
    [
        "range: bytes=" + ",".join(f"{i}-{i}" for i in range(5_000)),
        "range: bytes=0-" + "9" * 5_000,
        "range: bytes=" + "9" * 5_000 + "-",
        "range: bytes=-" + "0" * 5_000,
        "range: bytes=0-0,1-1",
        "range: bytes=--1",
        "range: bytes=٣-",
        'if-none-match: "' + 'a",' * 15_000 + '"',
    ],
)
async def test_no_range_or_condition_gives_more_than_the_whole(site: Site, header: str) -> None:
    _, link = await site.make()
    status, _, body = await site.ask("GET", link, b"", header)
    assert status in (200, 400)
    assert body == DATA or status == 400


# Slow and many.


async def test_connections_that_ask_nothing_make_room_for_those_that_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.server._server.config.http_protocol_class, "most", 10)
    idle = [await site.connect() for _ in range(40)]
    for _, writer in idle[::2]:
        writer.write(b"GET /healthz HTTP/1.1\r\nx: ")
    _, link = await site.make()
    assert (await site.ask("GET", link))[0] == 200
    assert len(site.server._server.server_state.connections) <= 10
    for _, writer in idle:
        writer.transport.abort()


async def test_a_head_that_never_ends_is_given_up_by_time_and_by_length(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(ConnectionError):  # it is closed while this is still sent
        answer = await site.raw(b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000)
        assert answer.startswith(b"HTTP/1.1 4")
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)
    reader, writer = await site.connect()
    writer.write(b"GET / HTTP/1.1\r\nx: a")
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_caller_that_reads_nothing_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_S", 0.1)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    info = await site.keeper.put(
        session_id=SESSION,
        task_id="",
        name="a",
        content_type="",
        labels={},
        size_bytes=64 << 20,
        data=endless(),
    )
    parts = urlsplit(await site.keeper.download_link(info))
    _, writer = await site.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    connections = site.server._server.server_state.connections
    async with asyncio.timeout(10):
        while not connections:
            await asyncio.sleep(0.01)
        while connections:
            await asyncio.sleep(0.01)
    writer.transport.abort()


async def test_an_upload_of_a_byte_now_and_then_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_http, "SILENCE_S", 0.2)
    parts = urlsplit(await site.begin(1 << 20))
    reader, writer = await site.connect()
    head = (
        f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nhost: a\r\ncontent-length: {1 << 20}\r\n\r\n"
    )
    writer.write(head.encode())
    answer = asyncio.ensure_future(reader.read())
    async with asyncio.timeout(10):
        while not answer.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
    assert b" 408 " in answer.result()[:20]
    assert not list((site.directory / "uploads").glob("*.part"))
    writer.close()


# More than may be.


async def test_uploads_that_are_only_announced_count_as_well(tmp_path: Path) -> None:
    async with open_site(tmp_path, total_bytes=100) as site:
        await site.begin(60)
        with pytest.raises(Full) as refused:
            await site.begin(60, OTHER)
        assert refused.value.reason == "ARTIFACTS_FULL"
        await site.begin(40, OTHER)


async def test_uploads_and_artifacts_without_bytes_have_an_end(tmp_path: Path) -> None:
    async with open_site(tmp_path, uploads=3, total_count=5) as site:
        for i in range(3):
            await site.begin(0, f"ses_{i:032x}")
        with pytest.raises(Full) as refused:
            await site.begin(0, OTHER)
        assert refused.value.reason == "UPLOADS_FULL"

        async def nothing() -> AsyncIterator[bytes]:
            return
            yield b""

        async def put(session_id: str) -> None:
            await site.keeper.put(
                session_id=session_id,
                task_id="",
                name="a",
                content_type="",
                labels={},
                size_bytes=0,
                data=nothing(),
            )

        await put(OTHER)
        await put(SESSION)
        with pytest.raises(Full) as refused:
            await put(SESSION)
        assert refused.value.reason == "ARTIFACTS_FULL"


async def test_what_lies_on_disk_is_for_the_worker_alone(site: Site) -> None:
    await site.make()
    await site.begin()
    for path in [site.directory / "uploads", site.directory / "store"]:
        for one in [path, *path.rglob("*")]:
            assert stat.S_IMODE(one.stat().st_mode) & 0o077 == 0, one


# Metadata that somebody else wrote.

RECORD: dict[str, Any] = {
    "format": 1,
    "artifact_id": ARTIFACT,
    "session_id": SESSION,
    "task_id": "",
    "name": "a",
    "content_type": "text/plain",
    "size_bytes": len(DATA),
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "labels": {},
    "created_at_ms": 1,
}
HOSTILE: dict[str, bytes] = {
    "a line break in the type": json.dumps({**RECORD, "content_type": "a/b\r\nx: y"}).encode(),
    "no type": json.dumps({**RECORD, "content_type": "html"}).encode(),
    "a line break in the name": json.dumps({**RECORD, "name": "a\r\nb"}).encode(),
    "a path": json.dumps({**RECORD, "name": "../a"}).encode(),
    "a lone surrogate": json.dumps({**RECORD, "name": "\ud800"}).encode(),
    "a surrogate in a label": json.dumps({**RECORD, "labels": {"a": "\ud800"}}).encode(),
    "no digest": json.dumps({**RECORD, "sha256": '"\r\n'}).encode(),
    "another artifact's": json.dumps({**RECORD, "artifact_id": "art_" + "1" * 32}).encode(),
    "a size that no wire holds": json.dumps({**RECORD, "size_bytes": 1 << 70}).encode(),
    "a time that no wire holds": json.dumps({**RECORD, "created_at_ms": 1 << 70}).encode(),
    "a field too many": json.dumps({**RECORD, "storage_url": "file:///etc/shadow"}).encode(),
    "nested without end": b"[" * 100_000,
    "too long": json.dumps({**RECORD, "labels": {"a": "x" * 1_000_000}}).encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_metadata_hides_only_itself(tmp_path: Path, data: bytes) -> None:
    good = "art_" + "2" * 32
    store = tmp_path / "store/artifacts" / SESSION
    store.mkdir(parents=True)
    (store / f"{ARTIFACT}.json").write_bytes(data)
    (store / f"{ARTIFACT}.data").write_bytes(DATA)
    (store / f"{good}.json").write_text(json.dumps({**RECORD, "artifact_id": good}))
    (store / f"{good}.data").write_bytes(DATA)
    async with open_site(tmp_path) as site:
        assert [one.artifact_id for one in await site.keeper.list()] == [good]
        with pytest.raises(NotFound):
            await site.keeper.get(ARTIFACT)
    with pytest.raises(Corrupt):
        read_info(data, session_id=SESSION, artifact_id=ARTIFACT, storage_url="")


async def test_bytes_that_were_changed_in_the_store_are_never_given_as_a_whole(site: Site) -> None:
    info, link = await site.make()
    path = site.directory / "store" / facts.data_key(SESSION, info.artifact_id)
    path.write_bytes(b"x" * len(DATA))
    status, _, body = await site.ask("GET", link)
    assert (status, body == DATA) == (500, False)


# Code that leaves files.

COME_AND_GO = """
import os
os.makedirs('artifacts', exist_ok=True)
for name in os.listdir('artifacts'):
    os.unlink(f'artifacts/{{name}}')
for i in range({count}):
    os.symlink('/etc/passwd', f'artifacts/{round}-{{i}}')
"""


TRICKS: dict[str, str] = {
    "a link to the host": "os.symlink('/etc/passwd', 'artifacts/a')",
    "a link upwards": "os.symlink('../..', 'artifacts/a')",
    "a pipe": "os.mkfifo('artifacts/a')",
    "the directory itself a link": "os.rmdir('artifacts'); os.symlink('/etc', 'artifacts')",
    "a directory that nobody may read": "os.mkdir('artifacts/a', 0)",
    "a socket": "import socket; socket.socket(socket.AF_UNIX).bind('artifacts/a')",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="sessions with users of their own")
async def test_code_can_neither_pass_off_other_files_nor_be_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with state_directory() as state:
        async with checkpoint_engine(state, pool_size=0) as rig:
            for what, trick in TRICKS.items():
                session_id = await rig.create()
                await rig.python(session_id, f"import os; os.mkdir('artifacts'); {trick}")
                assert list(await rig.engine.artifacts.list()) == [], what
                await rig.destroy(session_id)
            for module in (left_files, collector):
                monkeypatch.setattr(module, "MAX_SCANNED", 50)
            session_id = await rig.create()
            left = rig.session(session_id).workspace.left_files
            for round_ in range(4):
                await rig.python(session_id, COME_AND_GO.format(count=60, round=round_))
                assert 0 < len(left.seen or ()) <= 100
            for module in (left_files, collector):
                monkeypatch.setattr(module, "MAX_SCANNED_BYTES", 300)
            await rig.python(session_id, COME_AND_GO.format(count=40, round="x"))
            assert 0 < sum(map(len, left.seen or ())) <= 600
            assert list(await rig.engine.artifacts.list()) == []
