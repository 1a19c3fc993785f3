"""The fetcher's way out: to one index, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from codegen_mcp.languages.python.index_proxy import MAX_HEADER_BYTES, IndexProxy
from codegen_mcp.languages.python.index_rules import EgressRules
from codegen_mcp.languages.python.packages import Index


@contextlib.asynccontextmanager
async def proxy_for(index, directory: Path, **options):
    rules = EgressRules(Index.parse(index.url))
    async with IndexProxy(
        rules, directory / "proxy.sock", max_bytes=options.pop("max_bytes", 1 << 20), **options
    ) as proxy:
        yield proxy


async def ask(directory: Path, request: bytes, *, then: bytes = b"", end: bool = False) -> bytes:
    """Send bytes to the proxy and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(directory / "proxy.sock")
    writer.write(request)
    answer = b""
    try:
        async with asyncio.timeout(10):
            if then:
                answer = await reader.readuntil(b"\r\n\r\n")
                writer.write(then)
            if end:
                writer.write_eof()
            answer += await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


def place(index) -> str:
    return urlsplit(index.url).netloc


GET = b"GET /simple/alpha/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_the_index_is_reached_through_a_tunnel(index, tmp_path):
    index.wheel("alpha")
    async with proxy_for(index, tmp_path) as proxy:
        answer = await ask(tmp_path, f"CONNECT {place(index)} HTTP/1.1\r\n\r\n".encode(), then=GET)

    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    assert proxy.counters.connections == 1
    assert proxy.counters.bytes_in > 100
    assert proxy.counters.bytes_out == len(GET)


async def test_a_plain_http_index_is_asked_with_the_host_it_expects(index, tmp_path):
    index.wheel("alpha")
    request = (
        f"GET {index.url}/alpha/ HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: secret\r\n"
        "Connection: keep-alive\r\n\r\n"
    )
    async with proxy_for(index, tmp_path):
        answer = await ask(tmp_path, request.encode())

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.partition(b"\r\n\r\n")[0].lower().count(b"connection: close") == 1
    assert index.requests == ["/simple/alpha/"]


@pytest.mark.parametrize(
    ("request_line", "status", "why"),
    [
        ("CONNECT 127.0.0.1:22 HTTP/1.1", 403, "neither the package index nor"),
        ("CONNECT 169.254.169.254:80 HTTP/1.1", 403, "neither the package index nor"),
        ("CONNECT metadata.google.internal:80 HTTP/1.1", 403, "neither the package index nor"),
        ("CONNECT [::1]:80 HTTP/1.1", 403, "neither the package index nor"),
        ("GET http://169.254.169.254/latest HTTP/1.1", 403, "neither the package index nor"),
        ("GET http://user@127.0.0.1:1/ HTTP/1.1", 403, "neither the package index nor"),
        ("CONNECT localhost HTTP/1.1", 400, "host:port"),
        ("CONNECT localhost:http HTTP/1.1", 400, "host:port"),
        ("GET / HTTP/1.1", 400, "absolute http"),
        ("GET https://x/ HTTP/1.1", 400, "absolute http"),
        ("GET file:///etc/passwd HTTP/1.1", 400, "absolute http"),
        ("GET http://[bad/ HTTP/1.1", 400, "malformed URL"),
        ("POST http://x/ HTTP/1.1", 405, "only CONNECT"),
        ("nonsense", 400, "malformed request"),
    ],
)
async def test_everything_else_is_refused_with_a_reason(index, tmp_path, request_line, status, why):
    async with proxy_for(index, tmp_path) as proxy:
        answer = await ask(tmp_path, f"{request_line}\r\n\r\n".encode())

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert why.encode() in answer
    assert proxy.counters.connections == 0
    assert proxy.counters.refused
    assert index.requests == []


async def test_a_header_that_smuggles_lines_is_refused(index, tmp_path):
    request = f"GET {index.url}/alpha/ HTTP/1.1\r\nA: b\nHost: evil\r\n\r\n"
    async with proxy_for(index, tmp_path):
        answer = await ask(tmp_path, request.encode())

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert index.requests == []


async def test_a_long_header_is_refused(index, tmp_path):
    request = b"GET http://x/ HTTP/1.1\r\nA: " + b"a" * (2 * MAX_HEADER_BYTES)
    async with proxy_for(index, tmp_path):
        answer = await ask(tmp_path, request)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_slow_client_is_turned_away(index, tmp_path):
    async with proxy_for(index, tmp_path, header_timeout_s=0.1):
        answer = await ask(tmp_path, b"CONNECT 127")

    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_tunnel_in_which_nothing_moves_is_closed(index, tmp_path):
    async with proxy_for(index, tmp_path, idle_timeout_s=0.1):
        answer = await ask(tmp_path, f"CONNECT {place(index)} HTTP/1.1\r\n\r\n".encode())

    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_a_server_that_does_not_answer_is_a_bad_gateway_and_is_noted(index, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/simple"
        index.url = dead
        async with proxy_for(index, tmp_path) as proxy:
            answer = await ask(tmp_path, f"CONNECT {place(index)} HTTP/1.1\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert proxy.counters.unreachable


async def test_bytes_are_counted_and_cut_off_at_the_limit(index, tmp_path):
    index.wheel("alpha", files={"alpha.bin": "x" * 300_000})
    request = f"GET {index.url.replace('/simple', '')}/files/alpha-1.0-py3-none-any.whl HTTP/1.1"
    async with proxy_for(index, tmp_path, max_bytes=100_000) as proxy:
        answer = await ask(tmp_path, f"{request}\r\n\r\n".encode())

    assert len(answer) < 200_000
    assert proxy.counters.over_limit


async def test_too_many_connections_at_once_are_refused(index, tmp_path):
    async with proxy_for(index, tmp_path, max_connections=2, header_timeout_s=5):
        held = [await asyncio.open_unix_connection(tmp_path / "proxy.sock") for _ in range(2)]
        try:
            answer = await ask(tmp_path, b"GET http://x/ HTTP/1.1\r\n\r\n")
        finally:
            for _, writer in held:
                writer.close()
                await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 429 ")


async def test_closing_ends_every_connection_and_removes_the_socket(index, tmp_path):
    async with proxy_for(index, tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "proxy.sock")
        writer.write(f"CONNECT {place(index)} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")

    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert not (tmp_path / "proxy.sock").exists()


async def test_only_its_owner_may_connect(index, tmp_path):
    async with proxy_for(index, tmp_path):
        assert (tmp_path / "proxy.sock").stat().st_mode & 0o777 == 0o600
