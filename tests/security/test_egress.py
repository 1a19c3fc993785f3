"""Attacks on the way out: nothing that is not allowed leaves, and every refusal is told.

Two network namespaces stand for the worker's host and the internet. Traps listen on every address
that must never be reached; each test ends by looking at them.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from codegen_mcp.testing.egress_rig import Seen, ok
from codegen_mcp.testing.outer_network import (
    NEAR,
    OTHER,
    PRIVATE,
    PUBLIC,
    PUBLIC6,
    OuterNetwork,
    outer_network,
    why_not,
)
from codegen_mcp.testing.proxy_rig import ProxyRig, proxy_rig

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")

NAMES = {
    "allowed.example": PUBLIC,
    "sub.wild.example": PUBLIC,
    "wild.example": PUBLIC,
    "six.example": PUBLIC6,
    "other.example": OTHER,
    "meta.example": "169.254.169.254",
    "private.example": PRIVATE,
    "loop.example": "127.0.0.1",
    "loop6.example": "::1",
    "mapped.example": "::ffff:127.0.0.1",
    "nat64.example": "64:ff9b::a9fe:a9fe",
    "own.example": NEAR,
    "zero.example": "0.0.0.0",
    "many.example": [["169.254.169.254", "10.1.2.3", PUBLIC]],
    "rebind.example": [[PUBLIC], ["127.0.0.1"]],
}
ALLOW = [
    "allowed.example",
    "*.wild.example",
    "six.example",
    "*.example:80",
    PUBLIC,
    "[2606:2800:220:1::10]",
    "echo.example:7777",
]


@pytest.fixture(scope="module")
def network() -> Iterator[OuterNetwork]:
    with outer_network() as made:
        yield made


@asynccontextmanager
async def opened(network: OuterNetwork, *lists: list[str], **config) -> AsyncIterator[ProxyRig]:
    names = {**NAMES, **config.pop("names", {})}
    async with proxy_rig(network, *(lists or (ALLOW,)), names=names, config=config) as rig:
        await rig.servers.web(PUBLIC)
        await rig.servers.web(OTHER)
        await rig.servers.web(PUBLIC6)
        await rig.servers.echo(PUBLIC, 443)
        await rig.servers.echo(PUBLIC, 7777)
        yield rig
        assert rig.servers.trapped == []


@pytest.fixture
async def rig(network: OuterNetwork) -> AsyncIterator[ProxyRig]:
    async with opened(network) as made:
        yield made


# What is allowed works.


async def test_a_plain_request_to_an_allowed_host_is_answered(rig):
    answer = await rig.get("http://allowed.example/path?q=1")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"GET /path?q=1 HTTP/1.1\r\n" in answer
    assert rig.reached == [(PUBLIC, 80)]
    assert rig.denied == {}


async def test_several_requests_share_a_connection(rig):
    one = b"GET http://allowed.example/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET http://allowed.example/3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await rig.ask(one % 1 + one % 2 + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert [seen.head.split()[1] for seen in rig.servers.seen] == [b"/1", b"/2", b"/3"]


async def test_a_body_is_passed_on(rig):
    await rig.ask(
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Connection: close\r\n\r\nhello"
    )
    assert rig.servers.seen[0].body == b"hello"


@pytest.mark.parametrize("target", ["allowed.example:443", f"{PUBLIC}:443", "sub.wild.example:443"])
async def test_a_tunnel_to_an_allowed_host_carries_bytes(rig, target):
    head, (reader, writer) = await rig.tunnel(target)
    assert head.startswith(b"HTTP/1.1 200")
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    writer.close()


async def test_an_allowed_host_by_ipv6_is_answered(rig):
    assert (await rig.get("http://six.example/")).startswith(b"HTTP/1.1 200")
    assert (await rig.get("http://[2606:2800:220:1::10]/")).startswith(b"HTTP/1.1 200")
    assert rig.reached == [(PUBLIC6, 80)] * 2


async def socks(rig: ProxyRig, request: bytes, greeting: bytes = b"\x05\x01\x00"):
    reader, writer = await rig.connect()
    writer.write(greeting)
    if await reader.read(2) != b"\x05\x00":
        return None, reader, writer
    writer.write(request)
    async with asyncio.timeout(5):
        return await reader.readexactly(10), reader, writer


def socks_name(host: str, port: int, command: int = 1) -> bytes:
    name = host.encode()
    return bytes([5, command, 0, 3, len(name)]) + name + struct.pack(">H", port)


async def test_socks5_reaches_an_allowed_host(rig):
    answer, reader, writer = await socks(rig, socks_name("allowed.example", 443))
    assert answer[1] == 0
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    writer.close()


async def test_a_websocket_goes_through_and_stays_open(network):
    def upgrade(seen: Seen) -> bytes:
        return b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"

    async with proxy_rig(network, ALLOW, names=NAMES) as rig:
        await rig.servers.web(PUBLIC, answer=upgrade)
        reader, writer = await rig.connect()
        writer.write(
            b"GET http://allowed.example/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


# What is not on the list.


@pytest.mark.parametrize(
    "target",
    [
        "other.test:443",
        "allowed.example:8443",
        "allowed.example:22",
        "allowed.example:25",
        "wild.example:443",
        "evilallowed.example:443",
        "allowed.example.evil.test:443",
        f"{OTHER}:443",
        "localhost:443",
        f"{PUBLIC}:22",
    ],
)
async def test_a_tunnel_to_what_is_not_on_the_list_is_refused_and_told(rig, target):
    answer = await rig.refused_tunnel(target)
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"not on the worker's allow list" in answer
    assert rig.denied == {target: "not on the worker's allow list"}
    assert rig.reached == []
    assert rig.resolver.asked == []


@pytest.mark.parametrize(
    "literal",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "017700000001",
        "169.254.43518",
        "0xA9FEA9FE",
        "1.2.3.4.5",
        "127.0.0.1%00.allowed.example",
        "[::1%25lo]",
        "[fe80::1%eth0]",
        "[::ffff:127.0.0.1",
        "allowed.example\x0bevil",
        "-a.example",
        "a..example",
        "ａllowed.example",
    ],
)
async def test_unusual_spellings_of_a_host_are_refused(network, literal):
    async with opened(network, ["*", "*:*"]) as rig:
        answer = await rig.refused_tunnel(f"{literal}:80")
        assert answer.split()[1] in {b"400", b"403", b"502"}
        assert rig.reached == []


@pytest.mark.parametrize(
    ("literal", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("[::1]", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("[::]", "unspecified"),
        ("169.254.169.254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("[fd00:ec2::254]", "metadata"),
        ("169.254.1.1", "link-local"),
        ("[fe80::1]", "link-local"),
        ("10.1.2.3", "private"),
        ("172.16.9.9", "private"),
        ("192.168.7.7", "private"),
        ("100.64.0.1", "private"),
        ("[fd12:3456::1]", "private"),
        ("224.0.0.1", "multicast"),
        ("[ff02::1]", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("[2001:db8::1]", "reserved"),
        ("[100::1]", "reserved"),
        ("[::ffff:127.0.0.1]", "loopback"),
        ("[::ffff:a9fe:a9fe]", "metadata"),
        ("[::ffff:93.184.216.34]", "reserved"),
        ("[::127.0.0.1]", "loopback"),
        ("[64:ff9b::7f00:1]", "loopback"),
        ("[64:ff9b::a9fe:a9fe]", "metadata"),
        ("[64:ff9b:1::a01:203]", "private"),
        ("[2002:7f00:1::1]", "loopback"),
        ("[2002:a01:203::1]", "private"),
        ("[2001:0:7f00:1::]", "loopback"),
        ("[2606:2800::5efe:10.1.2.3]", "private"),
        (NEAR, "the worker's host"),
    ],
)
async def test_an_address_that_is_not_of_the_open_internet_is_refused_whatever_the_list(
    network, literal, why
):
    async with opened(network, ["*:*"]) as rig:
        answer = await rig.refused_tunnel(f"{literal}:80")
        assert answer.startswith(b"HTTP/1.1 403"), answer
        assert why in next(iter(rig.denied.values()))
        assert rig.reached == []


@pytest.mark.parametrize(
    "host",
    ["meta", "private", "loop", "loop6", "mapped", "nat64", "own", "zero"],
)
async def test_a_name_that_resolves_to_such_an_address_is_refused(rig, host):
    answer = await rig.get(f"http://{host}.example/")
    assert answer.startswith(b"HTTP/1.1 403")
    assert list(rig.denied) == [f"{host}.example:80"]
    assert rig.reached == []


async def test_of_several_addresses_only_the_good_one_is_tried(rig):
    assert (await rig.get("http://many.example/")).startswith(b"HTTP/1.1 200")
    assert rig.reached == [(PUBLIC, 80)]


async def test_a_name_that_changes_its_address_is_checked_each_time(rig):
    assert (await rig.get("http://rebind.example/")).startswith(b"HTTP/1.1 200")
    assert (await rig.get("http://rebind.example/")).startswith(b"HTTP/1.1 403")
    assert rig.denied == {"rebind.example:80": "resolves to a loopback address"}
    assert rig.resolver.asked == ["rebind.example"] * 2  # once for each connection, no more


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to(network):
    names = {"flip.example": [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]}
    async with opened(network, names=names) as rig:
        assert (await rig.get("http://flip.example/")).startswith(b"HTTP/1.1 200")
        assert rig.resolver.asked == ["flip.example"]


async def test_a_redirect_to_metadata_leads_nowhere(network):
    def redirect(seen: Seen) -> bytes:
        return ok(b"", "Location: http://169.254.169.254/latest/", status="302 Found")

    async with proxy_rig(network, ["*"], names=NAMES) as rig:
        await rig.servers.web(PUBLIC, answer=redirect)
        await rig.servers.traps(network.near, NEAR, (8080,))
        answer = await rig.get("http://allowed.example/")
        assert answer.startswith(b"HTTP/1.1 302")
        followed = await rig.get("http://169.254.169.254/latest/")
        assert followed.startswith(b"HTTP/1.1 403")
        assert rig.denied == {"169.254.169.254:80": "a metadata service"}
        assert rig.servers.trapped == []


async def test_each_list_only_narrows_the_one_before(network):
    lists = (["*.example"], ["allowed.example", "other.example"], ["allowed.example:80"])
    async with opened(network, *lists) as rig:
        assert (await rig.get("http://allowed.example/")).startswith(b"HTTP/1.1 200")
        await rig.get("http://other.example/")
        await rig.get("http://six.example/")
        await rig.refused_tunnel("allowed.example:443")
        assert rig.denied == {
            "other.example:80": "not on the task's allow list",
            "six.example:80": "not on the session's allow list",
            "allowed.example:443": "not on the task's allow list",
        }


# HTTP that is meant to be read in two ways.


@pytest.mark.parametrize(
    "request_",
    [
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET http://169.254.169.254/ HTTP/1.1\r\n\r\n",
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Content-Length: 40\r\n\r\nabcd",
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
        b"GET http://allowed.example/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET http://allowed.example/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://allowed.example/ HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET http://user:pass@allowed.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://allowed.example@169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://allowed.example#@169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://allowed.example\\@169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /only/a/path HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        b"GET https://allowed.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://allowed.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT allowed.example HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT allowed.example:0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT allowed.example:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT allowed.example:443:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT http://allowed.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no proxy request at all\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    ],
)
async def test_what_could_be_read_in_two_ways_does_not_leave(rig, request_):
    answer = await rig.ask(request_ + b"\r\n\r\n")
    assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
    assert rig.reached == []


async def test_the_host_of_the_url_counts_and_not_the_host_field(rig):
    await rig.ask(
        b"GET http://allowed.example/ HTTP/1.1\r\nHost: 169.254.169.254\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert b"host: allowed.example\r\n" in rig.servers.seen[0].head.lower()
    assert b"169.254" not in rig.servers.seen[0].head


async def test_fields_between_neighbours_stay_behind(rig):
    await rig.ask(
        b"GET http://allowed.example/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic abc\r\n"
        b"Proxy-Connection: keep-alive\r\nTE: trailers\r\nX-Secret-Hop: 1\r\nX-Kept: 1\r\n"
        b"Connection: X-Secret-Hop, close\r\n\r\n"
    )
    head = rig.servers.seen[0].head.lower()
    assert b"x-kept: 1" in head
    for gone in (b"proxy-", b"te:", b"x-secret-hop"):
        assert gone not in head


async def test_the_length_cannot_be_named_away(rig):
    """Connection: content-length would turn a body into the next request."""
    await rig.ask(
        b"POST http://allowed.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Connection: content-length, close\r\n\r\nGET "
    )
    assert rig.servers.seen[0].body == b"GET "


async def test_what_follows_a_request_is_not_sent_along(rig):
    answer = await rig.ask(
        b"GET http://allowed.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        b"GET /admin HTTP/1.1\r\nHost: inner\r\n\r\n"
    )
    assert answer.count(b"HTTP/1.1 200") == 1
    assert len(rig.servers.seen) == 1


async def test_an_answer_with_two_lengths_is_not_passed_on(network):
    def twice(seen: Seen) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )

    async with proxy_rig(network, ALLOW, names=NAMES) as rig:
        await rig.servers.web(PUBLIC, answer=twice)
        assert (await rig.get("http://allowed.example/")).split()[1] in {b"400", b"502"}


# Bounds.


async def test_a_huge_header_is_refused(rig):
    answer = await rig.get("http://allowed.example/", "X: " + "a" * 200_000)
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or not answer
    assert rig.reached == []


async def test_a_header_without_end_is_given_up(network):
    async with opened(network, header_s=0.3) as rig:
        reader, writer = await rig.connect()
        writer.write(b"GET http://allowed.example/ HTTP/1.1\r\nHost: x\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_client_that_dribbles_is_given_up(network):
    """Slow-loris: a byte now and then does not keep a connection."""
    async with opened(network, header_s=0.5) as rig:
        reader, writer = await rig.connect()
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(5):
            for byte in b"GET http://allowed.example/ HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                if ended.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.wait([ended], timeout=0.05)
            answer = await ended
        assert answer.startswith(b"HTTP/1.1 408") or not answer
        writer.close()


async def test_a_silent_client_is_given_up(network):
    async with opened(network, header_s=0.3) as rig:
        reader, writer = await rig.connect()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_silent_tunnel_is_given_up(network):
    async with opened(network, idle_s=0.3) as rig:
        _, (reader, writer) = await rig.tunnel("allowed.example:443")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_more_bytes_than_a_task_may_have_cut_its_connections_and_are_told(network):
    async with opened(network, max_bytes=100_000) as rig:
        _, (reader, writer) = await rig.tunnel("allowed.example:443")
        got = 0
        writer.write(b"x" * 90_000)
        try:
            async with asyncio.timeout(5):
                while data := await reader.read(65536):
                    got += len(data)
        except ConnectionResetError:
            pass
        writer.close()
        assert got < 100_000
        assert any("more than 100000 bytes" in why for why in rig.denied.values())


async def test_more_connections_than_a_session_may_have_are_refused_and_told(network):
    async with opened(network, max_connections=2) as rig:
        kept = [await rig.tunnel("allowed.example:443") for _ in range(2)]
        reader, writer = await rig.connect()
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        assert any("more than 2 connections" in why for why in rig.denied.values())
        for _, (_, other) in kept:
            other.close()
        writer.close()


async def test_refusals_are_bounded_and_counted(rig):
    for number in range(70):
        await rig.refused_tunnel(f"h{number}.test:443")
    await rig.refused_tunnel("h0.test:443")
    denials = rig.egress.denials()
    assert len(denials) <= 65
    assert denials[0].count == 2
    assert sum(one.count for one in denials) == 71


# SOCKS.


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (socks_name("other.test", 443), 2),
        (socks_name("allowed.example", 22), 2),
        (socks_name("169.254.169.254", 80), 2),
        (socks_name("2130706433", 80), 2),
        (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50", 2),
        (b"\x05\x01\x00\x01\xa9\xfe\xa9\xfe\x00\x50", 2),
        (b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\x7f\x00\x00\x01\x00\x50", 2),
        (socks_name("allowed.example", 443, command=2), 7),
        (socks_name("allowed.example", 443, command=3), 7),
        (socks_name("allowed.example", 0), 7),
    ],
)
async def test_socks5_refuses_what_is_not_allowed_by_its_codes(network, request_, code):
    async with opened(network, ["allowed.example", "127.0.0.1:*", "169.254.169.254:*"]) as rig:
        answer, _, writer = await socks(rig, request_)
        assert answer[1] == code
        assert rig.denied
        assert rig.reached == []
        writer.close()


async def test_socks5_with_a_password_alone_is_refused(rig):
    answer, _, writer = await socks(rig, b"", greeting=b"\x05\x01\x02")
    assert answer is None
    writer.close()


# The end.


async def test_nothing_goes_on_after_the_task(network):
    async with opened(network) as rig:
        head, (reader, writer) = await rig.tunnel("allowed.example:443")
        assert head.startswith(b"HTTP/1.1 200")
        port = rig.port
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
